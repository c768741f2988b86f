"""LoRA on exactly the layers that train, merged in one rounding."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from trl import ModelConfig

from models.adapters.opening import merge_adapter_of
from models.checkpoint import open_checkpoint
from models.layout import Layout
from models.loading import load_model
from train.freezing.adapters import (
    adapted_modules,
    adapter_breaches,
    add_adapters,
    plan_adapters,
    target_pattern,
)
from train.freezing.freeze import FreezeArguments, FreezePlan, plan_freeze

LORA = ModelConfig(use_peft=True, lora_r=4, lora_alpha=8)
DECODER = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj",
           "mlp.up_proj", "mlp.down_proj")  # fmt: skip


def planned(layout: Layout, freeze: FreezeArguments, config: ModelConfig = LORA) -> FreezePlan:
    return plan_adapters(plan_freeze(layout, freeze), freeze, config)


def modules_of(layers: range) -> set[str]:
    return {f"model.language_model.layers.{layer}.{name}" for layer in layers for name in DECODER}


@pytest.mark.parametrize(
    ("freeze", "layers"),
    [
        (FreezeArguments(), range(6)),
        (FreezeArguments(freeze=["early"]), range(2, 6)),
        (FreezeArguments(freeze=["mid", "late"]), range(2)),
        (FreezeArguments(freeze=["vision", "projector"]), range(6)),
        (FreezeArguments(train_only=["late"]), range(4, 6)),
    ],
)
def test_exactly_the_trainable_decoder_layers_are_adapted(
    pocket_layout: Layout, freeze: FreezeArguments, layers: range
) -> None:
    plan = planned(pocket_layout, freeze)
    assert set(adapted_modules(plan)) == modules_of(layers)
    assert set(plan.frozen) | set(plan.trainable) == set(pocket_layout.parameters)
    assert not set(plan.frozen) & set(plan.trainable)


def test_vision_tower_and_projector_are_adapted_only_where_they_are_named(pocket_layout: Layout) -> None:
    regions = {
        pocket_layout.parameters[name].region
        for name in planned(pocket_layout, FreezeArguments(train_only=["late.attn", "vision", "projector"])).trainable
    }
    assert regions == {"llm", "vision", "projector"}
    assert {pocket_layout.parameters[n].region for n in planned(pocket_layout, FreezeArguments()).trainable} == {"llm"}


def test_chosen_modules_narrow_the_adapters_and_a_misspelt_one_is_refused(pocket_layout: Layout) -> None:
    chosen = replace(LORA, lora_target_modules=["q_proj", "v_proj"])
    names = adapted_modules(planned(pocket_layout, FreezeArguments(freeze=["early"]), chosen))
    assert {name.rpartition(".")[2] for name in names} == {"q_proj", "v_proj"} and len(names) == 8
    with pytest.raises(ValueError, match=r"lora_target_modules 'q_porj' .*did you mean 'q_proj'"):
        planned(pocket_layout, FreezeArguments(), replace(LORA, lora_target_modules=["q_porj"]))


def test_what_has_no_adapter_is_refused(pocket_layout: Layout) -> None:
    with pytest.raises(ValueError, match="train_only names 'embed', which LoRA does not adapt"):
        planned(pocket_layout, FreezeArguments(train_only=["late", "embed"]))
    with pytest.raises(ValueError, match="nothing to adapt: every decoder layer is frozen"):
        planned(pocket_layout, FreezeArguments(freeze=["llm"]))
    with pytest.raises(ValueError, match="use_dora"):
        planned(pocket_layout, FreezeArguments(), replace(LORA, use_dora=True))


def test_the_pattern_matches_the_modules_and_no_other(pocket_checkpoint: Path, pocket_layout: Layout) -> None:
    freeze = FreezeArguments(train_only=["late.attn", "llm:1.mlp", "vision:1", "projector"])
    modules = adapted_modules(planned(pocket_layout, freeze))
    pattern = target_pattern(modules)
    every = [name for name, _ in load_model(pocket_checkpoint).named_modules()]
    assert {name for name in every if re.fullmatch(pattern, name)} == set(modules)


def test_a_saved_adapter_with_other_modules_is_found(
    pocket_checkpoint: Path, pocket_layout: Layout, tmp_path: Path
) -> None:
    mid, late = (planned(pocket_layout, FreezeArguments(train_only=[block])) for block in ("mid", "late"))
    add_adapters(load_model(pocket_checkpoint), late, LORA, autocast_adapter_dtype=True).save_pretrained(tmp_path)
    assert adapter_breaches(tmp_path, late) == []
    assert any("layers.2" in name for name in adapter_breaches(tmp_path, mid))


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_merge_is_the_sum_rounded_once(
    pocket_checkpoint: Path, pocket_layout: Layout, tmp_path: Path, rslora: bool, dtype: str
) -> None:
    config = replace(LORA, use_rslora=rslora)
    plan = planned(pocket_layout, FreezeArguments(train_only=["late"]), config)
    base = load_model(pocket_checkpoint, dtype=dtype)
    base.save_pretrained(tmp_path / "start")
    model = add_adapters(base, plan, config, autocast_adapter_dtype=True)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(tmp_path / "adapter")
    start = open_checkpoint(tmp_path / "start")
    merged = merge_adapter_of(tmp_path / "adapter", start)
    lora = dict(model.named_parameters())
    for name in start.tensors:
        if name not in plan.trainable:
            assert merged.data(name) == start.data(name)
            continue
        module = f"base_model.model.{name.removesuffix('.weight')}"
        down, up = (lora[f"{module}.lora_{part}.default.weight"].detach().double() for part in "AB")
        exact = start.tensor(name).double() + (8 / 2 if rslora else 8 / 4) * (up @ down)
        error = (merged.tensor(name).double() - exact).abs()
        assert (error <= 1e-6 + (0 if dtype == "float32" else 2**-8) * exact.abs()).all()
        assert not torch.equal(merged.tensor(name), start.tensor(name))
