"""InternVL in the layout of Transformers: names, decoders, the tied head, tiles, and what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from eval.replies.pictures import (
    Picture,
    TileLimits,
    num_picture_tokens,
    open_picture,
    pixel_limits,
    resized_size,
)
from models.blocks import BLOCKS, REGIONS, make_partition, resolve
from models.checkpoint import open_checkpoint, write_like
from models.completeness import check_against_config, check_complete
from models.families import INTERNVL
from models.layout import layout_from_config, layout_of
from models.loading import load_model, load_processor
from tests.small_internvl import MAX_TILES, TILE, TILE_TOKENS, build_internvl_tokenizer, internvl_config, write_internvl

WEIGHTS_FILE = "model.safetensors"
SIZES = [(28, 28), (20, 24), (56, 28), (28, 90), (56, 56), (57, 41), (200, 40), (64, 96), (30, 300)]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return build_internvl_tokenizer()


def published(name: str) -> str:
    """Returns a canonical name as InternVL's files on the hub spell it."""
    if name.startswith("lm_head."):
        return f"language_model.{name}"
    return name.removeprefix("model.").replace("language_model.", "language_model.model.")


def respell(source: Path, target: Path, spell: Callable[[str], str]) -> Path:
    shutil.copytree(source, target)
    checkpoint = open_checkpoint(source)
    tensors = {spell(name): checkpoint.tensor(name) for name in checkpoint.tensors}
    save_file(tensors, target / WEIGHTS_FILE, metadata={"format": "pt"})
    return target


@pytest.mark.parametrize(
    "spell",
    [published, str, lambda name: name.replace("language_model.", "language_model.model.")],
    ids=["hub", "memory", "zero.Init"],
)
def test_every_spelling_that_transformers_loads_has_one_name(
    spell: Callable[[str], str], internvl_checkpoint: Path, tmp_path: Path
) -> None:
    respelt = open_checkpoint(respell(internvl_checkpoint, tmp_path / "respelt", spell))
    start = open_checkpoint(internvl_checkpoint)
    assert {name: bytes(start.data(name)) for name in start.tensors} == {
        name: bytes(respelt.data(name)) for name in respelt.tensors
    }
    loaded = dict(load_model(respelt.directory).named_parameters())
    assert loaded.keys() == start.tensors.keys() and all(torch.equal(start.tensor(n), loaded[n]) for n in loaded)
    (tmp_path / "again").mkdir()
    write_like(tmp_path / "again", start=respelt, weights=start)
    assert (tmp_path / "again" / WEIGHTS_FILE).read_bytes() == (tmp_path / "respelt" / WEIGHTS_FILE).read_bytes()


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("language_model.model.layers.23.self_attn.q_proj.bias", ("llm", 23, "self_attn.q_proj.bias")),
        ("language_model.model.embed_tokens.weight", ("embed", None, "weight")),
        ("language_model.model.norm.weight", ("norm", None, "weight")),
        ("language_model.lm_head.weight", ("head", None, "weight")),
        ("vision_tower.encoder.layer.11.lambda_1", ("vision", 11, "lambda_1")),
        ("vision_tower.encoder.layer.11.attention.q_proj.bias", ("vision", 11, "attention.q_proj.bias")),
        ("vision_tower.embeddings.cls_token", ("vision", None, "cls_token")),
        ("vision_tower.embeddings.position_embeddings", ("vision", None, "position_embeddings")),
        ("vision_tower.layernorm.weight", ("vision", None, "weight")),
        ("multi_modal_projector.linear_1.bias", ("projector", None, "linear_1.bias")),
    ],
)  # fmt: skip
def test_published_names_have_their_place(name: str, place: tuple[str, int | None, str]) -> None:
    assert INTERNVL.place(INTERNVL.canonical(name)) == place


def test_published_configuration_gives_the_published_size() -> None:
    """InternVL3-1B-hf, sizes alone: 24 layers of Qwen2.5-0.5B and 24 blocks of InternViT-300M, 938 M parameters."""
    layout = layout_from_config(
        {
            "model_type": "internvl", "tie_word_embeddings": False,
            "text_config": {
                "model_type": "qwen2", "vocab_size": 151_674, "hidden_size": 896, "intermediate_size": 4864,
                "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
            },
            "vision_config": {
                "model_type": "internvl_vision", "hidden_size": 1024, "intermediate_size": 4096,
                "num_hidden_layers": 24, "num_attention_heads": 16, "attention_bias": True,
            },
        }
    )  # fmt: skip
    assert (layout.num_layers, layout.num_vision_blocks, layout.tied) == (24, 24, False)
    assert round(layout.num_elements / 1e6) == 938


@pytest.mark.parametrize("decoder", ["qwen3", "llama"])
def test_other_decoders_are_placed_saved_and_loaded(decoder: str, tokenizer: Any, tmp_path: Path) -> None:
    """With tied embeddings, as InternVL 3.5's smaller models have them, and a tower with norms of queries and keys."""
    tower = {"norm_type": "rms_norm", "use_qk_norm": True, "use_mean_pooling": False}
    directory = write_internvl(tmp_path / decoder, tokenizer, decoder=decoder, tied=True, **tower)
    layout, checkpoint = layout_of(directory), open_checkpoint(directory)
    check_complete(checkpoint, layout)
    check_against_config(checkpoint)
    model = load_model(directory)
    assert set(layout.parameters) == {name for name, _ in model.named_parameters()} and layout.tied
    partition = make_partition(layout.num_layers)
    names = [
        name for expression in (*BLOCKS, *REGIONS) if expression != "head"
        for name in resolve([expression], layout, partition).names
    ]  # fmt: skip
    assert sorted(names) == sorted(layout.parameters)
    vision = {name for name in layout.parameters if name.startswith("model.vision_tower.")}
    assert set(resolve(["vision"], layout, partition).names) == vision
    assert any("q_norm" in name for name in resolve(["vision:1"], layout, partition).names)


def test_what_has_another_layout_or_decoder_is_refused_in_one_line(internvl_checkpoint: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(internvl_checkpoint, tmp_path / "checkpoint"))
    path = directory / "config.json"
    config = json.loads(path.read_text())
    cases = [
        ({**config, "model_type": "internvl_chat", "auto_map": {}}, r"'internvl_chat' is .* runs code .* ends in -hf"),
        ({**config, "text_config": {**config["text_config"], "model_type": "qwen3_moe"}},
         r"its decoder is a 'qwen3_moe' \(text_config\.model_type\); .* qwen2, qwen3, llama"),
    ]  # fmt: skip
    for changed, message in cases:
        path.write_text(json.dumps(changed))
        for read in (open_checkpoint, layout_of, load_model, load_processor):
            with pytest.raises(ValueError, match=message) as caught:
                read(directory)
            assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_a_head_of_its_own_is_read_without_a_flag_as_the_published_files_have_it(
    internvl_checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = Path(shutil.copytree(internvl_checkpoint, tmp_path / "checkpoint"))
    path = directory / "config.json"
    config = json.loads(path.read_text())
    del config["tie_word_embeddings"]
    path.write_text(json.dumps(config))
    checkpoint = open_checkpoint(directory)
    check_complete(checkpoint, layout_of(directory))
    check_against_config(checkpoint)
    model = load_model(directory)
    assert not layout_of(directory).tied and model.config.tie_word_embeddings is False
    assert torch.equal(model.get_output_embeddings().weight, checkpoint.tensor("lm_head.weight"))
    weights = load_file(directory / WEIGHTS_FILE)
    (head,) = [name for name in weights if "lm_head" in name]
    save_file({name: t for name, t in weights.items() if name != head}, directory / WEIGHTS_FILE, {"format": "pt"})
    assert layout_of(directory).tied
    tied = load_model(directory)
    assert tied.get_output_embeddings().weight is tied.get_input_embeddings().weight


def picture(size: tuple[int, int]) -> Image.Image:
    return Image.new("RGB", size, (200, 30, 30))


def test_tiles_and_tokens_of_a_picture_are_those_of_the_processor(internvl_checkpoint: Path) -> None:
    processor: Any = load_processor(internvl_checkpoint)
    limits = pixel_limits(processor, min_pixels=None, max_pixels=None)
    assert limits == TileLimits(tile_width=TILE, tile_height=TILE, min_tiles=1, max_tiles=MAX_TILES)
    numbers = set()
    for size in SIZES:
        inputs = processor(text=["<IMG_CONTEXT>"], images=[picture(size)], return_tensors="pt")
        columns, rows = limits.arrangement(size)
        num_tiles = len(inputs["pixel_values"])
        assert num_tiles == columns * rows + (columns * rows > 1)
        assert num_picture_tokens(processor, size) == inputs["input_ids"].shape[1] == 2 + TILE_TOKENS * num_tiles
        assert resized_size(size, limits) == (columns * TILE, rows * TILE)
        numbers.add(num_tiles)
    assert numbers == {1, 3, 4, 5}


def test_a_picture_keeps_its_size_and_limits_in_pixels_are_refused(internvl_checkpoint: Path, tmp_path: Path) -> None:
    processor = load_processor(internvl_checkpoint)
    limits = pixel_limits(processor, min_pixels=None, max_pixels=None)
    assert limits is not None
    see_through = Image.new("RGBA", (90, 31), (10, 10, 10, 0))
    see_through.save(tmp_path / "a.png")
    given, black = (open_picture(Picture(tmp_path / "a.png", black=black), limits) for black in (False, True))
    assert given.size == black.size == (90, 31)
    assert (given.getpixel((3, 3)), black.getpixel((3, 3))) == ((255, 255, 255), (0, 0, 0))
    with pytest.raises(ValueError, match=r"min_pixels and max_pixels have no effect .* \(1 to 4 of 28 x 28 pixels\)"):
        pixel_limits(processor, min_pixels=None, max_pixels=784)


def test_an_adapter_by_default_is_on_the_decoder_alone(tokenizer: Any) -> None:
    from trl import ModelConfig

    from train.freezing.adapters import adapted_modules, plan_adapters
    from train.freezing.freeze import FreezeArguments, plan_freeze

    layout = layout_from_config(internvl_config(tokenizer).to_dict())
    named = ModelConfig(use_peft=True, lora_r=4, lora_target_modules=["q_proj", "k_proj"])

    def regions(freeze: FreezeArguments) -> set[str]:
        plan = plan_adapters(plan_freeze(layout, freeze), freeze, named)
        return {layout.parameters[f"{module}.weight"].region for module in adapted_modules(plan)}

    assert regions(FreezeArguments()) == {"llm"}
    assert regions(FreezeArguments(train_only=["late", "vision"])) == {"llm", "vision"}
