"""Every shipped configuration is read as its command reads it."""

from pathlib import Path

import pytest
import yaml

from data_builders.build import BuildArguments
from data_builders.pocket import PocketSizes
from eval.run import EvaluationArguments
from models.pocket import PocketArguments, PocketShape
from tracking.command import REPOSITORY_ROOT, parse_arguments
from train.data import DataArguments
from train.freeze import FreezeArguments
from train.grpo import RewardArguments, check_save_steps
from train.necessity import format_plan, plan_study
from train.sft import RunArguments
from train.stage import check_windows
from train.study import NecessityArguments

CONFIGS = sorted((REPOSITORY_ROOT / "configs").rglob("*.yaml"))
GIVEN = ["--output_dir", "unused"]
STUDY_GIVES = [*GIVEN, "--model_name_or_path", "unused", "--prompts", "unused"]


def ids(path: Path) -> str:
    return str(path.relative_to(REPOSITORY_ROOT / "configs"))


@pytest.mark.parametrize("path", CONFIGS, ids=ids)
def test_header_says_purpose_hardware_and_command(path: Path) -> None:
    lines = path.read_text().splitlines()
    for line, word in zip(lines, ("# Purpose:", "# Hardware:", "# Command:"), strict=False):
        assert line.startswith(word), f"{path}: expected {word}"


@pytest.mark.parametrize("path", [path for path in CONFIGS if path.stem.startswith("necessity")], ids=ids)
def test_study_can_be_planned_without_weights_or_network(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY_ROOT)
    (arguments,) = parse_arguments(["--config", str(path)], NecessityArguments, description=None)
    study = plan_study(arguments)
    plan = format_plan(study)
    for arm in study.arms:
        assert f"\n{arm.name}:\n" in plan
    num_runs = len(study.arms) * len(arguments.seeds)
    assert sum(job.kind == "arm" for job in study.jobs) == num_runs
    assert sum(job.kind == "eval" for job in study.jobs) == num_runs + 2


@pytest.mark.parametrize("path", [path for path in CONFIGS if path.stem == "grpo"], ids=ids)
def test_grpo_configuration_builds_its_trainer_arguments(path: Path) -> None:
    from trl import GRPOConfig, ModelConfig

    use_cpu = ["--use_cpu", "true", "--bf16", "false"]
    classes = (GRPOConfig, ModelConfig, DataArguments, FreezeArguments, RewardArguments)
    training, _, _, _, rewards = parse_arguments(
        ["--config", str(path), *STUDY_GIVES, *use_cpu], *classes, description=None
    )
    check_save_steps(training)
    check_windows(training)
    assert len(training.reward_weights) == len(rewards.rewards)


@pytest.mark.parametrize("path", [path for path in CONFIGS if path.stem in ("base", "sft")], ids=ids)
def test_sft_configuration_builds_its_trainer_arguments(path: Path) -> None:
    from trl import ModelConfig, SFTConfig

    classes = (SFTConfig, ModelConfig, DataArguments, FreezeArguments, RunArguments)
    training, *_ = parse_arguments(["--config", str(path), *STUDY_GIVES], *classes, description=None)
    check_windows(training)
    assert training.max_steps > 0


@pytest.mark.parametrize("path", [path for path in CONFIGS if path.stem in ("data", "init", "eval")], ids=ids)
def test_other_configurations_parse(path: Path) -> None:
    classes: dict[str, tuple[type, ...]] = {
        "data": (BuildArguments, PocketSizes),
        "init": (PocketArguments, PocketShape),
        "eval": (EvaluationArguments,),
    }
    extra = ["--model", "unused", "--tasks", "unused:test"] if path.stem == "eval" else []
    parse_arguments(["--config", str(path), *GIVEN, *extra], *classes[path.stem], description=None)


def test_every_configuration_is_covered_by_a_test() -> None:
    covered = {"base", "sft", "grpo", "data", "init", "eval"}
    assert {path.stem for path in CONFIGS if not path.stem.startswith("necessity")} <= covered
    assert all(isinstance(yaml.safe_load(path.read_text()), dict) for path in CONFIGS)
