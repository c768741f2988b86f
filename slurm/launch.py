"""How does a study run on a cluster? Renders every job as a script and submits it with its dependencies.

    python -m slurm.launch --config configs/openmmreasoner_7b/study.yaml --dry-run    the plan: jobs, GPUs, GPU-hours
    python -m slurm.launch --config … --test-only                                     would this cluster take the jobs?
    python -m slurm.launch --config …                                                 submit
    python -m slurm.launch --config configs/pocket/study.yaml --local                 the same study without Slurm

Then `python -m slurm.status DIR` and `python -m slurm.cancel DIR`. The same command again submits unfinished jobs. Each
launch has its own folder within the study's:

    slurm/1/scripts/   the submitted scripts     slurm/1/configs/, code.json   settings and code version
    slurm/1/logs/      one per job and attempt   slurm/1/jobs.json             Slurm's job ids
    plan.json          every job of the study and its command
"""

import os
from dataclasses import dataclass, field, replace
from pathlib import Path

from slurm.planning.planned import Study, format_plan, read_study, write_plan
from slurm.planning.settings import read_settings
from slurm.planning.study import StudyArguments
from slurm.submitting.queueing import read_launch
from slurm.submitting.submit import check_with_sbatch, sole_launch, submit
from tracking.command import REPOSITORY_ROOT, parse_arguments, run_command
from tracking.jobs.schedule import Schedule


def run_local(study: Study) -> None:
    """Runs the study on this machine.

    Raises:
        RuntimeError: if jobs failed; all jobs that do not depend on them were run.
    """
    with sole_launch(study):
        write_plan(study)
        Schedule(
            [job.local() for job in study.jobs],
            num_parallel=study.arguments.num_parallel or len(os.sched_getaffinity(0)),
            log_dir=study.directory / "logs",
            expected_s={**study.necessity["expected_s"], **study.arguments.expected()},
            keep_going=True,
            warm_start=study.arguments.warm_start,
        ).run()


@dataclass(frozen=True, kw_only=True)
class LaunchArguments:
    """The study to launch, and how; by default it is submitted to Slurm."""

    config: str = field(metadata={"help": "YAML of the study, such as configs/pocket/study.yaml"})
    cluster: str | None = field(
        default=None, metadata={"help": "YAML of the cluster; replaces the study's own setting"}
    )
    output_dir: str | None = field(
        default=None, metadata={"help": "folder of the study; replaces the study's own setting"}
    )
    dry_run: bool = field(default=False, metadata={"help": "print jobs, GPUs and GPU-hours, and submit nothing"})
    test_only: bool = field(
        default=False, metadata={"help": "ask sbatch whether it would accept the jobs, and submit nothing"}
    )
    local: bool = field(default=False, metadata={"help": "run on this machine, without Slurm"})

    def __post_init__(self) -> None:
        if self.dry_run + self.test_only + self.local > 1:
            raise ValueError("--dry-run, --test-only and --local exclude each other; expected one of them at most")


def main(argv: list[str] | None = None) -> None:
    (flags,) = parse_arguments(argv, LaunchArguments, description=__doc__)
    if not Path.cwd().samefile(REPOSITORY_ROOT):
        raise ValueError(f"started in {Path.cwd()}; relative paths and jobs begin in {REPOSITORY_ROOT}: cd there first")
    arguments = read_settings(StudyArguments, Path(flags.config))
    given = {name: getattr(flags, name) for name in ("cluster", "output_dir") if getattr(flags, name) is not None}
    study = read_study(replace(arguments, **given))
    if flags.dry_run:
        print(format_plan(study))
    elif flags.test_only:
        print(f"sbatch would take all {check_with_sbatch(study)} jobs")
    elif flags.local:
        run_local(study)
        print(f"report: {study.page}")
    else:
        folder = submit(study)
        jobs = read_launch(folder)
        print(f"{len(jobs)} jobs submitted, see {folder}\npython -m slurm.status {study.directory}")


if __name__ == "__main__":
    run_command(main)
