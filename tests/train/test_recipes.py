"""Every recipe takes real steps, with the pocket model in the place of its checkpoint."""

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from PIL import Image

from data_builders.prompt_sets.prompts import Prompt, write_prompts
from eval.replies.prompting import STYLES
from tracking.command import REPOSITORY_ROOT
from train.freezing.freeze import FreezeArguments, apply_freeze, plan_freeze
from train.grpo import main
from train.sft import main as teach

RECIPES = sorted(
    path
    for path in (REPOSITORY_ROOT / "configs").rglob("*.yaml")
    if path.stem in ("grpo", "gspo") and path.parent.name not in ("pocket", "necessity")
)
"""Without those that train the pocket model itself, which other tests run as they are."""
NUM_STEPS = 2
"""The first step of a warm-up has a learning rate of zero."""
PLACES: dict[str, Any] = {"use_cpu": True, "bf16": False, "report_to": "none", "save_strategy": "no"}
MACHINE: dict[str, Any] = {
    **PLACES, "dtype": "float32", "deepspeed": "{}", "use_vllm": False, "max_completion_length": 12,
    "max_steps": NUM_STEPS, "logging_steps": 1, "seed": 3,
}  # fmt: skip
"""What this machine forces: no GPU, no engine, little time."""


def flags(values: dict[str, Any]) -> list[str]:
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


@pytest.fixture(scope="module")
def coin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions with two answers, half of them with a picture: both are taught, in every style, and one is rewarded."""
    directory = tmp_path_factory.mktemp("coin")
    Image.new("RGB", (56, 56), (130, 90, 50)).save(directory / "both.png")
    common: dict[str, Any] = {"ability": "vision", "answer": "red", "answer_kind": "text"}
    asked = {"image": "What colour is it ?", "text": "Red or green ?"}
    images = {"image": ("both.png",), "text": ()}
    taught = [
        Prompt(
            id=f"{style}-{name}-{reply}", question=frame.format(question=question), images=images[name],
            response=f"<think>{reply}</think><answer>{reply}</answer>", **common,
        )
        for style, frame in STYLES.items() for name, question in asked.items() for reply in ("red", "green")
    ]  # fmt: skip
    rewarded = [
        Prompt(id=f"{name}-{number}", question=question, images=images[name], **common)
        for number in range(4)
        for name, question in asked.items()
    ]
    write_prompts(directory, "sft", taught)
    for split in ("rl", "validation"):
        write_prompts(directory, split, rewarded)
    return directory


@pytest.fixture(scope="module")
def undecided_checkpoint(warm_checkpoint: Path, coin: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The warm checkpoint, taught both answers: about every second of its replies is right."""
    directory = tmp_path_factory.mktemp("undecided") / "run"
    values = {
        **PLACES, "model_name_or_path": warm_checkpoint, "prompts": coin, "split": "sft", "output_dir": directory,
        "max_steps": 15, "per_device_train_batch_size": 12, "learning_rate": 2e-3, "lr_scheduler_type": "constant",
        "gradient_checkpointing": False,
    }  # fmt: skip
    teach(flags(values))
    return directory / "final"


def small_batches(recipe: dict[str, Any]) -> dict[str, int]:
    """One prompt a pass and two passes a step; as many steps a batch of generations as the recipe has."""
    passes = recipe["gradient_accumulation_steps"]
    sizes = {"per_device_train_batch_size": recipe["num_generations"], "gradient_accumulation_steps": 2}
    if "steps_per_generation" in recipe:
        sizes["steps_per_generation"] = 2 * recipe["steps_per_generation"] // passes
    return sizes


def test_trl_sends_frozen_parameters_to_vllm_too(pocket_checkpoint: Path) -> None:
    """After a sleep of level 2 vLLM has no weights but those it is sent (private names of TRL 1.16)."""
    from accelerate import Accelerator
    from trl.distributed import DistributedBackend
    from trl.generation.vllm_generation import VLLMGeneration

    from models.layout import layout_of
    from models.loading import load_model

    layout = layout_of(pocket_checkpoint)
    model = load_model(pocket_checkpoint, dtype="auto", attn_implementation="sdpa")
    apply_freeze(model, plan_freeze(layout, FreezeArguments(freeze=["llm", "vision", "embed"])))
    rollouts = object.__new__(VLLMGeneration)  # its own constructor starts vLLM
    rollouts.model, rollouts._dist = model, DistributedBackend(Accelerator(cpu=True))
    sent = {name: tuple(parameter.shape) for name, parameter in rollouts._iter_named_params()}
    assert sent == {parameter.name: parameter.shape for parameter in layout}


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_recipe_takes_steps_and_freezes_with_the_pocket_model(
    path: Path, undecided_checkpoint: Path, coin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY_ROOT)
    changes = {
        **MACHINE,
        **small_batches(yaml.safe_load(path.read_text())),
        "model_name_or_path": undecided_checkpoint,
        "prompts": coin,
        "output_dir": tmp_path / "run",
        "freeze": "mid",
        "eval_steps": NUM_STEPS,
        "per_device_eval_batch_size": 4,
    }
    main(["--config", str(path), *flags(changes)])
    metrics = pd.read_csv(tmp_path / "run" / "metrics.csv")
    assert len(metrics) == NUM_STEPS
    assert 0 <= metrics["eval_vision_rewards/accuracy/mean"].iloc[-1] <= 1
    assert (metrics["reward_std"] > 0).any() and metrics["unscored_frac"].iloc[0] == 0
    assert (metrics["grad_norm"] > 0).any() and metrics["loss"].map(math.isfinite).all()
    report = json.loads((tmp_path / "run" / "freeze_report.json").read_text())
    changed = {block["block"]: block["changed_frac"] for block in report["blocks"]}
    assert changed["mid"] == 0 and changed["early"] > 0 and changed["late"] > 0
