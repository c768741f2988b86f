"""What was run, with what, and how far did it get? The run directory and its `run.json`.

Every command opens its output directory here. The same command on a finished directory does nothing; on an unfinished
one it continues; with other settings it stops and names the differing setting; `--overwrite` starts over.
"""

import fcntl
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from tracking.command import REPOSITORY_ROOT, Preempted, is_main_process
from tracking.ownership import CLAIM_FILE, OwnedError, ownership
from tracking.product import partial_path, write_text

RUN_FILE = "run.json"
OVERWRITE_ARGUMENT = {"help": "discard earlier results in the output directory and start over"}
"""Metadata of the field `overwrite` in a command's arguments."""
LOCK_FILE = ".lock"
LOCK_PATIENCE_S = 5.0
"""Wait for the lock, since a killed holder's child may need a moment to end."""
LIBRARIES = ("torch", "torchvision", "transformers", "trl", "peft", "accelerate", "deepspeed", "datasets", "numpy")


class Run:
    """One output directory: its settings, its attempts and whether it is finished."""

    def __init__(self, directory: Path, state: dict[str, Any]) -> None:
        self.directory = directory
        self.state = state

    @property
    def finished(self) -> bool:
        return bool(self.state["status"] == "finished")

    @property
    def continued(self) -> bool:
        """True if there is an earlier attempt to continue."""
        return len(self.state["attempts"]) > 1

    def note(self, **facts: Any) -> None:
        """Adds facts (counts, durations) to this attempt's entry in `run.json`."""
        self.state["attempts"][-1].update(plain(facts))
        self._write()

    def _write(self) -> None:
        if is_main_process():
            write_text(self.directory / RUN_FILE, json.dumps(self.state, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def open_run(
    directory: Path,
    *,
    command: str,
    settings: Mapping[str, Any],
    overwrite: bool = False,
    found: Collection[str] = (),
) -> Iterator[Run]:
    """Opens an output directory for a command.

    Args:
        directory: created if it does not exist.
        command: the module's name, such as `eval.run`.
        settings: exactly what determines the result (no output paths, no worker counts).
        overwrite: remove an earlier run's files.
        found: names of files of other commands that may exist there and are never removed.

    Yields:
        The run. If `run.finished`, the caller has nothing to do.

    Raises:
        ValueError: if the directory contains something else, another command's run or other settings, or another
            process is writing it.
    """
    resolved: dict[str, Any] = plain(settings)
    directory = directory.resolve() if directory.is_symlink() else directory
    _check_directory(directory, found)
    directory.mkdir(parents=True, exist_ok=True)
    with _lock(directory):
        previous = _read_state(directory)
        if previous is not None and overwrite:
            if is_main_process():
                _empty(directory, found)
            previous = None
        if previous is not None:
            _check_same(directory, previous, command, resolved)
        state = previous or {"command": command, "settings": resolved, "status": "running", "attempts": []}
        run = Run(directory, state)
        if run.finished:
            yield run
            return
        state["status"] = "running"
        state["attempts"].append(_describe_attempt())
        run._write()
        try:
            yield run
        except BaseException as error:
            state["status"] = "interrupted" if isinstance(error, KeyboardInterrupt | Preempted) else "failed"
            run.note(end=_now(), error=f"{type(error).__name__}: {error}")
            raise
        state["status"] = "finished"
        run.note(end=_now())


def read_run(directory: Path) -> dict[str, Any]:
    """Reads a directory's `run.json`.

    Raises:
        ValueError: if there is none.
    """
    state = _read_state(directory)
    if state is None:
        raise ValueError(f"{directory} has no {RUN_FILE}; expected the output directory of a command of this suite")
    return state


def is_finished(directory: Path) -> bool:
    """True if a command has finished in this directory."""
    state = _read_state(directory)
    return state is not None and state["status"] == "finished"


def git_state() -> dict[str, Any]:
    """Returns the commit of this source tree and whether it had uncommitted changes; None outside a repository."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(REPOSITORY_ROOT), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (FileNotFoundError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}


def hardware() -> dict[str, Any]:
    """Returns processor, memory and, if torch is already imported, the names of the GPUs."""
    facts: dict[str, Any] = {
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "num_cpus": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpus": [],
    }
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        facts["gpus"] = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return facts


def _describe_attempt() -> dict[str, Any]:
    versions: dict[str, str | None] = {}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "argv": sys.argv,
        "start": _now(),
        "end": None,
        "git": git_state(),
        "versions": versions,
        "hardware": hardware(),
        "pid": os.getpid(),
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def plain(value: Any) -> Any:
    """Converts dataclasses, paths and tuples to JSON values."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    return json.loads(json.dumps(value, default=str))


def _read_state(directory: Path) -> dict[str, Any] | None:
    path = directory / RUN_FILE
    if not path.is_file():
        return None
    try:
        state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not readable as JSON ({error}); remove it and run again") from error
    if not isinstance(state, dict) or not {"command", "settings", "status", "attempts"} <= state.keys():
        raise ValueError(f"{path} was not written by this suite; choose another folder")
    return state


def _check_directory(directory: Path, found: Collection[str]) -> None:
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"--output-dir {directory} is a file; expected a folder")
    if directory.is_dir() and not (directory / RUN_FILE).exists():
        left_at_the_start = (LOCK_FILE, partial_path(directory / RUN_FILE).name)
        ours = {*left_at_the_start, *found}
        foreign = [
            entry.name
            for entry in directory.iterdir()
            if entry.name not in ours and not entry.name.startswith(CLAIM_FILE)
        ]
        if foreign:
            raise ValueError(
                f"--output-dir {directory} holds {sorted(foreign)[0]!r} but no {RUN_FILE}: not a run of this suite; "
                "choose another folder"
            )


def _check_same(directory: Path, previous: dict[str, Any], command: str, settings: dict[str, Any]) -> None:
    way_out = "use the same settings, another --output-dir, or --overwrite to start over"
    if previous["command"] != command:
        raise ValueError(f"{directory} belongs to {previous['command']}, not to {command}; {way_out}")
    for name, before, now in _differences(previous["settings"], settings):
        raise ValueError(f"{directory} was made with {name} = {before!r}, now it is {now!r}; {way_out}")


def _differences(before: Any, now: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted({*before, *now}):
            yield from _differences(before.get(key), now.get(key), f"{prefix}.{key}" if prefix else key)
    elif before != now:
        yield prefix, before, now


def _empty(directory: Path, kept: Collection[str]) -> None:
    for entry in directory.iterdir():
        if entry.name in (LOCK_FILE, CLAIM_FILE, *kept):
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


@contextmanager
def _lock(directory: Path) -> Iterator[None]:
    """Reserves the directory for this process, by a lock within this machine and by a claim across machines."""
    if not is_main_process():
        yield
        return
    with (directory / LOCK_FILE).open("w") as file:
        deadline = time.monotonic() + LOCK_PATIENCE_S
        while not _try_lock(file):
            if time.monotonic() > deadline:
                raise ValueError(f"{directory} is being written by another process; wait for it or choose another")
            time.sleep(0.1)
        with ExitStack() as stack:
            try:
                stack.enter_context(ownership(directory))
            except OwnedError as holder:
                raise ValueError(f"{directory} is being written by {holder}; wait for it or choose another") from None
            yield


def _try_lock(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
