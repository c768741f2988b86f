"""Finds and ends the processes that a library started, identified by a marker in their environment.

    offspring = Offspring()
    with offspring.watching():
        engine = LLM(…)         # processes that start processes
    …
    offspring.end()             # also at interpreter exit, and if the start was interrupted

If a parent is killed during its start, its children are re-parented to init, and no process tree contains them (vLLM
0.31: a SIGTERM to the engine core while it starts a worker). All of them inherit the marker. It must be in the
environment passed to `exec`: a process forked without exec, as by multiprocessing's default on Linux before Python
3.14, shows its parent's initial environment. So `spawn` must be used. Linux only (`/proc`).
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
"""Prevents setproctitle, which vLLM calls, from overwriting the environment in `/proc`."""
PATIENCE_S = 10.0
LOOK_S = 0.02
NUM_LOOKS = 3


class Offspring:
    """The processes started while watching, and their descendants."""

    def __init__(self) -> None:
        self._mark = f"{MARK}={secrets.token_hex(8)}"
        atexit.register(self.end)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Marks processes started in this context; ends them if it is left by an exception."""
        multiprocessing.resource_tracker.ensure_running()  # belongs to this process, so without the marker
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
        """Returns the ids of the running ones."""
        mark = self._mark.encode()
        return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and _has(entry, mark)]

    def end(self) -> None:
        """Ends all of them, and returns when none is left; signals are deferred meanwhile."""
        kept = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
        try:
            deadline = time.monotonic() + PATIENCE_S
            num_quiet = 0  # consecutive scans without a process: between fork and exec a process has no marker
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
    """True if a process was started with the marker; False for ended processes, including zombies."""
    try:
        return mark in (entry / "environ").read_bytes().split(b"\0")
    except OSError:
        return False
