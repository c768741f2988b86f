"""Would each check notice a fault in what it checks? One fault planted for each, on a copy of the pocket model."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import models.check.weights
from analyze.deltas.change import dot
from analyze.deltas.spectra import singular_values
from analyze.swap.run import make_plan
from eval.replies.decoding import read_prompts
from merge.splice import write_splice
from models.adapters.merged import merge_tensor
from models.check.command import run_check, small_checks
from models.check.outcome import FAILS, HOLDS
from models.check.small import Small, make_small
from models.checkpoint import open_checkpoint
from models.families import FAMILIES, QWEN2_5_VL
from models.loading import load_model
from train.sharing.layout import Layout

Patch = Callable[[pytest.MonkeyPatch], None]


def flipped_splice(*arguments: Any, **options: Any) -> Path:
    """A splice with one bit of one decoder tensor changed after it was written."""
    directory = write_splice(*arguments, **options)
    stored = open_checkpoint(directory).tensors["model.language_model.layers.1.mlp.up_proj.weight"]
    content = bytearray(stored.file.read_bytes())
    content[stored.offset] ^= 1
    stored.file.write_bytes(content)
    return directory


def everything_visible(layout: Layout) -> torch.Tensor:
    """Replies of one prompt see each other."""
    rows, width = layout.source.shape
    return torch.ones(width, width, dtype=torch.bool).tril().expand(rows, 1, width, width)


def double_the_adapter(patch: pytest.MonkeyPatch) -> None:
    def doubled(base: torch.Tensor, update: Any) -> torch.Tensor:
        return merge_tensor(base, replace(update, scale=2 * update.scale))

    patch.setattr("models.adapters.merged.merge_tensor", doubled)


def exchange_sublayers(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("analyze.skip.layers.ATTENTIONS", ("mlp",))
    patch.setattr("analyze.skip.layers.MLP", "self_attn")


def set_attribute(target: Any, name: str, value: Any) -> Patch:
    return lambda patch: patch.setattr(target, name, value)


def set_path(path: str, value: Any) -> Patch:
    return lambda patch: patch.setattr(path, value)


FAULTS: dict[str, tuple[str, Patch]] = {
    "a spelling that belongs to another region": (
        "spellings",
        lambda patch: patch.setitem(
            FAMILIES, "qwen2_5_vl", replace(QWEN2_5_VL, spellings=(("model.language_model.", "model.visual."),))
        ),
    ),
    "all tensors are loaded in fp32": (
        "precision",
        set_path("models.check.weights.load_model", lambda directory: load_model(directory, dtype="float32")),
    ),
    "nothing is frozen": ("freezing", set_path("models.check.training.apply_freeze", lambda model, plan: None)),
    "the adapter is merged with twice its scale": ("LoRA", double_the_adapter),
    "a step counter of eight bytes": ("plan", set_path("train.planning.memory.STEP_BYTES", 8)),
    "one bit of a splice": ("splice", set_attribute(models.check.weights, "write_splice", flipped_splice)),
    "energies a thousandth too large": (
        "deltas", set_path("analyze.deltas.change.dot", lambda one, other: 1.001 * dot(one, other))
    ),
    "singular values a thousandth too large": (
        "deltas",
        set_attribute(
            models.check.weights, "singular_values",
            lambda delta: replace(found := singular_values(delta), values=1.001 * found.values),
        ),
    ),
    "attention and MLP exchanged": ("skip", exchange_sublayers),
    "masses without the causal mask": (
        "attention",
        set_path(
            "analyze.attention.mass._visible",
            lambda mask, index, num_tokens: torch.ones(*index.shape, num_tokens, dtype=torch.bool),
        ),
    ),
    "every swap one layer too high": (
        "swap", set_path("analyze.swap.run.make_plan", lambda swaps, number: make_plan(swaps, number).roll(1, dims=1))
    ),
    "padding is attended to": (
        "batch",
        set_path(
            "eval.replies.generation.read_prompts",
            lambda model, inputs: read_prompts(
                model, {**inputs, "attention_mask": torch.ones_like(inputs["attention_mask"])}
            ),
        ),
    ),
    "replies see each other": ("sharing", set_attribute(Layout, "attention", everything_visible)),
}  # fmt: skip


@pytest.fixture(scope="module")
def small(pocket_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Small:
    config = json.loads((pocket_checkpoint / "config.json").read_text())
    return make_small(config, QWEN2_5_VL, tmp_path_factory.mktemp("small"), companions=pocket_checkpoint)


@pytest.mark.slow
@pytest.mark.parametrize("fault", list(FAULTS))
def test_a_fault_is_found(fault: str, small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, plant = FAULTS[fault]
    fresh = Small(small.directory, tmp_path, small.no_prompts)
    plant(monkeypatch)
    outcome = run_check(name, small_checks(fresh, None)[name])
    assert outcome.state == FAILS, str(outcome)
    assert "Error: " not in outcome.detail, "the check broke instead of finding the fault"


def test_every_check_has_a_fault(small: Small) -> None:
    assert {name for name, _ in FAULTS.values()} == set(small_checks(small, None))


def test_a_check_that_raises_does_not_hold_and_says_where() -> None:
    outcome = run_check("batch", lambda: open_checkpoint(Path("nowhere")) and pytest.fail())
    assert outcome.state == FAILS != HOLDS
    assert (
        outcome.detail.startswith("ValueError: checkpoint nowhere does not exist")
        and "checkpoint.py:" in outcome.detail
    )
