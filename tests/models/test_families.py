"""Qwen3-VL, text-only Qwen2 and Qwen3, small and random: names, their parts and their spellings.

What holds for every family alike is checked in `tests/models/check/test_families.py`.
"""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from models.blocks import make_partition, resolve
from models.checkpoint import open_checkpoint, write_like
from models.families import FAMILIES, QWEN2, QWEN2_5_VL, QWEN3, QWEN3_VL, Family
from models.layout import layout_from_config, layout_of
from models.loading import load_model, load_processor
from models.shards import write_safetensors

TRANSFORMERS = tuple(int(part) for part in transformers.__version__.split(".")[:2])
NORMED = {f"{name}.weight" for name in ("q_proj", "k_proj", "v_proj", "q_norm", "k_norm")}
DECODER_PARTS = {
    "qwen2": {f"{letter}_proj.{kind}" for letter in "qkv" for kind in ("weight", "bias")},
    "qwen3": NORMED,
    "qwen3_vl": NORMED,
}
"""The attention's parameters other than its output projection."""
AUTO_CLASS = {"qwen2": AutoModelForCausalLM, "qwen3": AutoModelForCausalLM, "qwen3_vl": AutoModelForImageTextToText}


@pytest.fixture(params=["qwen2", "qwen3", "qwen3_vl"])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def directory(family: str, request: pytest.FixtureRequest) -> Path:
    return Path(request.getfixturevalue(f"{family}_checkpoint"))


def respell(source: Path, target: Path, *changes: tuple[str, str]) -> Path:
    """Copies a checkpoint, its canonical prefixes changed on disk."""
    shutil.copytree(source, target)
    checkpoint = open_checkpoint(source)
    tensors = {}
    for name, stored in checkpoint.tensors.items():
        old, new = next(((old, new) for old, new in changes if name.startswith(old)), ("", ""))
        tensors[new + name.removeprefix(old)] = stored
    entries = [(name, stored.dtype, stored.shape) for name, stored in tensors.items()]
    write_safetensors(target / "model.safetensors", entries, lambda name: checkpoint.data(tensors[name].name))
    return target


def test_layout_is_the_loaded_models_parameters(family: str, directory: Path) -> None:
    model = AUTO_CLASS[family].from_pretrained(directory)
    layout = layout_of(directory)
    assert {parameter.name: parameter.shape for parameter in layout} == {
        name: tuple(parameter.shape) for name, parameter in model.named_parameters()
    }
    assert layout.family is FAMILIES[family]
    assert (layout.num_layers, layout.num_vision_blocks) == (4, 3 if family == "qwen3_vl" else 0)
    assert layout.tied == (family != "qwen2")


def test_attention_has_its_norms_and_the_rest_of_a_layer_is_its_mlp(family: str, directory: Path) -> None:
    layout = layout_of(directory)
    partition = make_partition(layout.num_layers)
    prefix = f"{FAMILIES[family].layers}2."
    attention = {f"{prefix}self_attn.{part}" for part in DECODER_PARTS[family] | {"o_proj.weight"}}
    attention.add(f"{prefix}input_layernorm.weight")
    assert set(resolve(["llm:2.attn"], layout, partition).names) == attention
    whole = set(resolve(["llm:2"], layout, partition).names)
    assert set(resolve(["llm:2.mlp"], layout, partition).names) == whole - attention


def test_of_qwen3_vls_tower_all_mergers_are_the_projector_and_all_else_is_vision(qwen3_vl_checkpoint: Path) -> None:
    layout = layout_of(qwen3_vl_checkpoint)
    partition = make_partition(layout.num_layers)
    tower = {name for name in layout.parameters if name.startswith("model.visual.")}
    mergers = {name for name in tower if "merger" in name}
    assert {name.split(".")[2] for name in mergers} == {"merger", "deepstack_merger_list"}
    assert set(resolve(["projector"], layout, partition).names) == mergers
    vision = set(resolve(["vision"], layout, partition).names)
    assert vision == tower - mergers
    blocks = set(resolve(["vision:0-2"], layout, partition).names)
    assert {name.split(".")[2] for name in vision - blocks} == {"patch_embed", "pos_embed"}


@pytest.mark.parametrize("expression", ["vision", "vision:0", "vision:0-2", "projector"])
def test_what_only_a_tower_has_is_refused_on_a_text_model(qwen2_checkpoint: Path, expression: str) -> None:
    layout = layout_of(qwen2_checkpoint)
    with pytest.raises(ValueError, match=f"'{expression}': qwen2 is a text-only model without ") as caught:
        resolve(["mid", expression], layout, make_partition(layout.num_layers))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("pocket", [("model.language_model.", "model."), ("model.visual.", "visual.")]),  # the hub's
        ("pocket", [("model.language_model.", "model.model."), ("model.visual.", "visual.")]),  # saved from zero.Init
        ("qwen3_vl", [("model.language_model.", "model.language_model.model.")]),  # the same
    ],
)
def test_spellings_that_transformers_writes_and_loads_have_one_name(
    kind: str, changes: list[tuple[str, str]], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    start = open_checkpoint(request.getfixturevalue(f"{kind}_checkpoint"))
    respelt = open_checkpoint(respell(start.directory, tmp_path / "respelt", *changes))
    spelled = [stored.name_on_disk for stored in respelt.tensors.values()]
    assert all(any(name.startswith(new) for name in spelled) for _, new in changes)
    assert not any(name.startswith(old) and not name.startswith(new) for name in spelled for old, new in changes)
    assert {name: bytes(start.data(name)) for name in start.tensors} == {
        name: bytes(respelt.data(name)) for name in respelt.tensors
    }
    if ".model." not in changes[0][1] or TRANSFORMERS >= (5, 23):  # the doubled ones load from 5.23 on
        loaded = dict(load_model(respelt.directory).named_parameters())
        assert all(torch.equal(start.tensor(name), loaded[name]) for name in start.tensors)
    (tmp_path / "again").mkdir()
    write_like(tmp_path / "again", start=start, weights=respelt)
    again, original = (path / "model.safetensors" for path in (tmp_path / "again", start.directory))
    assert again.read_bytes() == original.read_bytes()


@pytest.mark.parametrize(
    ("family_record", "name", "place"),
    [
        (QWEN3_VL, "model.language_model.layers.35.self_attn.k_norm.weight", ("llm", 35, "self_attn.k_norm.weight")),
        (QWEN3_VL, "model.visual.blocks.26.mlp.linear_fc1.bias", ("vision", 26, "mlp.linear_fc1.bias")),
        (QWEN3_VL, "model.visual.pos_embed.weight", ("vision", None, "weight")),
        (QWEN3_VL, "model.visual.deepstack_merger_list.2.norm.bias", ("projector", None, "2.norm.bias")),
        (QWEN3_VL, "model.visual.merger.linear_fc2.weight", ("projector", None, "linear_fc2.weight")),
        (QWEN3_VL, "lm_head.weight", ("head", None, "weight")),
        (QWEN2, "model.layers.27.self_attn.q_proj.bias", ("llm", 27, "self_attn.q_proj.bias")),
        (QWEN2, "model.embed_tokens.weight", ("embed", None, "weight")),
        (QWEN2, "model.norm.weight", ("norm", None, "weight")),
        (QWEN2, "lm_head.weight", ("head", None, "weight")),
        (QWEN3, "model.layers.35.self_attn.q_norm.weight", ("llm", 35, "self_attn.q_norm.weight")),
        (QWEN2_5_VL, "visual.merger.mlp.0.weight", ("projector", None, "mlp.0.weight")),
        (QWEN2_5_VL, "model.layers.27.mlp.up_proj.weight", ("llm", 27, "mlp.up_proj.weight")),
    ],
)
def test_published_names_have_their_place(family_record: Family, name: str, place: tuple[str, int | None, str]) -> None:
    assert family_record.place(family_record.canonical(name)) == place


def test_published_qwen3_vl_configuration_gives_the_published_size() -> None:
    """Qwen3-VL-4B-Instruct's config.json, sizes alone: 4.4 B parameters, 36 layers, 24 vision blocks, tied."""
    layout = layout_from_config(
        {
            "model_type": "qwen3_vl", "tie_word_embeddings": True,
            "text_config": {
                "model_type": "qwen3_vl_text", "vocab_size": 151_936, "hidden_size": 2560, "intermediate_size": 9728,
                "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
                "tie_word_embeddings": True, "rope_theta": 5_000_000,
                "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
            },
            "vision_config": {
                "model_type": "qwen3_vl", "depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16,
                "out_hidden_size": 2560, "deepstack_visual_indexes": [5, 11, 17], "num_position_embeddings": 2304,
            },
        }
    )  # fmt: skip
    assert (layout.num_layers, layout.num_vision_blocks, layout.tied) == (36, 24, True)
    assert layout.num_elements == 4_437_815_808


def test_published_qwen3_configuration_gives_the_published_size() -> None:
    """Qwen3-8B's config.json, sizes alone: 8.2 B parameters, 36 layers, not tied."""
    layout = layout_from_config(
        {
            "model_type": "qwen3", "vocab_size": 151_936, "hidden_size": 4096, "intermediate_size": 12_288,
            "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
            "tie_word_embeddings": False, "attention_bias": False, "rope_theta": 1_000_000,
        }
    )  # fmt: skip
    assert (layout.num_layers, layout.num_vision_blocks, layout.tied) == (36, 0, False)
    assert layout.num_elements == 8_190_735_360


@pytest.mark.parametrize("kind", ["qwen2", "qwen3_vl", "pocket"])
def test_layout_is_whole_while_zero3_is_on(kind: str, request: pytest.FixtureRequest) -> None:
    """Then Transformers would cut what it builds over the processes: parameters of no elements, or no model at all."""
    from transformers.integrations import HfDeepSpeedConfig

    directory = request.getfixturevalue(f"{kind}_checkpoint")
    expected = layout_of(directory)
    zero3 = HfDeepSpeedConfig({"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": 1})
    assert zero3.is_zero3()
    assert layout_of(directory) == expected


def test_a_text_models_tokenizer_stands_in_for_a_processor(qwen2_checkpoint: Path) -> None:
    tokenizer = load_processor(qwen2_checkpoint)
    messages = [[{"role": "user", "content": text}] for text in ("What is 3 + 2 ?", "Where is the red circle ?")]
    batch: Any = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, padding=True, return_dict=True, return_tensors="pt"
    )
    assert batch["attention_mask"][:, 0].tolist() == [1, 0] and batch["attention_mask"][:, -1].all()
    reply = load_model(qwen2_checkpoint).generate(**batch, max_new_tokens=3, do_sample=False)
    assert reply.shape[1] > batch["input_ids"].shape[1]


def test_qwen3_vl_sees_an_image(qwen3_vl_checkpoint: Path) -> None:
    processor, model = load_processor(qwen3_vl_checkpoint), load_model(qwen3_vl_checkpoint)
    text = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it ?"}]}],
        add_generation_prompt=True,
    )
    logits = [
        model(**processor(text=[text], images=[Image.new("RGB", (64, 64), colour)], return_tensors="pt")).logits[0, -1]
        for colour in ("red", "blue")
    ]
    assert not torch.allclose(*logits)
