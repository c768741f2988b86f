"""Freezing in Gemma 4: what never trains, what the plan says, and that a layer's buffer is compared with the layer."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from models.checkpoint import open_checkpoint
from models.layout import layout_of
from models.loading import load_model
from train.freezing.engine import check_shared_keys
from train.freezing.freeze import FreezeArguments, apply_freeze, count_blocks, format_freeze_table, plan_freeze
from train.sharing.models import obstacle
from train.verify import EXIT_BREACH
from train.verify import main as verify


def test_buffers_and_the_tower_for_sound_never_train(gemma4_checkpoint: Path) -> None:
    layout = layout_of(gemma4_checkpoint)
    fixed = {p.name for p in layout if p.buffer or p.region == "audio"}
    model = load_model(gemma4_checkpoint)
    for freeze in (FreezeArguments(freeze=["mid"]), FreezeArguments(train_only=["late", "vision"])):
        plan = plan_freeze(layout, freeze)
        assert fixed <= set(plan.frozen) and not fixed & set(plan.trainable)
        assert set(plan.frozen) | set(plan.trainable) == set(layout.parameters)
        apply_freeze(model, plan)
        assert {n for n, p in model.named_parameters() if p.requires_grad} == set(plan.trainable)
    with pytest.raises(ValueError, match="train_only names 'audio', which prompts of text and pictures never reach"):
        plan_freeze(layout, FreezeArguments(train_only=["audio"]))


def test_the_freeze_table_counts_parameters_and_notes_what_never_trains(gemma4_checkpoint: Path) -> None:
    plan = plan_freeze(layout_of(gemma4_checkpoint), FreezeArguments(freeze=["mid"]))
    states = {count.block: count.state for count in count_blocks(plan)}
    assert {block for block, state in states.items() if state == "frozen"} == {"mid", "audio"}
    assert set(states.values()) == {"frozen", "trains"}
    table = format_freeze_table(plan)
    assert "note: audio: prompts of text and pictures never reach it, so it is frozen" in table
    assert "input_max, input_min, layer_scalar, output_max, output_min) belong to their blocks" in table


def test_verify_compares_a_layers_buffer_with_the_layer(
    gemma4_checkpoint: Path, tmp_path: Path, flipped: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    end = Path(shutil.copytree(gemma4_checkpoint, tmp_path / "end"))
    flipped(end, "model.language_model.layers.4.layer_scalar")
    arguments = ["--start", str(gemma4_checkpoint), "--end", str(end), "--frozen"]
    verify([*arguments, "mid"])
    with pytest.raises(SystemExit) as exit_info:
        verify([*arguments, "late"])
    assert exit_info.value.code == EXIT_BREACH
    assert "breach: model.language_model.layers.4.layer_scalar\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("checkpointing", "lora", "stage", "train_only", "refused"),
    [
        ({"use_reentrant": True}, False, 0, [], "reentrant gradient checkpointing would lose the gradient"),
        ({"use_reentrant": True}, False, 0, ["late"], None),
        ({"use_reentrant": False}, False, 0, [], None),
        (None, True, 3, [], "LoRA under ZeRO-3 uses reentrant .*; use gradient_checkpointing: false"),
        (None, False, 3, [], None),
    ],
)
def test_reentrant_checkpointing_is_refused_where_it_loses_gradients(
    gemma4_checkpoint: Path, checkpointing: Any, lora: bool, stage: int, train_only: list[str], refused: str | None
) -> None:
    plan = plan_freeze(layout_of(gemma4_checkpoint), FreezeArguments(train_only=train_only))
    plugin = SimpleNamespace(zero_stage=stage) if stage else None
    training: Any = SimpleNamespace(
        gradient_checkpointing=True, gradient_checkpointing_kwargs=checkpointing, deepspeed_plugin=plugin
    )
    start = open_checkpoint(gemma4_checkpoint)
    if refused is None:
        check_shared_keys(training, start, plan, lora=lora)
        return
    with pytest.raises(ValueError, match=refused) as caught:
        check_shared_keys(training, start, plan, lora=lora)
    assert "\n" not in str(caught.value)


def test_reentrant_checkpointing_does_lose_the_gradient_of_shared_keys(gemma4_checkpoint: Path) -> None:
    """When this fails, the refusal can go."""
    tokens = torch.arange(1, 30)[None]
    found = []
    for kwargs in (None, {"use_reentrant": False}, {"use_reentrant": True}):
        model: Any = load_model(gemma4_checkpoint, dtype="float32").train()
        if kwargs is not None:
            model.gradient_checkpointing_enable(kwargs)
            model.enable_input_require_grads()
        model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
        found.append(model.model.language_model.layers[2].self_attn.v_proj.weight.grad)
    exact, same, other = found
    assert torch.allclose(exact, same, rtol=1e-4, atol=1e-7)
    assert (exact - other).norm() > 0.05 * exact.norm()


def test_prompts_are_not_shared_and_the_reason_is_one_line(gemma4_checkpoint: Path) -> None:
    assert obstacle(load_model(gemma4_checkpoint)) == "the model has layers with sliding-window attention"
