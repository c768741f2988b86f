"""Which processes did a library start, and are they gone? They are found by a mark in their environment, and ended.

    offspring = Offspring()
    with offspring.watching():
        engine = LLM(…)         # processes that start processes
    …
    offspring.end()             # also at the interpreter's end, and where the start was cut short

A parent that is ended while it starts leaves its children to init, where no tree of processes finds them (vLLM 0.31: a
SIGTERM to the engine's core, which starts a worker). The mark is inherited by all of them. It must stand in what `exec`
was given: a process that is forked without it, as multiprocessing does by default on Linux below Python 3.14, has the
environment its parent began with. So `spawn` must be used. Linux only (`/proc`).
"""

import atexit
import multiprocessing.resource_tracker
import os
import secrets
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

MARK = "FRANKENSTEIN_OFFSPRING"
TITLE_KEEPS_ENVIRONMENT = "SPT_NOENV"
"""Tells setproctitle, which vLLM calls, to write no title over the environment in `/proc`."""
PATIENCE_S = 10.0
LOOK_S = 0.02
NUM_LOOKS = 3


class Offspring:
    """The processes that were started while they were awaited, and all that these started."""

    def __init__(self) -> None:
        self._mark = f"{MARK}={secrets.token_hex(8)}"
        atexit.register(self.end)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Marks the processes that are started meanwhile; ends them where the work does not come to its end."""
        multiprocessing.resource_tracker.ensure_running()  # this process's own, and without the mark
        before = {name: os.environ.get(name) for name in (MARK, TITLE_KEEPS_ENVIRONMENT)}
        os.environ |= dict([self._mark.split("=")]) | {TITLE_KEEPS_ENVIRONMENT: "1"}
        try:
            yield
        except BaseException:
            self.end()
            raise
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value

    def alive(self) -> list[int]:
        """Returns the ids of those that run."""
        mark = self._mark.encode()
        return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and _has(entry, mark)]

    def end(self) -> None:
        """Ends them all at once, and returns when none is left: signals that would cut this short wait."""
        kept = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
        try:
            deadline = time.monotonic() + PATIENCE_S
            num_quiet = 0  # looks in a row that found none: between its fork and its exec a process bears no mark
            while num_quiet < NUM_LOOKS and time.monotonic() < deadline:
                alive = self.alive()
                num_quiet = 0 if alive else num_quiet + 1
                for number in alive:
                    with suppress(ProcessLookupError):
                        os.kill(number, signal.SIGKILL)
                time.sleep(LOOK_S)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, kept)


def _has(entry: Path, mark: bytes) -> bool:
    """True where a process began with a mark in its environment; one that has ended, waited for or not, has none."""
    try:
        return mark in (entry / "environ").read_bytes().split(b"\0")
    except OSError:
        return False
