"""Ids and states of a study's jobs, from squeue and sacct.

`sacct` is used if accounting is available; otherwise a job that has left the queue is judged by its files.
"""

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

QUEUE_FORMAT = "%i|%T|%M|%L|%r|%o"
JOBS_FILE = "jobs.json"
CANCELLED_FILE = "cancelled"
"""Marker file in a launch's folder: jobs that are being cancelled do not requeue themselves."""
BRACKETS = re.compile(r"(?P<job>\d+)_\[(?P<tasks>[\d,-]+)(?:%\d+)?\]")


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """One submission."""

    name: str
    ids: list[str]
    """Slurm's job ids: the job's, and its successors' if it may not requeue itself."""
    is_array: bool
    waits: str
    tasks: list[dict[str, Any]]

    def task_ids(self, index: int) -> list[str]:
        """Returns Slurm's ids of one task."""
        return [f"{identifier}_{index}" if self.is_array else identifier for identifier in self.ids]


@dataclass(frozen=True, kw_only=True)
class State:
    """A task's state from squeue or sacct."""

    state: str
    reason: str = ""
    elapsed: str = ""
    left: str = ""
    """Time until its limit."""
    script: str = ""

    @property
    def is_ending(self) -> bool:
        return self.state == "COMPLETING"


def latest_launch(study: Path) -> Path | None:
    """Returns the folder of a study's last launch."""
    launches = [path for path in (study / "slurm").glob("*") if path.name.isdigit()]
    return max(launches, key=lambda path: int(path.name), default=None)


def read_launch(folder: Path) -> list[Submitted]:
    """Reads the jobs of a launch.

    Raises:
        ValueError: if the file is damaged.
    """
    path = folder / JOBS_FILE
    if not path.is_file():
        return []
    try:
        return [Submitted(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))]
    except (ValueError, TypeError):
        raise ValueError(f"{path} is damaged; remove it: jobs in the queue are found by their scripts") from None


def run_slurm(*command: str) -> str:
    """Runs one of Slurm's commands and returns its output.

    Raises:
        ValueError: if Slurm is not installed on this machine.
        RuntimeError: if it fails, with its message.
    """
    if shutil.which(command[0]) is None:
        raise ValueError(f"{command[0]} is not found; run this on a login node of the cluster, or launch with --local")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {' '.join(done.stderr.split())}")
    return done.stdout


def queue_states(study: Path) -> dict[str, State]:
    """Returns the states of a study's queued jobs, keyed by Slurm's task ids.

    A job is assigned to the study by its script, so this also works if a launch was killed before recording the id.
    """
    launch = latest_launch(study)
    known = {identifier for entry in (read_launch(launch) if launch else []) for identifier in entry.ids}
    launches = (study / "slurm").resolve()
    states = {}
    for line in run_slurm("squeue", "--noheader", "--array", "--me", f"--format={QUEUE_FORMAT}").splitlines():
        name, state, elapsed, left, reason, script = line.strip().split("|", 5)
        is_launched = Path(script).parent.name == "scripts" and Path(script).resolve().is_relative_to(launches)
        if is_launched or name.partition("_")[0] in known:
            states[name] = State(state=state, reason=reason, elapsed=elapsed, left=left, script=script)
    return states


def cancel_queued(study: Path) -> int:
    """Cancels a study's jobs and returns their number; jobs that are already ending are left alone."""
    waiting = {name for name, state in queue_states(study).items() if not state.is_ending}
    launch = latest_launch(study)
    if waiting and launch is not None:
        mark = launch / CANCELLED_FILE
        mark.touch()
        try:
            run_slurm("scancel", *sorted({name.partition("_")[0] for name in waiting}))
        except BaseException:
            mark.unlink()
            raise
    return len(waiting)


def past_states(ids: Sequence[str]) -> dict[str, State]:
    """Returns the states of ended jobs, keyed by Slurm's task ids; empty without accounting."""
    command = ("sacct", "--noheader", "--parsable2", "--allocations", "--format=JobID,State,Elapsed", "--jobs")
    if not ids or shutil.which("sacct") is None:
        return {}
    done = subprocess.run([*command, ",".join(ids)], capture_output=True, text=True, check=False)
    states: dict[str, State] = {}
    for line in done.stdout.splitlines() if done.returncode == 0 else []:
        names, state, elapsed = line.split("|")
        states |= dict.fromkeys(task_names(names), State(state=state.split()[0], elapsed=elapsed))
    return states


def task_names(names: str) -> list[str]:
    """Expands sacct's single line for an array whose tasks have not started: `7_[0-2,5%2]`."""
    found = BRACKETS.fullmatch(names)
    if found is None:
        return [names]
    ends = [part.partition("-") for part in found["tasks"].split(",")]
    indices = [index for first, _, last in ends for index in range(int(first), int(last or first) + 1)]
    return [f"{found['job']}_{index}" for index in indices]
