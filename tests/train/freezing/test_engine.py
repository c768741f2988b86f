"""Which precisions and engines are refused, and is the optimizer really looked into?"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainingArguments

from models.checkpoint import open_checkpoint
from models.layout import Layout
from models.loading import load_model
from train.freezing.engine import ROUNDED_AWAY_FRAC, check_batches, check_precision, inspect_optimizer, zero_stage
from train.freezing.freeze import FreezeArguments, apply_freeze, plan_freeze
from train.running.stage import check_windows

MID = FreezeArguments(freeze=["mid"])


def arguments(directory: Path, **changes: Any) -> TrainingArguments:
    return TrainingArguments(output_dir=str(directory), use_cpu=True, report_to="none", **changes)


@pytest.mark.parametrize(
    ("dtype", "bf16", "lora", "message"),
    [
        ("bfloat16", False, False, r"would round the frozen tensor .*layers\.2.*float32; use dtype float32"),
        ("bfloat16", False, True, "dtype bfloat16 would round the frozen tensor"),
        ("float32", True, False, None),
        (None, False, False, None),
        ("auto", True, False, None),
    ],
)  # fmt: skip
def test_a_precision_that_would_round_frozen_tensors_is_refused(
    pocket_checkpoint: Path, pocket_layout: Layout, tmp_path: Path, dtype: str | None, bf16: bool, lora: bool,
    message: str | None,
) -> None:  # fmt: skip
    start, frozen = open_checkpoint(pocket_checkpoint), plan_freeze(pocket_layout, MID).frozen
    training = arguments(tmp_path, bf16=bf16)
    if message is None:
        check_precision(start, frozen, training, dtype, lora=lora)
        return
    with pytest.raises(ValueError, match=message):
        check_precision(start, frozen, training, dtype, lora=lora)


def test_weights_in_bfloat16_without_master_copies_are_refused_except_under_adapters(
    pocket_checkpoint: Path, tmp_path: Path
) -> None:
    start = open_checkpoint(pocket_checkpoint)
    with pytest.raises(ValueError, match=r"without fp32 master copies.*use dtype float32.*or DeepSpeed"):
        check_precision(start, (), arguments(tmp_path), "bfloat16", lora=False)
    check_precision(start, (), arguments(tmp_path), "bfloat16", lora=True)


def test_at_rl_learning_rates_most_updates_of_bfloat16_weights_round_away() -> None:
    """The figure behind the refusal: Adam's first steps at 1e-6 on weights of the size a trained model has."""
    generator = torch.Generator().manual_seed(0)
    weight = (0.02 * torch.randn(200_000, generator=generator)).bfloat16()
    parameter = torch.nn.Parameter(weight.clone())
    optimizer = torch.optim.AdamW([parameter], lr=1e-6, weight_decay=0.0)
    for _ in range(10):
        parameter.grad = torch.randn(weight.shape, generator=generator).bfloat16()
        optimizer.step()
    unmoved = float((parameter.detach() == weight).float().mean())
    assert unmoved == pytest.approx(ROUNDED_AWAY_FRAC, abs=0.01)


def test_half_precision_is_refused(pocket_checkpoint: Path, tmp_path: Path) -> None:
    training = arguments(tmp_path)
    training.fp16 = True
    with pytest.raises(ValueError, match="fp16 is not supported"):
        check_precision(open_checkpoint(pocket_checkpoint), (), training, None, lora=False)


class CastingEngine:
    """Stands for arguments that name a DeepSpeed file: what the check reads of them."""

    deepspeed, bf16, fp16 = "zero2.json", True, False


def test_a_bf16_engine_is_refused_where_frozen_tensors_are_stored_in_fp32(
    pocket_checkpoint: Path, pocket_layout: Layout
) -> None:
    frozen = plan_freeze(pocket_layout, MID).frozen
    engine: Any = CastingEngine()
    with pytest.raises(ValueError, match=r"DeepSpeed with bf16: true would round the frozen tensor .* set bf16: false"):
        check_precision(open_checkpoint(pocket_checkpoint), frozen, engine, "float32", lora=False)
    check_precision(open_checkpoint(pocket_checkpoint), (), engine, "bfloat16", lora=False)


def test_ddp_with_reentrant_checkpointing_needs_every_weight_in_every_step(
    pocket_layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = arguments(tmp_path, gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": True})
    plan = plan_freeze(pocket_layout, MID)
    check_batches(training, plan, some_without_images=True)
    monkeypatch.setattr("train.freezing.engine.num_processes", lambda: 2)
    with pytest.raises(ValueError, match="needs an image in every prompt; use gradient_checkpointing_kwargs"):
        check_batches(training, plan, some_without_images=True)
    check_batches(training, plan, some_without_images=False)
    towerless = plan_freeze(pocket_layout, FreezeArguments(freeze=["vision", "projector"]))
    check_batches(training, towerless, some_without_images=True)


@pytest.fixture
def stepped(pocket_checkpoint: Path, pocket_layout: Layout, tmp_path: Path) -> Trainer:
    """A trainer after one step on random tokens, with `mid` frozen."""
    model = load_model(pocket_checkpoint)
    apply_freeze(model, plan_freeze(pocket_layout, MID))
    rows = [{"input_ids": torch.arange(4, 20), "labels": torch.arange(4, 20)} for _ in range(4)]
    training = arguments(tmp_path, max_steps=1, per_device_train_batch_size=2, save_strategy="no")
    trainer = Trainer(model, training, train_dataset=rows)
    trainer.train()
    return trainer


def test_the_optimizer_holds_moments_for_what_trains(stepped: Trainer) -> None:
    report = inspect_optimizer(stepped)
    reached = sum(p.numel() for p in stepped.model.parameters() if p.grad is not None or p in stepped.optimizer.state)
    assert report.num_trainable_elements == sum(p.numel() for p in stepped.model.parameters() if p.requires_grad)
    assert report.num_state_elements == reached < report.num_trainable_elements  # no picture: the tower is left out
    assert zero_stage(stepped.args) == 0


def test_a_frozen_parameter_in_the_optimizer_is_found(stepped: Trainer) -> None:
    frozen = next(p for p in stepped.model.parameters() if not p.requires_grad)
    stepped.optimizer.optimizer.add_param_group({"params": [frozen]})
    with pytest.raises(RuntimeError, match="the optimizer holds a frozen parameter of the shape"):
        inspect_optimizer(stepped)


def test_a_trainable_parameter_that_the_optimizer_lacks_is_found(stepped: Trainer) -> None:
    stepped.optimizer.optimizer.param_groups[0]["params"].pop(0)
    with pytest.raises(RuntimeError, match=r"the optimizer lacks .*, which is trainable"):
        inspect_optimizer(stepped)


def test_checkpoints_in_the_middle_of_a_logging_window_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="save_steps 3 is no multiple of logging_steps 2"):
        check_windows(arguments(tmp_path, save_steps=3, logging_steps=2))


def test_shipped_engine_files_keep_two_weight_decay_groups() -> None:
    """A file with an `optimizer` section makes one group, and weight decay then also hits norms and biases."""
    from tracking.command import REPOSITORY_ROOT

    for path in sorted((REPOSITORY_ROOT / "configs" / "deepspeed").glob("*.json")):
        settings = json.loads(path.read_text())
        assert "optimizer" not in settings and "scheduler" not in settings, path
        if settings["zero_optimization"]["stage"] == 3:
            assert settings["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] is True, path
