"""Gemma 4, small and random, built like E2B and like 31B: every tensor has one place and one name."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from eval.replies.engines import check_platform
from eval.replies.pictures import TokenLimits, num_picture_tokens, pixel_limits, resized_size
from eval.tower.command import shown_limits
from merge.recipes.plan import make_plan
from merge.recipes.recipe import recipe_from_pattern
from models.blocks import BLOCKS, OWN_REGIONS, REGIONS, block_names, make_partition, resolve
from models.checkpoint import open_checkpoint
from models.completeness import check_against_config, check_complete
from models.families import GEMMA4
from models.layout import layer_kind, layout_from_config, layout_of, read_model_config, stored_tensors
from models.loading import load_model, load_processor
from tests.gemma4 import KINDS, MAX_SOFT_TOKENS, NUM_BLOCKS, NUM_LAYERS
from tests.models.damage import read_tensors, write_tensors

OF_KIND = {"small": {*REGIONS, *OWN_REGIONS} - {"head"}, "large": set(REGIONS) - {"head"}}
"""Embeddings are tied: the head is an alias."""


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def directory(kind: str, request: pytest.FixtureRequest) -> Path:
    return Path(request.getfixturevalue("gemma4_checkpoint" if kind == "small" else "gemma4_large_checkpoint"))


def test_layout_is_the_loaded_models_parameters_and_persistent_buffers(directory: Path) -> None:
    model = load_model(directory)
    layout = layout_of(directory)
    parameters = dict(model.named_parameters())
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in model.state_dict()}
    assert {p.name: p.shape for p in layout if not p.buffer} == {n: tuple(p.shape) for n, p in parameters.items()}
    assert {p.name: p.shape for p in layout if p.buffer} == {n: tuple(b.shape) for n, b in buffers.items()}
    assert buffers and layout.num_elements == model.num_parameters()
    assert (layout.num_layers, layout.num_vision_blocks, layout.tied) == (NUM_LAYERS, NUM_BLOCKS, True)
    checkpoint = open_checkpoint(directory)
    assert set(checkpoint.tensors) == set(layout.parameters)
    assert all(torch.equal(checkpoint.tensor(name), tensor) for name, tensor in stored_tensors(model).items())
    check_complete(checkpoint, layout)
    check_against_config(checkpoint)


def test_every_tensor_is_in_exactly_one_block_or_region(kind: str, directory: Path) -> None:
    layout = layout_of(directory)
    partition = make_partition(layout.num_layers)
    expressions = [*BLOCKS, *(region for region in (*REGIONS, *OWN_REGIONS) if region in OF_KIND[kind])]
    names = [name for expression in expressions for name in resolve([expression], layout, partition).names]
    assert sorted(names) == sorted(layout.parameters)
    assert {block_names(parameter, partition) for parameter in layout} == {*BLOCKS, *OF_KIND[kind]}
    halves = [name for part in ("attn", "mlp") for name in resolve([f"llm.{part}"], layout, partition).names]
    assert sorted(halves) == sorted(resolve(["llm"], layout, partition).names)
    for layer in range(NUM_LAYERS):
        assert f"model.language_model.layers.{layer}.layer_scalar" in resolve([f"llm:{layer}"], layout, partition).names


def test_buffers_belong_to_what_they_are_part_of(gemma4_checkpoint: Path) -> None:
    layout = layout_of(gemma4_checkpoint)
    bounds = [parameter for parameter in layout if parameter.rest.endswith("input_max")]
    assert {parameter.region for parameter in bounds} == {"vision", "audio"}
    assert {parameter.index for parameter in bounds if parameter.region == "vision"} == set(range(NUM_BLOCKS))
    packed = set(resolve(["ple"], layout, make_partition(NUM_LAYERS)).names)
    assert {name.split(".")[2] for name in packed} == {
        "embed_tokens_per_layer", "per_layer_model_projection", "per_layer_projection_norm",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("family_checkpoint", "expression", "message"),
    [("qwen2", "ple", "qwen2 has no ple"), ("gemma4_large", "audio", "'audio' matches no parameter of this model")],
)
def test_regions_that_a_model_lacks_are_refused(
    family_checkpoint: str, expression: str, message: str, request: pytest.FixtureRequest
) -> None:
    layout = layout_of(request.getfixturevalue(f"{family_checkpoint}_checkpoint"))
    with pytest.raises(ValueError, match=message) as caught:
        resolve([expression], layout, make_partition(layout.num_layers))
    assert "\n" not in str(caught.value)


def test_layers_are_compared_with_those_of_their_kind_alone(kind: str, directory: Path, tmp_path: Path) -> None:
    config = read_model_config(directory)
    kinds = [layer_kind(config, GEMMA4, layer) for layer in range(NUM_LAYERS)]
    assert len(set(kinds)) == (4 if kind == "small" else 2)
    damaged = Path(shutil.copytree(directory, tmp_path / "damaged"))
    tensors = read_tensors(damaged)
    del tensors["model.language_model.layers.0.self_attn.k_proj.weight"]
    write_tensors(damaged, tensors)
    with pytest.raises(ValueError, match=r"lacks 'model\.language_model\.layers\.0\.self_attn\.k_proj\.weight'"):
        check_against_config(open_checkpoint(damaged))


def test_donors_whose_layers_are_of_other_kinds_are_refused(qwen2_checkpoint: Path, tmp_path: Path) -> None:
    """Also where all shapes are the same."""
    other = Path(shutil.copytree(qwen2_checkpoint, tmp_path / "other"))
    config = json.loads((other / "config.json").read_text())
    config["layer_types"][0] = "sliding_attention"
    (other / "config.json").write_text(json.dumps(config))
    recipe = recipe_from_pattern(
        "in:rl:in", donors=[f"in={qwen2_checkpoint}", f"rl={other}"], rest=["in"], partition="thirds"
    )
    with pytest.raises(ValueError, match="decoder layer 0 is of the kind 'full_attention' in donor in and") as caught:
        make_plan(recipe)
    assert "\n" not in str(caught.value)


def test_the_processor_shows_a_picture(kind: str, directory: Path) -> None:
    processor: Any = load_processor(directory)
    model = load_model(directory).eval()
    text = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it ?"}]}],
        add_generation_prompt=True,
    )
    logits = [
        model(**processor(text=[text], images=[Image.new("RGB", (64, 64), colour)], return_tensors="pt")).logits[0, -1]
        for colour in ("red", "blue")
    ]
    assert not torch.allclose(*logits)


def test_layers_that_share_keys_and_values_have_none_of_their_own_at_scale() -> None:
    """Sizes like those of an E2B, without the tower for sound."""
    text = {
        "model_type": "gemma4_text", "vocab_size": 262_144, "hidden_size": 1536, "intermediate_size": 6144,
        "num_hidden_layers": 35, "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 256,
        "global_head_dim": 512, "hidden_size_per_layer_input": 256, "num_kv_shared_layers": 20,
        "use_double_wide_mlp": True, "vocab_size_per_layer_input": 262_144,
        "layer_types": (["sliding_attention"] * 4 + ["full_attention"]) * 7,
    }  # fmt: skip
    layout = layout_from_config(
        {"model_type": "gemma4", "text_config": text, "vision_config": {}, "audio_config": None}
    )
    assert (layout.num_layers, layout.num_vision_blocks, layout.tied) == (35, 16, True)
    of_ple = sum(p.num_elements for p in layout if p.region == "ple")
    assert of_ple == 262_144 * 35 * 256 + 35 * 256 * 1536 + 256
    own = {p.index for p in layout if p.rest == "self_attn.k_proj.weight" and p.region == "llm"}
    assert own == set(range(15))


def test_the_tokens_of_a_picture_are_known_from_its_size(gemma4_checkpoint: Path) -> None:
    processor: Any = load_processor(gemma4_checkpoint)
    limits = pixel_limits(processor, min_pixels=None, max_pixels=None)
    assert isinstance(limits, TokenLimits) and limits.max_tokens == MAX_SOFT_TOKENS
    for size in ((64, 64), (300, 40), (16, 1200), (1000, 700)):
        inputs = processor(text=["<|image|>"], images=[Image.new("RGB", size)], return_tensors="pt")
        assert num_picture_tokens(processor, size) == inputs["input_ids"].shape[1]
        width, height = (int(side) + 1 for side in inputs["image_position_ids"][0].amax(0))
        assert resized_size(size, limits) == (width * limits.patch_size, height * limits.patch_size)
    with pytest.raises(ValueError, match=r"at most 70.*max_soft_tokens in the checkpoint's processor_config"):
        pixel_limits(processor, min_pixels=100, max_pixels=None)


def test_vllm_is_refused_before_anything_is_loaded(gemma4_checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="vLLM is not supported for the family gemma4; use --engine huggingface"):
        check_platform(gemma4_checkpoint, otherwise="use --engine huggingface")


def test_the_probes_of_a_tower_refuse_it_in_one_line(gemma4_checkpoint: Path) -> None:
    arguments: Any = SimpleNamespace(min_pixels=None, max_pixels=None)
    with pytest.raises(ValueError, match=r"eval\.tower reads only towers") as caught:
        shown_limits(arguments, gemma4_checkpoint)
    assert "\n" not in str(caught.value)
