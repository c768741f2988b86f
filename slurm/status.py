"""How far is a study? Lists its jobs with states, steps done and time left, and the end of the log of what failed.

    python -m slurm.status outputs/pocket_study

Read from squeue, from sacct if accounting is available, and from the commands' files; so it also works for a study run
with `--local`.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from slurm.planning.planned import read_plan
from slurm.submitting.queueing import (
    CANCELLED_FILE,
    State,
    Submitted,
    latest_launch,
    past_states,
    queue_states,
    read_launch,
)
from tracking.command import REPOSITORY_ROOT, parse_arguments, run_command
from tracking.ownership import BEAT_S, CLAIM_FILE
from tracking.progress import PROGRESS_FILE, format_duration
from tracking.run import RUN_FILE, read_run
from tracking.tables import format_columns

NUM_LOG_LINES = 5
WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SUSPENDED")
FAILED = ("FAILED", "TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL", "BOOT_FAIL", "DEADLINE", "failed")


@dataclass(frozen=True, kw_only=True)
class TaskStatus:
    """The status of one job."""

    name: str
    stage: str
    state: str
    attempt: int
    done: str
    """Steps, or records."""
    left: str
    log: Path


def study_status(study: Path) -> list[TaskStatus]:
    """Returns the status of every job of a study.

    Raises:
        ValueError: if the folder does not contain a study.
    """
    jobs = read_plan(study)
    folder = latest_launch(study)
    submitted = read_launch(folder) if folder else []
    queued = queue_states(study) if folder else {}
    past = past_states([identifier for entry in submitted for identifier in entry.ids])
    stages = {entry.name: entry for entry in submitted}
    return [_task_status(job, study, folder, stages.get(job["stage"]), queued, past) for job in jobs]


def _is_script_of(job: Mapping[str, Any], name: str, state: State) -> bool:
    """True for a queued task whose job id no launch has recorded."""
    return Path(state.script).stem == job["stage"] and name.partition("_")[2] in ("", str(job["index"]))


def _task_status(
    job: Mapping[str, Any],
    study: Path,
    folder: Path | None,
    submitted: Submitted | None,
    queued: Mapping[str, State],
    past: Mapping[str, State],
) -> TaskStatus:
    names = submitted.task_ids(job["index"]) if submitted else []
    names += [name for name, state in queued.items() if name not in names and _is_script_of(job, name, state)]
    directory = REPOSITORY_ROOT / job["output_dir"]
    current = next((queued[name] for name in names if name in queued), None)
    state = state_of(directory, current, next((past[name] for name in reversed(names) if name in past), None))
    attempt = _number(folder / "attempts" / job["name"]) if folder else 0
    if state == "not run" and attempt:  # it was started, but ended before writing anything
        state = "failed"
    logs = [study / "logs" / f"{job['name']}.log"]
    logs += [folder / "logs" / f"{job['name']}.{attempt}.log"] if folder else []
    log = max(logs, key=lambda path: path.stat().st_mtime if path.is_file() else 0)
    if state == "stopped" and current is None and folder is not None and log.is_relative_to(folder):
        state = "stopped" if (folder / CANCELLED_FILE).exists() else "failed"  # no attempts left
    done, left = progress_of(directory, running=state == "RUNNING")
    if current is not None and state == "RUNNING":
        left = f"{left}, limit in {current.left}" if left else f"limit in {current.left}"
    elif current is not None and current.state == "PENDING":
        left = f"({current.reason})"
    return TaskStatus(name=job["name"], stage=job["stage"], state=state, attempt=attempt, done=done, left=left, log=log)


def state_of(directory: Path, queued: State | None, past: State | None) -> str:
    """Returns a job's state from the queue, else from its files, else from accounting."""
    if queued is not None and not queued.is_ending:
        return queued.state
    if directory.is_file():  # a page: it exists or not
        return "finished"
    if (directory / RUN_FILE).is_file():
        status = str(read_run(directory)["status"])
        if status == "finished":
            return "finished"
        if past is not None and past.state != "COMPLETED":
            return past.state
        if status == "running" and _is_alive(directory):
            return "RUNNING"
        return "stopped" if status in ("running", "interrupted") else status
    if past is not None:
        return "finished" if past.state == "COMPLETED" else past.state
    return "not run"


def _is_alive(directory: Path) -> bool:
    """True if a process outside of Slurm has a recent heartbeat in the directory."""
    path = directory / CLAIM_FILE
    try:
        age_s, claim = time.time() - path.stat().st_mtime, json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return False
    return age_s < 3 * BEAT_S and claim["job"] is None


def progress_of(directory: Path, *, running: bool) -> tuple[str, str]:
    """Returns a job's progress and its remaining time at the current rate; empty if unknown."""
    path = directory / PROGRESS_FILE
    if path.is_file():
        state = json.loads(path.read_text(encoding="utf-8"))
        step, num_steps = int(state["step"]), int(state["num_steps"])
        elapsed_s = worked_s(read_run(directory)["attempts"]) if (directory / RUN_FILE).is_file() else 0.0
        left = format_duration(elapsed_s * (num_steps - step) / step) if running and step and elapsed_s else ""
        return f"{step}/{num_steps} steps", f"about {left}" if left else ""
    records = directory / "records.jsonl"
    if records.is_file():
        with records.open("rb") as file:
            return f"{sum(1 for _ in file):,} records", ""
    return "", ""


def worked_s(attempts: Sequence[Mapping[str, Any]]) -> float:
    """Returns a run's working time over all attempts; an attempt without an end was killed, and counts only if last."""
    total = 0.0
    for position, attempt in enumerate(attempts):
        start = datetime.fromisoformat(attempt["start"])
        if attempt["end"]:
            total += (datetime.fromisoformat(attempt["end"]) - start).total_seconds()
        elif position == len(attempts) - 1:
            total += (datetime.now(UTC) - start).total_seconds()
    return total


def format_status(tasks: Sequence[TaskStatus]) -> str:
    """Formats the tree, followed by the end of each failed job's log."""
    rows = []
    for stage in dict.fromkeys(task.stage for task in tasks):
        group = [task for task in tasks if task.stage == stage]
        if len(group) > 1:
            counts = {state: sum(task.state == state for task in group) for state in (task.state for task in group)}
            rows.append((stage, ", ".join(f"{number} {state}" for state, number in counts.items()), "", "", ""))
        for task in group:
            name = f"  {task.name}" if len(group) > 1 else task.name
            attempt = f"attempt {task.attempt}" if task.attempt > 1 else ""
            rows.append((name, task.state, attempt, task.done, task.left))
    num_done = sum(task.state == "finished" for task in tasks)
    lines = [*format_columns(rows, right=()), "", f"{num_done} of {len(tasks)} jobs are finished"]
    for task in tasks:
        if task.state in FAILED and task.log.is_file():
            tail = task.log.read_text(encoding="utf-8", errors="replace").splitlines()[-NUM_LOG_LINES:]
            lines += ["", f"{task.name}: {task.state}; the end of {task.log}:", *(f"    {line}" for line in tail)]
    return "\n".join(lines)


def _number(path: Path) -> int:
    return int(path.read_text().strip() or 0) if path.is_file() else 0


@dataclass(frozen=True, kw_only=True)
class StatusArguments:
    """The study to show."""

    study: str = field(metadata={"help": "folder of the study (its output_dir)", "positional": True})


def main(argv: list[str] | None = None) -> None:
    (arguments,) = parse_arguments(argv, StatusArguments, description=__doc__)
    print(format_status(study_status(Path(arguments.study))))


if __name__ == "__main__":
    run_command(main)
