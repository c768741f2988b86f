"""Which jobs does a calibration consist of? Read from `python -m benchmarks.known_answers --plan_json true`.

A calibration has no arms or models of its own, so it needs nothing else from a study's settings. Its last job joins the
answers of the instruments that finished, through `slurm.gather`.
"""

import json
from collections import Counter
from typing import Any

from slurm.planning.hours import TrainingPlan
from slurm.planning.study import StudyArguments, StudyJob, run_module

CONTROLLED = "necessity"
"""The instrument that judges the positive control."""
AS_JSON = ("--plan_json", "true")
NO_TRAINING = TrainingPlan(num_gpus=0, tokens={})


def read_calibration(arguments: StudyArguments) -> dict[str, Any]:
    """Gets the plan of a calibration, and that of its positive control, from separate processes."""
    assert arguments.calibration is not None
    command = ("benchmarks.known_answers", "--config", arguments.calibration, "--output_dir", arguments.output_dir)
    plan: dict[str, Any] = json.loads(run_module(*command, *AS_JSON))
    nothing: dict[str, Any] = {"runs": [], "checkpoints": {"sft": ""}, "prompts": "", "num_layers": 0, "expected_s": {}}
    if plan["control"] is None:
        return nothing | plan
    control = json.loads(run_module(*plan["control"], *AS_JSON))
    studies = [job["name"] for job in control["jobs"] if job["needs"]]
    asked = [{**job, "needs": studies} if job["name"] == CONTROLLED else job for job in plan["jobs"]]
    jobs = [*control["jobs"], *asked]  # first what takes longest
    configs = dict.fromkeys([*plan["configs"], *control["configs"]])
    return {**nothing, **plan, "jobs": jobs, "configs": list(configs)}


def plan_calibration(arguments: StudyArguments, plan: dict[str, Any]) -> list[StudyJob]:
    """Returns all jobs of a calibration in dependency order."""
    jobs = []
    numbers: Counter[str] = Counter()
    for job in plan["jobs"]:
        command = tuple(job["argv"])
        if job["after"]:
            command = ("slurm.gather", "--study", arguments.output_dir, "--name", job["name"], *command)
        jobs.append(
            StudyJob(
                name=job["name"],
                kind=job["kind"],
                stage=job["stage"],
                index=numbers[job["stage"]],
                command=command,
                output_dir=job["output_dir"],
                needs=tuple(job["needs"]),
                after=tuple(job["after"]),
            )
        )
        numbers[job["stage"]] += 1
    return jobs
