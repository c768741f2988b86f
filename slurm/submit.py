"""How are scripts handed to Slurm? One sbatch a stage, each with what it waits for; what was submitted is written down.

Launched again, a study submits what is not finished, and waits for nothing that is.
"""

import json
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from slurm.cluster import Cluster
from slurm.planned import Study, plan_as_json
from slurm.queueing import Submitted, latest_launch, queue_states, read_launch, run_slurm
from slurm.render import render
from slurm.stages import Stage
from slurm.study import StudyJob
from tracking.command import REPOSITORY_ROOT
from tracking.product import write_text
from tracking.run import git_state, is_finished
from tracking.schedule import settled

PLAN_FILE = "plan.json"


def write_launch(study: Study, folder: Path, stages: Sequence[Stage]) -> None:
    """Writes the scripts, and copies of what they were made from."""
    for name in ("scripts", "logs", "attempts", "ended", "configs"):
        (folder / name).mkdir(parents=True)
    write_scripts(study, stages, root=REPOSITORY_ROOT)
    for path in map(Path, [*study.arguments.config_files(), *study.necessity["configs"]]):
        copy = folder / "configs" / ("__".join(path.parts[-3:]) if path.is_absolute() else "__".join(path.parts))
        shutil.copyfile(path, copy)
    write_text(folder / "study.json", json.dumps(asdict(study.arguments), indent=1) + "\n")
    write_text(folder / "code.json", json.dumps(git_state(), indent=1) + "\n")
    changes = subprocess.run(
        ["git", "-C", str(REPOSITORY_ROOT), "diff", "HEAD"], capture_output=True, text=True, check=False
    )
    if changes.stdout:
        write_text(folder / "uncommitted.patch", changes.stdout)


def write_scripts(study: Study, stages: Sequence[Stage], *, root: Path) -> None:
    """Writes the scripts of these stages where they belong."""
    for stage in stages:
        write_text(Path(stage.job.script), render(stage.job, study.cluster, root=root))


def submit(study: Study) -> Path:
    """Submits all that is not finished and returns the launch's folder.

    Raises:
        ValueError: where an earlier launch is still in the queue, or the folder holds another study.
        RuntimeError: where sbatch refuses a job; those submitted before it are taken back.
    """
    check_folder(study)
    jobs = unfinished(study.jobs)
    earlier = latest_launch(study.directory)
    number = 1 if earlier is None else int(earlier.name) + 1
    if earlier is not None:
        waiting = queue_states([identifier for job in read_launch(earlier) for identifier in job.ids])
        if waiting:
            raise ValueError(
                f"{len(waiting)} jobs of {earlier} are still in the queue; wait for them, or: python -m slurm.cancel "
                f"{study.directory}"
            )
    folder = study.directory / "slurm" / str(number)
    stages = study.stages(jobs, str(folder))
    write_launch(study, folder, stages)
    write_text(study.directory / PLAN_FILE, json.dumps(plan_as_json(study), indent=1) + "\n")
    submitted: dict[str, Submitted] = {}
    try:
        for stage in stages:
            submitted[stage.job.name] = _submit_stage(stage, study.cluster, submitted)
            records = [asdict(entry) for entry in submitted.values()]
            write_text(folder / "jobs.json", json.dumps(records, indent=1) + "\n")
    except BaseException:
        ids = [identifier for entry in submitted.values() for identifier in entry.ids]
        if ids:
            run_slurm("scancel", *ids)
        raise
    return folder


def unfinished(jobs: Sequence[StudyJob]) -> list[StudyJob]:
    """Returns the jobs of every stage in which something is left to do, without waiting for what is done.

    A stage is submitted whole, since its tasks wait for tasks of the same number; a finished one ends in seconds.
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
    """Refuses a folder that holds something else, or the jobs of another study."""
    path = study.directory / PLAN_FILE
    if not path.is_file():
        if study.directory.is_dir() and any(study.directory.iterdir()):
            raise ValueError(f"{study.directory} holds files but no {PLAN_FILE}; choose another output_dir")
        return
    before = {job["name"]: job["command"] for job in json.loads(path.read_text(encoding="utf-8"))["jobs"]}
    now = {job["name"]: job["command"] for job in plan_as_json(study)["jobs"]}
    for name in before.keys() & now.keys():
        if before[name] != now[name] and is_finished(Path({job.name: job for job in study.jobs}[name].output_dir)):
            raise ValueError(
                f"{study.directory} has a finished {name} of another command; choose another output_dir, or remove "
                f"{ {job.name: job for job in study.jobs}[name].output_dir }"
            )


def _submit_stage(stage: Stage, cluster: Cluster, submitted: Mapping[str, Submitted]) -> Submitted:
    """Submits a job, and where it may not requeue itself its successors."""
    waits = dependency(stage, submitted)
    ids: list[str] = []
    for _ in range(1 if cluster.requeue else cluster.max_attempts):
        after = f"afterany:{ids[-1]}" if ids else waits
        flags = [f"--dependency={after}", "--kill-on-invalid-dep=yes"] if after else []
        said = run_slurm("sbatch", "--parsable", *flags, stage.job.script)
        ids.append(said.strip().partition(";")[0])
    return Submitted(
        name=stage.job.name,
        ids=ids,
        is_array=stage.job.is_array,
        waits=waits,
        tasks=[{"index": task.index, "name": task.name, "directory": task.directory} for task in stage.job.tasks],
    )


def dependency(stage: Stage, submitted: Mapping[str, Submitted]) -> str:
    """Returns what sbatch's --dependency says of a stage."""
    parts: dict[str, list[str]] = {}
    for wait in stage.waits:
        identifier = submitted[wait.stage].ids[-1] + ("" if wait.index is None else f"_{wait.index}")
        parts.setdefault(wait.kind, []).append(identifier)
    return ",".join(":".join([kind, *ids]) for kind, ids in parts.items())


def check_with_sbatch(study: Study) -> int:
    """Asks sbatch whether it would take every script, and returns how many there are."""
    with tempfile.TemporaryDirectory() as folder:
        stages = study.stages(study.jobs, folder)
        write_scripts(study, stages, root=REPOSITORY_ROOT)
        for stage in stages:
            run_slurm("sbatch", "--test-only", stage.job.script)
    return len(stages)
