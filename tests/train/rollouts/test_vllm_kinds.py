"""GRPO with a real vLLM on every family, in bfloat16, with adapters, and with a validation between two steps."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from data_builders.prompt_sets.prompts import Prompt, read_prompts, write_prompts
from tests.train.rollouts.vllm_runs import environment, flags, record, train  # noqa: F401

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def many_pictures(pocket_prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompts with no, one and two pictures, of several sizes, one of them shown twice."""
    source = read_prompts(pocket_prompts, "rl")
    seeing = [prompt for prompt in source if prompt.images][:8]
    blind = [prompt for prompt in source if not prompt.images][:4]
    prompts = [*blind, *seeing]
    for number, (one, other) in enumerate(zip(seeing, [*seeing[1:], seeing[0]], strict=True)):
        images = (*one.images, *(one.images if number == 0 else other.images))
        prompts.append(Prompt(id=f"two{number}", ability="vision", question=one.question, answer=one.answer,
                              answer_kind=one.answer_kind, images=images))  # fmt: skip
    directory = tmp_path_factory.mktemp("many")
    (directory / "images").symlink_to(pocket_prompts / "images")
    write_prompts(directory, "rl", prompts)
    return directory


def test_in_bfloat16_the_gap_is_what_rounding_explains_with_pictures_as_without(
    trained_pocket: Path, pocket_prompts: Path, tmp_path: Path
) -> None:
    train(*flags(trained_pocket, pocket_prompts, tmp_path / "run", rollout_dtype="bfloat16", max_steps=4))
    gap = record(tmp_path / "run")["gap"]
    for kind in ("text", "images"):
        assert 1e-5 < gap[kind]["mean"] < 3 * gap[kind]["rounding"] + 1e-3
    assert record(tmp_path / "run")["engine_dtype"] == "bfloat16"


@pytest.mark.parametrize("family", ["qwen2", "qwen2_vl", "qwen3_vl", "internvl"])
def test_every_family_trains_on_what_its_engine_saw(
    family: str, family_checkpoint_vllm: Callable[[str], Path], many_pictures: Path, tmp_path: Path
) -> None:
    """Random models give the tokens of pictures, which vLLM may not sample, a share: hence a bound of our own."""
    changes = {"abilities": "reasoning", "per_device_train_batch_size": 16} if family == "qwen2" else {}
    train(*flags(family_checkpoint_vllm(family), many_pictures, tmp_path / "run", rollout_max_gap=0.05, **changes))
    gap = record(tmp_path / "run")["gap"]
    assert set(gap) == ({"text"} if family == "qwen2" else {"text", "images"})


def test_adapters_are_merged_for_the_engine(trained_pocket: Path, pocket_prompts: Path, tmp_path: Path) -> None:
    train(*flags(trained_pocket, pocket_prompts, tmp_path / "run", use_peft=True, lora_r=4, lora_dropout=0,
                 freeze="mid", max_steps=3))  # fmt: skip
    sync = record(tmp_path / "run")["weight_sync"]
    assert sync["num_syncs"] == 3
    assert sync["sent_bytes"] < 0.6 * sync["whole_bytes"]


def test_a_validation_between_two_steps_on_the_same_replies_does_not_make_them_new(
    trained_pocket: Path, pocket_prompts: Path, tmp_path: Path
) -> None:
    """It syncs the weights, and TRL then counts the replies of the step before as written by them.

    The validation split has two pictures a prompt where training has at most one.
    """
    directory = tmp_path / "prompts"
    directory.mkdir()
    (directory / "images").symlink_to(pocket_prompts / "images")
    source = [prompt for prompt in read_prompts(pocket_prompts, "rl") if prompt.images]
    write_prompts(directory, "rl", source)
    write_prompts(directory, "validation", [replace(prompt, images=prompt.images * 2) for prompt in source[:8]])
    train(*flags(
        trained_pocket, directory, tmp_path / "run", max_steps=4, steps_per_generation=2, eval_strategy="steps",
        eval_steps=1, validation_split="validation", per_device_eval_batch_size=2, num_generations_eval=1,
        learning_rate=3e-3, gradient_accumulation_steps=1, lr_scheduler_type="constant",
    ))  # fmt: skip
    gap = pd.read_csv(tmp_path / "run" / "metrics.csv")["rollout_gap/images"]
    assert gap.notna().tolist() == [True, False, True, False]
    assert gap.max() < 1e-3
