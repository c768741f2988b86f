"""Qwen3.5, small and random: layers of two kinds, tensors in fp32 among bf16, and tensors that no model loads."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from models.blocks import make_partition, resolve
from models.checkpoint import (
    check_same_tensors,
    kept_float32,
    open_checkpoint,
    stored_layout,
    usual_dtype,
    write_like,
)
from models.completeness import check_against_config, check_complete
from models.families import QWEN3_5, QWEN3_5_TEXT, Family
from models.layout import layout_from_config, layout_of
from models.loading import load_model
from tests.models.damage import CONFIG, edit_config, read_tensors, write_tensors
from train.freezing.freeze import FreezeArguments, count_blocks, format_freeze_table, plan_freeze

LINEAR = {f"in_proj_{part}.weight" for part in ("qkv", "z", "b", "a")} | {"conv1d.weight", "A_log", "dt_bias",
    "norm.weight", "out_proj.weight"}  # fmt: skip
FULL = {f"{part}.weight" for part in ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")}


def test_attention_covers_both_kinds_of_layers(qwen3_5_checkpoint: Path) -> None:
    layout = layout_of(qwen3_5_checkpoint)
    assert layout.layer_kinds == ("linear_attention", "linear_attention", "full_attention", "linear_attention")
    partition = make_partition(4)
    for layer, module, parts in ((1, "linear_attn", LINEAR), (2, "self_attn", FULL)):
        prefix = f"model.language_model.layers.{layer}."
        expected = {f"{prefix}{module}.{part}" for part in parts} | {f"{prefix}input_layernorm.weight"}
        attention = set(resolve([f"llm:{layer}.attn"], layout, partition).names)
        assert attention == expected
        mlp = set(resolve([f"llm:{layer}.mlp"], layout, partition).names)
        assert attention | mlp == set(resolve([f"llm:{layer}"], layout, partition).names) and not attention & mlp


def test_the_layout_of_a_folder_is_the_loaded_model_and_what_it_does_not_load(
    qwen3_5_checkpoint: Path, mixed_checkpoint: Path
) -> None:
    loaded = {name: tuple(parameter.shape) for name, parameter in load_model(mixed_checkpoint).named_parameters()}
    plain, published = layout_of(qwen3_5_checkpoint), layout_of(mixed_checkpoint)
    assert {parameter.name: parameter.shape for parameter in plain} == loaded
    assert set(published.parameters) == {*loaded, *published.carried} == set(open_checkpoint(mixed_checkpoint).tensors)
    assert len(published.carried) == 15 and not plain.carried
    assert set(resolve(["mtp"], published, make_partition(4)).names) == set(published.carried)
    assert stored_layout(open_checkpoint(mixed_checkpoint)).parameters == published.parameters
    with pytest.raises(ValueError, match="'mtp': this qwen3_5 has no mtp; expected early, mid, late, llm") as caught:
        resolve(["mtp"], plain, make_partition(4))
    assert "\n" not in str(caught.value)


def test_nothing_trains_mtp_and_the_table_says_so(mixed_checkpoint: Path) -> None:
    layout = layout_of(mixed_checkpoint)
    plan = plan_freeze(layout, FreezeArguments())
    assert plan.frozen == layout.carried and not plan.frozen_in_memory
    (row,) = [count for count in count_blocks(plan) if count.block == "mtp"]
    assert (row.state, row.num_tensors) == ("frozen", 15)
    table = format_freeze_table(plan)
    assert "note: mtp: 15 tensors that Transformers does not load; they stay as they are" in table
    assert "note: decoder layers 2 are full_attention, all others linear_attention" in table
    with pytest.raises(ValueError, match="train_only names 'mtp', which Transformers does not load") as caught:
        plan_freeze(layout, FreezeArguments(train_only=["mtp"]))
    assert "\n" not in str(caught.value)
    named = plan_freeze(layout, FreezeArguments(freeze=["early", "mtp"]), leave_some=False)
    assert set(named.frozen) > set(layout.carried)


def test_plain_transformers_rounds_what_the_suite_keeps(mixed_checkpoint: Path, tmp_path: Path) -> None:
    start = open_checkpoint(mixed_checkpoint)
    kept = kept_float32(start)
    assert usual_dtype(start) == "BF16" and len(kept) == 6
    assert {name.rpartition("linear_attn.")[2] for name in kept} == {"A_log", "norm.weight"}
    plain = transformers.AutoModelForImageTextToText.from_pretrained(mixed_checkpoint, dtype="auto")
    plain.save_pretrained(tmp_path / "plain")
    saved = open_checkpoint(tmp_path / "plain")
    assert all(saved.tensors[name].dtype == "BF16" for name in kept)
    assert not any(torch.equal(saved.tensor(name).float(), start.tensor(name)) for name in kept)
    for dtype in ("auto", "bfloat16", "float32"):
        model = dict(load_model(mixed_checkpoint, dtype=dtype).named_parameters())
        for name, parameter in model.items():
            expected = torch.float32 if name in kept or dtype == "float32" else torch.bfloat16
            assert parameter.dtype == expected, (dtype, name)
            assert torch.equal(parameter.float(), start.tensor(name).float()), (dtype, name)


def test_a_models_own_tensors_are_enough_to_write_a_checkpoint_like_its_start(
    mixed_checkpoint: Path, tmp_path: Path
) -> None:
    load_model(mixed_checkpoint).save_pretrained(tmp_path / "saved")
    start, saved = open_checkpoint(mixed_checkpoint), open_checkpoint(tmp_path / "saved")
    assert not any(name.startswith("mtp.") for name in saved.tensors)
    with pytest.raises(ValueError, match=r"lacks 'mtp\.fc\.weight', which"):
        check_same_tensors(start, saved)
    (tmp_path / "final").mkdir()
    write_like(tmp_path / "final", start=start, weights=saved)
    written, original = (path / "model.safetensors" for path in (tmp_path / "final", mixed_checkpoint))
    assert written.read_bytes() == original.read_bytes()


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("model.language_model.layers.0.linear_attn.dt_bias", torch.float32),
        ("model.language_model.layers.0.mlp.up_proj.weight", torch.float32),
        ("model.language_model.layers.0.linear_attn.A_log", torch.float16),
        ("mtp.norm.weight", torch.float32),
    ],
)
def test_other_tensors_in_another_dtype_are_refused(
    mixed_checkpoint: Path, tmp_path: Path, name: str, dtype: torch.dtype
) -> None:
    directory = Path(shutil.copytree(mixed_checkpoint, tmp_path / "checkpoint"))
    tensors = read_tensors(directory)
    tensors[name] = tensors[name].to(dtype)
    write_tensors(directory, tensors)
    message = rf"tensor '{name}' is F.*only \.linear_attn\.A_log and .* may be F32"
    with pytest.raises(ValueError, match=message) as caught:
        open_checkpoint(directory)
    assert "\n" not in str(caught.value)


def swap_kinds(directory: Path) -> None:
    linear = "linear_attention"
    edit_text_config(directory, layer_types=[linear, "full_attention", linear, linear])


def edit_text_config(directory: Path, **changes: Any) -> None:
    config = json.loads((directory / CONFIG).read_text())
    edit_config(directory, text_config={**config["text_config"], **changes})


def drop(name: str) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        write_tensors(directory, {key: value for key, value in read_tensors(directory).items() if key != name})

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (swap_kinds, r"decoder layer 1 is linear_attention, while layer_types in config.json has 'full_attention'"),
        (lambda d: edit_text_config(d, layer_types=["linear_attention"]), r"layer_types has 1 entries for 4 decoder"),
        (drop("model.language_model.layers.1.linear_attn.A_log"), r"lacks 'model.language_model.layers.1.linear_attn"),
    ],
)
def test_layers_of_the_wrong_kind_are_found_without_a_model(
    mixed_checkpoint: Path, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    directory = Path(shutil.copytree(mixed_checkpoint, tmp_path / "checkpoint"))
    damage(directory)
    with pytest.raises(ValueError, match=message) as caught:
        check_against_config(open_checkpoint(directory))
    assert "\n" not in str(caught.value)


def test_the_decoder_alone_is_read_in_both_spellings(qwen3_5_checkpoint: Path, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(qwen3_5_checkpoint).text_config
    config.tie_word_embeddings = False
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "text")
    tensors = read_tensors(tmp_path / "text")
    assert all(name.startswith(("model.layers.", "model.embed", "model.norm", "lm_head.")) for name in tensors)
    respelt = Path(shutil.copytree(tmp_path / "text", tmp_path / "respelt"))
    write_tensors(respelt, {name.replace("model.", "model.language_model."): own for name, own in tensors.items()})
    checkpoints = [open_checkpoint(tmp_path / "text"), open_checkpoint(respelt)]
    for checkpoint in checkpoints:
        check_complete(checkpoint, layout_of(checkpoint.directory))
        loaded = dict(AutoModelForCausalLM.from_pretrained(checkpoint.directory).named_parameters())
        assert all(torch.equal(checkpoint.tensor(name), loaded[name]) for name in checkpoint.tensors)
        assert set(checkpoint.tensors) == set(loaded)
    check_same_tensors(*checkpoints)


@pytest.mark.parametrize(
    ("family", "name", "place"),
    [
        (QWEN3_5, "model.language_model.layers.63.linear_attn.A_log", ("llm", 63, "linear_attn.A_log")),
        (QWEN3_5, "model.layers.3.self_attn.q_norm.weight", ("llm", 3, "self_attn.q_norm.weight")),
        (QWEN3_5, "model.visual.pos_embed.weight", ("vision", None, "weight")),
        (QWEN3_5, "mtp.layers.0.self_attn.q_proj.weight", ("mtp", None, "layers.0.self_attn.q_proj.weight")),
        (QWEN3_5_TEXT, "model.language_model.layers.3.mlp.up_proj.weight", ("llm", 3, "mlp.up_proj.weight")),
        (QWEN3_5_TEXT, "mtp.fc.weight", ("mtp", None, "fc.weight")),
    ],
)
def test_published_names_have_their_place(family: Family, name: str, place: tuple[str, int | None, str]) -> None:
    assert family.place(family.canonical(name)) == place


def test_the_published_configuration_gives_the_published_size() -> None:
    """Qwen3.5-0.8B's sizes: 24 layers, every fourth with full attention, 12 vision blocks, tied: 0.85 B parameters."""
    layout = layout_from_config(
        {
            "model_type": "qwen3_5", "tie_word_embeddings": True,
            "text_config": {
                "model_type": "qwen3_5_text", "vocab_size": 248_320, "hidden_size": 1024, "intermediate_size": 3584,
                "num_hidden_layers": 24, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 256,
                "linear_num_key_heads": 16, "linear_num_value_heads": 16, "tie_word_embeddings": True,
                "full_attention_interval": 4,
            },
            "vision_config": {
                "model_type": "qwen3_5", "depth": 12, "hidden_size": 768, "intermediate_size": 3072, "num_heads": 12,
                "out_hidden_size": 1024, "num_position_embeddings": 2304,
            },
        }
    )  # fmt: skip
    assert layout.layer_kinds == ("linear_attention",) * 3 + ("full_attention",) + layout.layer_kinds[4:]
    assert layout.layer_kinds.count("full_attention") == 6 and layout.num_vision_blocks == 12
    assert 0.8e9 < layout.num_elements < 0.9e9
