"""Which jobs does a calibration consist of, if it runs as a study? One per instrument, and one that joins the answers.

    OUTPUT/swap, skip, …             one calibration per instrument, which does not fail on a wrong verdict
    OUTPUT/necessity/necessity       the positive control; `benchmarks.necessary_block` plans its jobs
    OUTPUT/calibration               all answers on one page; fails if a verdict is wrong or answers are missing

`slurm.launch --config configs/calibration/study.yaml` reads these jobs with `--plan_json true`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.known_answers import necessity
from benchmarks.known_answers.instruments import INSTRUMENTS

COMMAND = "benchmarks.known_answers"
JOINED = "calibration"
"""Name of the joining job and of its folder."""
INSTRUMENT = "instrument"
"""Kind of the jobs that ask one instrument."""
OUTPUT = "--output_dir"


def plan_as_json(output_dir: Path, instruments: Sequence[str], sizes: Mapping[str, int]) -> dict[str, Any]:
    """Returns every job with its command line, and the configurations that the jobs read.

    Jobs of the same stage can be submitted together. `control` is the command that prints the jobs of the positive
    control with `--plan_json true`; the job `necessity` needs them. It is None without that instrument.

    Args:
        output_dir: folder of the study.
        instruments: those that are asked.
        sizes: arguments of the calibration: `num_pairs`, `num_prompts`, `seed`.
    """
    size = [word for key, value in sizes.items() for word in (f"--{key}", str(value))]
    jobs = []
    for name in instruments:
        words = (COMMAND, "--instruments", name, *size, "--judged", "false")
        stage = name if name == necessity.NAME else "instruments"
        jobs.append(planned_job(name, INSTRUMENT, output_dir / name, *words, stage=stage))
    folders = [f"{name}={output_dir / name}" for name in instruments]
    words = (COMMAND, "--instruments", *instruments, "--joined", *folders)
    jobs.append(planned_job(JOINED, JOINED, output_dir / JOINED, *words, after=instruments))
    place = output_dir / necessity.NAME / necessity.NAME
    control = [necessity.COMMAND, "--seed", str(sizes["seed"]), OUTPUT, str(place)]
    configs = [f"configs/calibration/{name}.yaml" for each in instruments for name in INSTRUMENTS[each].configs]
    return {"jobs": jobs, "configs": configs, "control": control if necessity.NAME in instruments else None}


def planned_job(
    name: str,
    kind: str,
    place: Path,
    *words: str,
    stage: str | None = None,
    needs: Sequence[str] = (),
    after: Sequence[str] = (),
) -> dict[str, Any]:
    """Returns a job as JSON values; its output directory is added to the words unless they have one."""
    argv = [*words, *([] if OUTPUT in words else [OUTPUT, str(place)])]
    waits = {"needs": list(needs), "after": list(after)}
    return {"name": name, "kind": kind, "stage": stage or name, "argv": argv, "output_dir": str(place), **waits}
