"""Submits scripts to Slurm, one sbatch per stage with its dependencies, and records the job ids.

When launched again, a study submits only unfinished jobs, without dependencies on finished ones.
"""

import fcntl
import json
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

from slurm.planning.cluster import Cluster
from slurm.planning.planned import PLAN_FILE, Study, plan_as_json, read_plan, write_plan
from slurm.planning.render import render
from slurm.planning.stages import Stage
from slurm.planning.study import StudyJob
from slurm.submitting.queueing import JOBS_FILE, Submitted, cancel_queued, latest_launch, queue_states, run_slurm
from tracking.command import REPOSITORY_ROOT
from tracking.jobs.job import settled
from tracking.product import partial_path, write_text
from tracking.run import LOCK_FILE, git_state, is_finished


def write_launch(study: Study, folder: Path, stages: Sequence[Stage]) -> None:
    """Writes the scripts, and copies of their configurations."""
    for name in ("scripts", "logs", "attempts", "ended", "configs"):
        (folder / name).mkdir(parents=True)
    write_scripts(study, stages, root=REPOSITORY_ROOT)
    for path in map(Path, [*study.arguments.config_files(), *study.necessity["configs"]]):
        copy = folder / "configs" / ("__".join(path.parts[-3:]) if path.is_absolute() else "__".join(path.parts))
        shutil.copyfile(path, copy)
    write_text(folder / "study.json", json.dumps(asdict(study.arguments), indent=1) + "\n")
    code = git_state()
    write_text(folder / "code.json", json.dumps(code, indent=1) + "\n")
    if code["dirty"]:
        command = ["git", "-C", str(REPOSITORY_ROOT), "diff", "HEAD"]
        changes = subprocess.run(command, capture_output=True, text=True, check=True)
        if changes.stdout:  # untracked files do not count as changes
            write_text(folder / "uncommitted.patch", changes.stdout)


def write_scripts(study: Study, stages: Sequence[Stage], *, root: Path) -> None:
    """Writes the scripts of these stages."""
    for stage in stages:
        write_text(Path(stage.job.script), render(stage.job, study.cluster, root=root))


def submit(study: Study) -> Path:
    """Submits all unfinished jobs and returns the launch's folder.

    Raises:
        ValueError: if an earlier launch is still in the queue, or the folder contains another study.
        RuntimeError: if sbatch rejects a job; those already submitted are cancelled.
    """
    check_folder(study)
    run_slurm("sbatch", "--version")  # before anything is written
    with sole_launch(study):
        waiting = queue_states(study.directory)
        if waiting:
            raise ValueError(
                f"{len(waiting)} jobs of {study.directory} are still in the queue; wait for them, or: "
                f"python -m slurm.cancel {shlex.quote(str(study.directory))}"
            )
        earlier = latest_launch(study.directory)
        folder = study.directory / "slurm" / str(1 if earlier is None else int(earlier.name) + 1)
        stages = study.stages(unfinished(study.jobs), str(folder))
        write_plan(study)
        try:
            write_launch(study, folder, stages)
            submitted: dict[str, Submitted] = {}
            for stage in stages:
                _submit_stage(stage, study.cluster, submitted, folder)
        except BaseException as error:
            _take_back(study.directory, folder, error)
            raise
    return folder


def _take_back(study: Path, folder: Path, error: BaseException) -> None:
    """Undoes a failed launch: cancels its jobs, or removes its files if nothing was submitted."""
    if (folder / JOBS_FILE).is_file() or not isinstance(error, Exception):
        try:
            cancel_queued(study)
        except (ValueError, RuntimeError) as refusal:
            raise RuntimeError(
                f"{error}; and what was submitted is still in the queue ({refusal}): "
                f"python -m slurm.cancel {shlex.quote(str(study))}"
            ) from error
    if not (folder / JOBS_FILE).is_file():
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def sole_launch(study: Study) -> Iterator[None]:
    """Creates the study's folder, and locks it against other launches.

    Raises:
        ValueError: if the folder contains something else, or another launch is using it.
    """
    check_folder(study)
    study.directory.mkdir(parents=True, exist_ok=True)
    with (study.directory / LOCK_FILE).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{study.directory} is being launched by another process; wait for it") from None
        yield


def unfinished(jobs: Sequence[StudyJob]) -> list[StudyJob]:
    """Returns the jobs of every unfinished stage, without dependencies on finished ones.

    A stage is submitted completely, since tasks depend on tasks with the same index; finished tasks end in seconds.
    """
    done = settled(jobs)
    open_stages = {job.stage for job in jobs if job.name not in done}
    left = [job for job in jobs if job.stage in open_stages]
    names = {job.name for job in left}
    return [
        replace(
            job,
            needs=tuple(need for need in job.needs if need in names),
            after=tuple(other for other in job.after if other in names),
        )
        for job in left
    ]


def check_folder(study: Study) -> None:
    """Rejects a folder that contains something else, or another study's jobs."""
    directory = study.directory
    nearest = next(folder for folder in (directory, *directory.absolute().parents) if folder.exists())
    if not nearest.is_dir():
        raise ValueError(f"output_dir {directory}: {nearest} is a file; expected a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ValueError(f"output_dir {directory}: {nearest} may not be written; choose another output_dir")
    path = directory / PLAN_FILE
    if not path.is_file():
        left_at_the_start = {LOCK_FILE, partial_path(path).name}
        if directory.is_dir() and {entry.name for entry in directory.iterdir()} - left_at_the_start:
            raise ValueError(f"{directory} holds files but no {PLAN_FILE}; choose another output_dir")
        return
    before = {job["name"]: job["command"] for job in read_plan(directory)}
    now = {job["name"]: job["command"] for job in plan_as_json(study)["jobs"]}
    for job in study.jobs:
        changed = before.get(job.name, now[job.name]) != now[job.name]
        if changed and not job.gathers and is_finished(Path(job.output_dir)):
            raise ValueError(
                f"{directory} has a finished {job.name} of another command; choose another output_dir, or remove "
                f"{job.output_dir}"
            )


def _submit_stage(stage: Stage, cluster: Cluster, submitted: dict[str, Submitted], folder: Path) -> None:
    """Submits a job and, if it may not requeue itself, its successors; records each id immediately."""
    waits = dependency(stage, submitted)
    ids: list[str] = []
    for _ in range(1 if cluster.requeue else cluster.max_attempts):
        after = f"afterany:{ids[-1]}" if ids else waits
        flags = [f"--dependency={after}", "--kill-on-invalid-dep=yes"] if after else []
        ids.append(_number_in(run_slurm("sbatch", "--parsable", *flags, stage.job.script)))
        submitted[stage.job.name] = Submitted(
            name=stage.job.name,
            ids=ids,
            is_array=stage.job.is_array,
            waits=waits,
            tasks=[{"index": task.index, "name": task.name, "directory": task.output_dir} for task in stage.job.tasks],
        )
        records = [asdict(entry) for entry in submitted.values()]
        write_text(folder / JOBS_FILE, json.dumps(records, indent=1) + "\n")


def _number_in(said: str) -> str:
    """Parses the job id from the last line of sbatch's output: ID or ID;CLUSTER."""
    found = re.search(r"(?:^|\n)(\d+)(?:;.*)?$", said.rstrip())
    if found is None:
        raise RuntimeError(f"sbatch --parsable printed {said!r}; expected the number of a job")
    return found[1]


def dependency(stage: Stage, submitted: Mapping[str, Submitted]) -> str:
    """Returns the value of sbatch's --dependency for a stage."""
    parts: dict[str, list[str]] = {}
    for wait in stage.waits:
        identifier = submitted[wait.stage].ids[-1] + ("" if wait.index is None else f"_{wait.index}")
        parts.setdefault(wait.kind, []).append(identifier)
    return ",".join(":".join([kind, *ids]) for kind, ids in parts.items())


def check_with_sbatch(study: Study) -> int:
    """Runs sbatch --test-only for every script, and returns their number."""
    with tempfile.TemporaryDirectory() as folder:
        stages = study.stages(study.jobs, folder)
        write_scripts(study, stages, root=REPOSITORY_ROOT)
        for stage in stages:
            run_slurm("sbatch", "--test-only", stage.job.script)
    return len(stages)
