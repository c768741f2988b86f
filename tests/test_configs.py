"""Every shipped configuration is read as its command reads it."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from analyze.deltas.command import DeltaArguments
from benchmarks.known_answers.command import CalibrationArguments
from benchmarks.known_answers.instruments import INSTRUMENTS
from data_builders.build import TASKS, BuildArguments
from eval.boundary import BoundaryArguments
from eval.run import ARGUMENTS as EVALUATION_ARGUMENTS
from eval.statistics.components import ARMS, START, assumed_variation
from eval.statistics.design import Size, detectable_difference
from merge.recipes.recipe import read_recipe
from models.pocket import PocketArguments, PocketShape
from tracking.command import REPOSITORY_ROOT, parse_arguments
from train import grpo, sft
from train.grpo import check_save_steps
from train.necessity import check_stage_files, format_plan, plan_study
from train.planning.study import NecessityArguments
from train.rewards.functions import RewardArguments, bind_rewards
from train.running.data import DataArguments
from train.running.stage import check_windows

CONFIGS_DIR = REPOSITORY_ROOT / "configs"
CALIBRATION = CONFIGS_DIR / "calibration"
CONFIGS = sorted(CONFIGS_DIR.rglob("*.yaml"))
STUDIES = [path for path in CONFIGS if path.stem.startswith("necessity") or path.stem == "layers"]
ASKED = [path for path in STUDIES if path.stem == "necessity" and path.parent.stem != "calibration"]
"""Studies with a question about arms; the others test the path, or have a known answer."""
RECIPES = [path for path in CONFIGS if path.stem in ("grpo", "grpo_vllm", "gspo")]
PAIR_SETS = [path for path in CONFIGS if path.parent.stem == "pairs" or path.stem == "pairs"]
LAUNCHERS = sorted((CONFIGS_DIR / "accelerate").glob("*.yaml"))
ENGINES = sorted((CONFIGS_DIR / "deepspeed").glob("*.json"))
GIVEN = ["--output_dir", "unused"]
ON_A_CPU = ["--use_cpu", "true", "--bf16", "false"]
"""Without it, settings for GPUs are refused on a machine without one."""
STUDY_GIVES = [*GIVEN, "--model_name_or_path", "unused", "--prompts", "unused"]


def ids(path: Path) -> str:
    return str(path.relative_to(CONFIGS_DIR))


def values_of(path: Path) -> dict[str, Any]:
    values = yaml.safe_load(path.read_text())
    assert isinstance(values, dict)
    return values


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Recipes name further files from the repository's root; an engine file that was read binds no later test."""
    monkeypatch.chdir(REPOSITORY_ROOT)
    yield
    if integration := sys.modules.get("transformers.integrations.deepspeed"):
        integration.unset_hf_deepspeed_config()


@pytest.mark.parametrize("path", CONFIGS, ids=ids)
def test_header_says_purpose_hardware_and_command(path: Path) -> None:
    lines = path.read_text().splitlines()
    for line, word in zip(lines, ("# Purpose:", "# Hardware:", "# Command:"), strict=False):
        assert line.startswith(word), f"{path}: expected {word}"


@pytest.mark.parametrize("path", [*CONFIGS, CONFIGS_DIR / "deepspeed" / "README.md"], ids=ids)
def test_files_that_a_configuration_speaks_of_exist(path: Path) -> None:
    for name in re.findall(r"configs/[\w/.]+\.(?:yaml|json)", path.read_text()):
        assert Path(name).is_file(), name


@pytest.mark.parametrize("path", STUDIES, ids=ids)
def test_study_can_be_planned_without_weights_or_network(path: Path) -> None:
    (arguments,) = parse_arguments(["--config", str(path)], NecessityArguments, description=None)
    check_stage_files(arguments)
    study = plan_study(arguments)
    plan = format_plan(study)
    for arm in study.arms:
        assert f"\n{arm.name}:\n" in plan
    num_runs = len(study.arms) * len(arguments.seeds)
    assert sum(job.kind == "arm" for job in study.jobs) == num_runs
    assert sum(job.kind == "eval" for job in study.jobs) == num_runs + 2


@pytest.mark.parametrize("path", STUDIES, ids=ids)
def test_models_of_a_study_are_asked_as_they_are_trained(path: Path) -> None:
    study = values_of(path)
    trained, asked = (values_of(Path(study[name])) for name in ("grpo_config", "eval_config"))
    for name in ("prompt_style", "system_prompt"):
        assert trained.get(name) == asked.get(name), name


@pytest.mark.parametrize("path", ASKED, ids=ids)
def test_the_header_of_a_study_says_what_its_seeds_find(path: Path) -> None:
    text = " ".join(line.lstrip("# ") for line in path.read_text().splitlines() if line.startswith("#"))
    found = re.search(
        r"Seeds: +(\d+) seeds an arm and ([\d,]+) prompts .*? ([\d.]+) points between two arms and ([\d.]+) against "
        r"\w+(?: start)?, assuming (\d) points? between training runs",
        text,
    )
    assert found, f"{path}: expected what `python -m eval.power` says of the study's seeds"
    num_seeds, num_prompts, seed_sd = int(found[1]), int(found[2].replace(",", "")), int(found[5]) / 100
    assert num_seeds == len(values_of(path)["seeds"])
    for kind, printed in ((ARMS, found[3]), (START, found[4])):
        size = Size(num_prompts=num_prompts, num_seeds=num_seeds, num_seeds_against=num_seeds if kind == ARMS else 0)
        components = assumed_variation(seed_sd=seed_sd, base_rate=0.5).kinds[kind]
        assert printed == f"{100 * detectable_difference(components, size):.1f}"


@pytest.mark.parametrize("path", RECIPES, ids=ids)
def test_recipe_builds_its_trainer_arguments(path: Path) -> None:
    from trl import GRPOConfig, ModelConfig

    given = ["--config", str(path), *STUDY_GIVES, *ON_A_CPU]
    training, _, *parsed = parse_arguments(given, GRPOConfig, ModelConfig, *grpo.OUR_ARGUMENTS, description=None)
    ours = {type(values): values for values in parsed}
    check_save_steps(training)
    check_windows(training)
    bind_rewards(
        ours[RewardArguments],
        weights=training.reward_weights,
        prompt_style=ours[DataArguments].prompt_style,
        max_completion_tokens=training.max_completion_length,
    )


@pytest.mark.parametrize("path", RECIPES, ids=ids)
def test_on_the_hardware_of_its_header_a_step_of_a_recipe_holds_whole_prompts(path: Path) -> None:
    recipe = values_of(path)
    found = re.search(r"^# Hardware: (\d+) GPU", path.read_text(), re.MULTILINE)
    num_gpus = int(found[1]) if found else 1
    per_pass = num_gpus * recipe["per_device_train_batch_size"]
    num_passes = recipe.get("gradient_accumulation_steps", 1)
    assert per_pass * num_passes % recipe["num_generations"] == 0
    assert recipe.get("steps_per_generation", num_passes) % num_passes == 0


@pytest.mark.parametrize("path", [path for path in RECIPES if "use_vllm" in path.read_text()], ids=ids)
def test_vllm_has_room_for_a_prompt_and_a_reply(path: Path) -> None:
    recipe = values_of(path)
    assert recipe["vllm_max_model_length"] >= recipe["max_prompt_tokens"] + recipe["max_completion_length"]


@pytest.mark.parametrize("path", [path for path in CONFIGS if path.stem in ("base", "sft", "sft_arm")], ids=ids)
def test_sft_configuration_builds_its_trainer_arguments(path: Path) -> None:
    from trl import ModelConfig, SFTConfig

    given = ["--config", str(path), *STUDY_GIVES, *ON_A_CPU]
    training, *_ = parse_arguments(given, SFTConfig, ModelConfig, *sft.OUR_ARGUMENTS, description=None)
    check_windows(training)
    assert training.max_steps > 0


@pytest.mark.parametrize(
    "path", [path for path in CONFIGS if path.stem in ("data", "init", "init_vllm", "eval", "boundary")], ids=ids
)
def test_other_configurations_parse(path: Path) -> None:
    task = re.search(r"data_builders\.build (\w+)", path.read_text())
    classes: dict[str, tuple[type, ...]] = {
        "data": (BuildArguments, *(TASKS[task[1]].arguments if task else ())),
        "init": (PocketArguments, PocketShape),
        "init_vllm": (PocketArguments, PocketShape),
        "eval": EVALUATION_ARGUMENTS,
        "boundary": (BoundaryArguments,),
    }
    given = {
        "eval": ["--model", "unused", "--tasks", "unused:test"],
        "boundary": ["--model", "unused", "--data", "unused"],
    }
    extra = given.get(path.stem, [])
    parse_arguments(["--config", str(path), *GIVEN, *extra], *classes[path.stem], description=None)


@pytest.mark.parametrize("path", PAIR_SETS, ids=ids)
def test_pair_sets_parse(path: Path) -> None:
    task = re.search(r"data_builders\.build (\w+)", path.read_text())
    assert task
    parse_arguments(["--config", str(path), *GIVEN], BuildArguments, *TASKS[task[1]].arguments, description=None)


@pytest.mark.parametrize("path", LAUNCHERS, ids=ids)
def test_accelerate_reads_the_launcher_files(path: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    launcher = load_config_from_file(str(path))  # refuses unknown keys
    num_gpus = {"1gpu": 1, "2gpu": 2, "8gpu": 8, "nodes": 8 * launcher.num_machines}[path.stem]
    assert launcher.num_processes == num_gpus
    assert launcher.mixed_precision == "no", "it would switch autocast on behind the recipe's back"


@pytest.mark.parametrize("path", ENGINES, ids=ids)
def test_the_trainer_fills_in_what_an_engine_file_leaves_open(path: Path, pocket_checkpoint: Path) -> None:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from trl import GRPOConfig

    from models.loading import load_model

    model = load_model(pocket_checkpoint, dtype="auto", attn_implementation="sdpa")
    training = GRPOConfig(output_dir="unused", deepspeed=str(path), use_cpu=True, bf16=False, report_to="none")
    engine = training.deepspeed_plugin.hf_ds_config
    engine.trainer_config_finalize(training, model, 10)
    filled = engine.config
    assert "auto" not in json.dumps(filled)
    assert "optimizer" not in filled, "one group for all parameters would let weight decay hit norms and biases"
    zero = DeepSpeedZeroConfig(**filled["zero_optimization"])  # refuses unknown keys
    assert f"zero{zero.stage}" == path.stem.partition("_")[0]
    assert (zero.offload_optimizer is not None) == path.stem.endswith("_offload")
    assert zero.stage < 3 or zero.gather_16bit_weights_on_model_save


@pytest.mark.parametrize("path", [path for path in CONFIGS if path.stem == "deltas"], ids=ids)
def test_delta_configurations_parse(path: Path) -> None:
    (arguments,) = parse_arguments(["--config", str(path)], DeltaArguments, description=None)
    assert arguments.base and arguments.rl


@pytest.mark.parametrize("path", [path for path in CONFIGS if path.stem == "splice"], ids=ids)
def test_splice_recipes_are_read(path: Path) -> None:
    recipe = read_recipe(path)
    assert set(recipe.blocks) == {"early", "mid", "late"}


def test_the_calibration_and_its_instruments_parse() -> None:
    parse_arguments(["--config", str(CALIBRATION / "known_answers.yaml")], CalibrationArguments, description=None)
    instruments = {f"{name}.yaml" for instrument in INSTRUMENTS.values() for name in instrument.configs}
    assert {"known_answers.yaml"} | instruments <= {path.name for path in CALIBRATION.iterdir()}


def _clusters() -> set[str]:
    return {path.stem for path in (CONFIGS_DIR / "slurm").glob("*.yaml")}


def test_every_configuration_is_covered_by_a_test() -> None:
    covered = {
        "base", "sft", "sft_arm", "data", "init", "init_vllm", "eval", "boundary", "deltas", "splice", "known_answers",
    }  # fmt: skip
    of_studies = {
        *("study", "modalities", "abilities", "samples", "swap", "skip", "attention", "tower", "all_deltas"),
        *_clusters(),
    }
    others = set(CONFIGS) - set(STUDIES) - set(RECIPES) - set(LAUNCHERS) - set(PAIR_SETS)
    assert {path.stem for path in others} <= covered | of_studies, (
        "of_studies: tests/slurm/planning/test_study_configs.py"
    )
    assert set(CONFIGS_DIR.rglob("*.json")) - set(ENGINES) == set(CONFIGS_DIR.rglob("config.json"))
    assert all(values_of(path) for path in CONFIGS)
