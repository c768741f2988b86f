import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from models.families import FAMILIES, QWEN2_5_VL
from models.layout import head_size, layout_from_config, layout_from_shapes, layout_of, shapes_from_config
from models.loading import load_model
from models.tying import is_tied
from tracking.command import REPOSITORY_ROOT, raised_by_us

FRANKENSTEIN_3B = REPOSITORY_ROOT / "configs" / "frankenstein_3b" / "config.json"

TEXT = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 3, 3]},
}
VISION = {
    "qwen2_5_vl": {
        "depth": 2,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_heads": 2,
        "out_hidden_size": 32,
        "fullatt_block_indexes": [1],
    },
    "qwen2_vl": {"depth": 2, "embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2, "num_heads": 2},
}


def small_config(model_type: str, *, tied: bool) -> dict[str, Any]:
    """A `config.json` as Transformers writes it for a model of this family small enough to build."""
    config = AutoConfig.for_model(
        model_type,
        text_config={**TEXT, "tie_word_embeddings": tied},
        vision_config=VISION[model_type],
        tie_word_embeddings=tied,
    )
    written: dict[str, Any] = json.loads(config.to_json_string())
    return written


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("model_type", ["qwen2_5_vl", "qwen2_vl"])
def test_layout_is_the_real_models_parameters(tmp_path: Path, model_type: str, tied: bool) -> None:
    config = small_config(model_type, tied=tied)
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(tmp_path))
    real = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    layout = layout_of(tmp_path)
    assert {parameter.name: parameter.shape for parameter in layout} == real
    assert layout.num_elements == sum(parameter.numel() for parameter in model.parameters())
    assert layout.tied == tied == ("lm_head.weight" not in real)
    assert (layout.num_layers, layout.num_vision_blocks) == (3, 2)
    assert layout_of(tmp_path / "config.json") == layout


def test_flat_configuration_of_published_checkpoints_gives_the_same_layout() -> None:
    nested = small_config("qwen2_5_vl", tied=True)
    flat = {"model_type": "qwen2_5_vl", "tie_word_embeddings": True, "vision_config": VISION["qwen2_5_vl"]}
    flat |= {key: value for key, value in TEXT.items() if key != "rope_parameters"}
    flat |= {"rope_theta": 10_000.0, "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}}
    assert layout_from_config(flat) == layout_from_config(nested)


@pytest.mark.parametrize("text", [None, False, True])
@pytest.mark.parametrize("top", [None, False, True])
def test_tying_is_read_from_either_configuration_as_transformers_does(top: bool | None, text: bool | None) -> None:
    config = small_config("qwen2_5_vl", tied=False)
    for part, tied in ((config, top), (config["text_config"], text)):
        part.pop("tie_word_embeddings", None)
        if tied is not None:
            part["tie_word_embeddings"] = tied
    assert is_tied(config) == layout_from_config(config).tied


def test_layout_takes_no_memory_and_leaves_the_random_state() -> None:
    config = small_config("qwen2_5_vl", tied=True)
    config["text_config"]["vocab_size"] = 50_000_000_000  # 3 TiB if it were real
    before = torch.get_rng_state()
    assert layout_from_config(config).parameters["model.language_model.embed_tokens.weight"].shape[0] == 50_000_000_000
    assert torch.equal(torch.get_rng_state(), before)


def test_published_3b_configuration_has_its_published_size() -> None:
    if not FRANKENSTEIN_3B.is_file():
        pytest.skip(f"{FRANKENSTEIN_3B} is absent")
    layout = layout_of(FRANKENSTEIN_3B)
    assert (layout.num_layers, layout.tied, layout.num_elements) == (36, True, 3_754_622_976)


@pytest.mark.parametrize(
    ("model_type", "message"),
    [
        ("llama", f"'llama' is not supported; supported are {', '.join(sorted(FAMILIES))}"),
        ("qwen2.5_vl", "did you mean 'qwen2_5_vl'"),
    ],
)
def test_unsupported_family_names_the_supported_ones(tmp_path: Path, model_type: str, message: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(ValueError, match=message):
        layout_of(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "does not exist; expected a checkpoint folder"),
        ('{"model_type": ', "is not readable as JSON"),
        ("", "is not readable as JSON"),
        ("\udcff", "is not readable as JSON"),
        ('["qwen2_vl"]', "is a list; expected a JSON object"),
        ('{"hidden_size": 8}', "has no model_type"),
    ],
)
def test_missing_or_malformed_configuration_is_named(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=message) as caught:
        layout_of(tmp_path)
    assert str(tmp_path / "config.json") in str(caught.value) and "\n" not in str(caught.value)


def test_parameter_that_fits_no_region_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"'model\.audio_tower\.conv\.weight' fits no decoder layer and no region"):
        layout_from_shapes(QWEN2_5_VL, {"model.audio_tower.conv.weight": (2, 2)}, tied=True)


def test_the_width_of_a_head_is_named_or_divided_nested_or_flat() -> None:
    text = {"hidden_size": 2048, "num_attention_heads": 16}
    assert head_size(text) == head_size({"text_config": text}) == 128
    assert head_size({"text_config": {**text, "head_dim": 96}}) == head_size({**text, "head_dim": 96}) == 96
    assert head_size({**text, "head_dim": None}) == 128


WRONG_VALUES: dict[str, tuple[str, Any, str]] = {
    "cut model": (
        "text_config.num_hidden_layers",
        2,
        r"num_hidden_layers` \(2\) must be equal to .*layer_types` \(3\)",
    ),
    "no layers": ("text_config.num_hidden_layers", 0, r"num_hidden_layers` \(0\)"),
    "text for a number": ("text_config.num_hidden_layers", "3", "'num_hidden_layers' expected int, got str"),
    "null": ("text_config.num_hidden_layers", None, "'num_hidden_layers' expected int, got NoneType"),
    "list for a part": ("text_config", [], "Field 'text_config'"),
    "depth": ("vision_config.depth", "2", "'depth' expected int"),
    "dtype": ("dtype", "float5", "AttributeError: .*float5"),
    "activation": ("text_config.hidden_act", "nope", "KeyError: 'nope'"),
    "tied": ("tie_word_embeddings", "true", "'tie_word_embeddings' expected bool"),
    "width": ("text_config.hidden_size", 33, "hidden_size must be divisible"),
    "endless": ("text_config.hidden_size", float("inf"), "'hidden_size' expected int, got float"),
    "heads": ("text_config.num_attention_heads", 0, "ZeroDivisionError"),
    "odd heads": ("text_config.head_dim", 7, "even rotary dimension"),
}


@pytest.mark.parametrize("name", WRONG_VALUES)
def test_a_wrong_value_is_one_line_with_the_file_and_the_reason(tmp_path: Path, name: str) -> None:
    place, value, reason = WRONG_VALUES[name]
    config = small_config("qwen2_5_vl", tied=True)
    *sections, key = place.split(".")
    (config[sections[0]] if sections else config)[key] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    begin = rf"^{re.escape(str(tmp_path))}/config.json: Transformers cannot build the model that it describes \(.*"
    with pytest.raises(ValueError, match=begin + reason) as caught:
        layout_of(tmp_path)
    assert "\n" not in str(caught.value) and raised_by_us(caught.value)


@pytest.mark.parametrize(("key", "value"), [("num_hidden_layers", "x"), ("num_attention_heads", 0)])
def test_a_family_without_a_record_is_refused_alike(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=r"^config\.json: Transformers cannot build"):
        shapes_from_config({"model_type": "llama", key: value}, auto_class="AutoModelForCausalLM")


def test_a_text_only_type_on_the_configuration_of_a_vlm_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**small_config("qwen2_5_vl", tied=True), "model_type": "qwen2"}))
    with pytest.raises(ValueError, match="model_type 'qwen2' is a text-only model, but text_config describes"):
        layout_of(tmp_path)


def test_loading_names_the_file_too(tmp_path: Path) -> None:
    config = small_config("qwen2_5_vl", tied=True)
    config["text_config"]["num_hidden_layers"] = 2
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"/config\.json: Transformers cannot build .*num_hidden_layers` \(2\)"):
        load_model(tmp_path)
