"""Which jobs does the positive control consist of? The starts, a necessity study for each block, and A against A."""

from collections.abc import Sequence
from typing import Any

from benchmarks.known_answers.jobs import OUTPUT, planned_job
from benchmarks.necessary_block.studies import SEEDS, Workplace, start_configs, study_configs, study_words

STARTS, CONTROL = "starts", "control"
"""Kinds of job: the starts, and a study."""


def plan_as_json(command: str, work: Workplace, blocks: Sequence[str]) -> dict[str, Any]:
    """Returns every job with its command line, and the configurations that the jobs read.

    Args:
        command: the module that builds the starts.
        work: the folder of the positive control.
        blocks: those that are made necessary.
    """
    words = (command, "--build_only", "true", "--seed", str(work.seed), OUTPUT, str(work.directory))
    jobs = [planned_job(STARTS, STARTS, work.start, *words)]
    for block in [*blocks, SEEDS]:
        name, study = f"{CONTROL}-{block}", study_words(work, block)
        place = work.study(block)
        jobs.append(planned_job(name, CONTROL, place, "train.necessity", *study, stage=CONTROL, needs=[STARTS]))
    return {"jobs": jobs, "configs": [str(path) for path in [*start_configs(), *study_configs(blocks)]]}
