"""A calibration as a study: its jobs, what they wait for, and what is refused."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.known_answers.command import main as known_answers
from benchmarks.known_answers.instruments import INSTRUMENTS
from benchmarks.necessary_block.command import main as necessary_block
from slurm.planning import planned
from slurm.planning.calibration import plan_calibration
from slurm.planning.planned import format_plan, read_study
from slurm.planning.settings import read_settings
from slurm.planning.stages import Stage
from slurm.planning.study import StudyArguments
from tracking.command import REPOSITORY_ROOT

CONFIG = Path("configs/calibration/study.yaml")


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY_ROOT)


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> planned.Study:
    """The shipped study; its plan is read in this process."""

    def run_here(*command: str) -> str:
        mains = {"benchmarks.known_answers": known_answers, "benchmarks.necessary_block": necessary_block}
        mains[command[0]](list(command[1:]))
        return capsys.readouterr().out

    monkeypatch.setattr("slurm.planning.calibration.run_module", run_here)
    return read_study(read_settings(StudyArguments, CONFIG))


def waits(stage: Stage) -> set[str]:
    return {f"{wait.kind}:{wait.stage}" for wait in stage.waits}


def test_there_is_a_job_per_instrument_a_study_per_block_and_one_page(study: planned.Study) -> None:
    stages = {stage.job.name: stage for stage in study.stages(study.jobs, "f")}
    assert list(stages) == ["starts", "control", "instruments", "necessity", "calibration"]
    instruments = [task.name for task in stages["instruments"].job.tasks]
    assert [*instruments, "necessity"] == list(INSTRUMENTS)
    studies = [task.name.removeprefix("control-") for task in stages["control"].job.tasks]
    assert studies == ["early", "mid", "late", "seeds"]
    assert [task.index for task in stages["control"].job.tasks] == [0, 1, 2, 3]
    assert waits(stages["instruments"]) == waits(stages["starts"]) == set()
    assert waits(stages["control"]) == {"afterok:starts"}
    assert waits(stages["necessity"]) == {"afterok:control"}
    assert waits(stages["calibration"]) == {"afterany:instruments", "afterany:necessity"}
    assert {stage.job.shape for stage in stages.values()} == {"cpu"}


def test_every_job_writes_where_the_next_one_reads(study: planned.Study) -> None:
    jobs = {job.name: job for job in study.jobs}
    out = study.arguments.output_dir
    for name in INSTRUMENTS:
        assert jobs[name].output_dir == f"{out}/{name}" and "--judged" in jobs[name].command
        assert f"{name}={out}/{name}" in jobs["calibration"].words_after("--joined")
    # The positive control of the instrument `necessity` runs in this folder, and finds the studies finished.
    control = Path(jobs["necessity"].output_dir) / "necessity"
    assert jobs["starts"].words_after("--output_dir") == [str(control)]
    for block in ("early", "mid", "late"):
        assert jobs[f"control-{block}"].output_dir == str(control / block)
        assert jobs[f"control-{block}"].words_after("--sft_checkpoint") == [str(control / "start" / block / "sft")]
    assert jobs["calibration"].command[0] == "slurm.gather"
    assert study.page == Path(out) / "calibration" / "calibration.html"


def test_the_plan_is_printed(study: planned.Study) -> None:
    lines = {line.split()[0]: line for line in format_plan(study).splitlines() if line}
    assert "outputs/calibration_study, 12 jobs in 5 submissions" in lines["study:"]
    assert "2,000 s" in lines["control"] and "afterany: instruments necessity" in lines["calibration"]


def test_with_some_instruments_only_their_jobs_are_planned(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--instruments", "splices", "skip", "--num-prompts", "7", "--output-dir", "o", "--plan-json", "true"]
    known_answers(words)
    plan = json.loads(capsys.readouterr().out)
    jobs = plan_calibration(read_settings(StudyArguments, CONFIG), plan)
    assert [job.name for job in jobs] == ["skip", "splices", "calibration"]
    assert all(job.words_after("--num_prompts") == ["7"] for job in jobs[:2])
    assert plan["configs"] == ["configs/calibration/skip.yaml", "configs/calibration/eval.yaml"]


@pytest.mark.slow
def test_the_shipped_calibration_is_planned_as_a_user_plans_it(warm_python: Path) -> None:
    words = ["-m", "slurm.launch", "--config", str(CONFIG), "--dry-run"]
    told = subprocess.run([warm_python, *words], capture_output=True, text=True, check=True).stdout
    assert "12 jobs in 5 submissions" in told and "afterok: starts" in told


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"necessity": "configs/pocket/necessity.yaml"}, "expected necessity, .* or calibration, .*; found both"),
        ({"calibration": None}, "expected necessity, .* or calibration, .*; found none"),
        ({"swap": "configs/pocket/swap.yaml"}, "swap is given with calibration, which has its own models"),
        ({"arm_nodes": 2}, "arm_nodes is given with calibration"),
        ({"calibration": "configs/nothing.yaml"}, "configs/nothing.yaml does not exist"),
    ],
)
def test_what_is_no_calibration_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(read_settings(StudyArguments, CONFIG), **changes)
