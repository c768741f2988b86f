"""What will be submitted, on which GPUs, at what cost? Reads, plans and prints a study, without weights."""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from slurm.planning.calibration import NO_TRAINING, plan_calibration, read_calibration
from slurm.planning.cluster import Cluster
from slurm.planning.hours import Costs, TrainingPlan, read_training_plan
from slurm.planning.plan import plan_study
from slurm.planning.rehearse import check_settings
from slurm.planning.settings import read_settings
from slurm.planning.stages import Stage, make_stages
from slurm.planning.study import StudyArguments, StudyJob, read_necessity
from tracking.product import write_text
from tracking.tables import format_columns

PLAN_FILE = "plan.json"


@dataclass(frozen=True, kw_only=True)
class Study:
    """A planned study."""

    arguments: StudyArguments
    cluster: Cluster
    necessity: dict[str, Any]
    """What train.necessity plans; of a calibration, what benchmarks.known_answers plans."""
    training: TrainingPlan
    jobs: list[StudyJob]

    @property
    def directory(self) -> Path:
        return Path(self.arguments.output_dir)

    @property
    def page(self) -> Path:
        """The page that answers its question."""
        if self.arguments.calibration is not None:
            return self.directory / "calibration" / "calibration.html"
        return self.directory / ("modalities/modalities.html" if self.arguments.by else "report.html")

    def stages(self, jobs: Sequence[StudyJob], folder: str) -> list[Stage]:
        """Returns the submissions of some of the jobs."""
        return make_stages(
            jobs,
            self.arguments,
            self.cluster,
            folder=folder,
            arm_gpus=self.training.num_gpus,
            start=self.necessity["checkpoints"]["sft"],
        )


def read_study(arguments: StudyArguments) -> Study:
    """Plans a study; reads configurations but no weights.

    Raises:
        ValueError: if one of its configurations is invalid.
    """
    cluster = read_settings(Cluster, Path(arguments.cluster))
    if arguments.calibration is not None:
        plan = read_calibration(arguments)
        jobs = plan_calibration(arguments, plan)
        return Study(arguments=arguments, cluster=cluster, necessity=plan, training=NO_TRAINING, jobs=jobs)
    with ThreadPoolExecutor() as pool:
        training = pool.submit(read_training_plan, arguments)
        necessity = read_necessity(arguments)
        jobs = plan_study(arguments, necessity)
        check_settings(jobs)
    return Study(arguments=arguments, cluster=cluster, necessity=necessity, training=training.result(), jobs=jobs)


def plan_as_json(study: Study) -> dict[str, Any]:
    """Returns all jobs as JSON values."""
    jobs = [
        {
            "name": job.name,
            "kind": job.kind,
            "stage": job.stage,
            "index": job.index,
            "command": list(job.command),
            "output_dir": job.output_dir,
            "needs": list(job.needs),
            "after": list(job.after),
        }
        for job in study.jobs
    ]
    return {"study": asdict(study.arguments), "runs": study.necessity["runs"], "jobs": jobs}


def write_plan(study: Study) -> None:
    """Writes `plan.json` with every job of a study."""
    write_text(study.directory / PLAN_FILE, json.dumps(plan_as_json(study), indent=1) + "\n")


def read_plan(directory: Path) -> list[dict[str, Any]]:
    """Reads the jobs in a study folder's `plan.json`.

    Raises:
        ValueError: if it is missing or damaged.
    """
    path = directory / PLAN_FILE
    if not path.is_file():
        raise ValueError(f"{path} does not exist; expected the output_dir of slurm.launch")
    try:
        jobs: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["jobs"]
        if all({"name", "stage", "index", "command", "output_dir"} <= job.keys() for job in jobs):
            return jobs
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise ValueError(f"{path} is damaged; restore it, or choose another output_dir")


def format_plan(study: Study) -> str:
    """Formats the plan: submissions with resources, time limits and dependencies."""
    costs = Costs(study.arguments, study.necessity, study.training)
    with_gpus = study.cluster.gpus_per_node > 0
    rows = [("job", "tasks", "shape", "nodes x GPUs", "limit", "GPU-hours" if with_gpus else "expected", "after")]
    total, unknown, too_long = 0.0, [], []
    for stage in study.stages(study.jobs, str(study.directory / "slurm" / "1")):
        job = stage.job
        limit = study.cluster.limit(job.kind)
        if with_gpus:
            hours = [costs.gpu_hours(each) for each in stage.jobs] if job.gpus else []
            known = [value for value in hours if value is not None]
            if len(known) < len(hours):
                unknown.append(f"{len(hours) - len(known)} of {len(hours)} tasks of {job.name}" if known else job.name)
            total += sum(known)
            cost = "–" if not hours else "?" if len(known) < len(hours) else f"{sum(known):,.1f}"
            task_h = max(known, default=0.0) / (job.nodes * max(1, job.gpus))
            if task_h * 3600 > study.cluster.longest_s(job.kind):
                attempts = study.cluster.max_attempts
                too_long.append(f"{job.name}: up to {task_h:,.0f} h a task, {attempts} attempts of {limit} are less")
        else:
            seconds = {**study.necessity["expected_s"], **study.arguments.expected()}
            each_s = seconds.get(job.kind)
            total += (each_s or 0) * len(job.tasks)
            cost = "?" if each_s is None else f"{each_s * len(job.tasks):,.0f} s"
        gpus = job.gpus + job.server_gpus
        size = f"{job.nodes} x {gpus}" if gpus else f"{job.nodes} x –"
        rows.append((job.name, str(len(job.tasks)), job.shape, size, limit, cost, _describe_waits(stage)))
    lines = [
        f"study: {study.directory}, {len(study.jobs)} jobs in {len(rows) - 1} submissions",
        f"cluster: {study.arguments.cluster}",
        "",
        *format_columns(rows, right=(1, 3, 4, 5)),
        "",
    ]
    if with_gpus:
        configured = study.arguments.training_tokens_per_s
        speed = costs.training_tokens_per_s
        tokens = f"{f'{speed:,.6g}' if speed else '?'} tokens/s a GPU in training"
        if not configured and speed:
            tokens += f" (assumed, not measured: {costs.training_source}; training_tokens_per_s sets it)"
        lines.append(
            f"GPU-hours: at most {total:,.0f}, every reply at its full length, with {tokens} and "
            f"{study.arguments.reply_tokens_per_s or '?'} in evaluations (both as configured, measure yours)"
        )
        if unknown:
            lines.append(f"not in it: {', '.join(unknown)} (steps, a speed or the number of prompts is unknown)")
        if too_long:
            lines += ["longer than the cluster's settings allow (time, max_attempts):", *(f"  {it}" for it in too_long)]
    else:
        lines.append(f"expected: {total / 60:,.0f} minutes of work, side by side as the machines allow")
    return "\n".join(lines)


def _describe_waits(stage: Stage) -> str:
    waits: dict[str, list[str]] = {}
    for wait in stage.waits:
        waits.setdefault(wait.kind, []).append(wait.stage + ("" if wait.index is None else f"[{wait.index}]"))
    texts = [f"{kind}: {' '.join(names) if len(names) < 6 else f'all {len(names)}'}" for kind, names in waits.items()]
    return "; ".join(texts) or "–"
