"""The grid of patches, computed without a processor, is the one that the processors make."""

import json
import random
from pathlib import Path

import pytest
from PIL import Image

from data_builders.pairs.vision_grid import PROCESSORS, VisionGrid, open_vision_grid, read_size


@pytest.mark.parametrize("processor", PROCESSORS)
def test_sizes_are_those_of_transformers(processor: str) -> None:
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    grid = PROCESSORS[processor]
    rng = random.Random(processor)
    sizes = [(rng.randint(1, 3000), rng.randint(1, 3000)) for _ in range(2000)]
    sizes += [(384, 384), (1, 1), (28, 5600), (5600, 28), (14, 42), (12_000, 9_000), (70, 98)]
    for width, height in sizes:
        if max(width, height) > 200 * min(width, height):
            continue
        expected = smart_resize(
            height, width, grid.patch_size * grid.merge_size, min_pixels=grid.min_pixels, max_pixels=grid.max_pixels
        )
        assert grid.resized((width, height)) == expected[::-1]


@pytest.mark.parametrize("checkpoint", ["pocket_checkpoint", "qwen2_vl_checkpoint", "qwen3_vl_checkpoint"])
def test_patches_are_those_of_a_checkpoints_processor(checkpoint: str, request: pytest.FixtureRequest) -> None:
    from transformers import AutoImageProcessor

    directory: Path = request.getfixturevalue(checkpoint)
    grid = open_vision_grid(str(directory))
    processor = AutoImageProcessor.from_pretrained(directory)
    for size in ((84, 84), (30, 20), (200, 120), (57, 400), (640, 480)):
        cut = processor(images=[Image.new("RGB", size)], return_tensors="pt")["image_grid_thw"][0].tolist()
        assert (1, *grid.patches(size)) == tuple(cut)


def test_the_pocket_checkpoint_has_the_grid_that_goes_by_its_name(pocket_checkpoint: Path) -> None:
    assert open_vision_grid(str(pocket_checkpoint)) == PROCESSORS["pocket"]


def test_both_spellings_of_a_processors_limits_are_read(tmp_path: Path) -> None:
    numbers = {"patch_size": 14, "merge_size": 2}
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps({**numbers, "min_pixels": 3136, "max_pixels": 12_845_056}))
    assert open_vision_grid(str(tmp_path)) == PROCESSORS["qwen2_5_vl"]
    path.write_text(json.dumps({**numbers, "size": {"shortest_edge": 3136, "longest_edge": 12_845_056}}))
    assert open_vision_grid(str(tmp_path)) == PROCESSORS["qwen2_5_vl"]


def test_what_is_no_processor_of_qwens_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"neither a checkpoint's folder nor one of .* did you mean 'qwen2_5_vl'"):
        open_vision_grid("qwen25vl")
    with pytest.raises(ValueError, match=r"holds neither preprocessor_config\.json nor processor_config\.json"):
        open_vision_grid(str(tmp_path))
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps({"size": {"height": 336, "width": 336}, "patch_size": 14}))
    with pytest.raises(ValueError, match="its image processor has no 'merge_size'; expected one of Qwen's"):
        open_vision_grid(str(tmp_path))
    for garbled in ("{", "[1]", '{"patch_size": "x", "merge_size": 2, "min_pixels": 1, "max_pixels": 2}'):
        path.write_text(garbled)
        with pytest.raises(ValueError, match=r"preprocessor_config\.json"):
            open_vision_grid(str(tmp_path))


def test_a_picture_that_no_processor_takes_is_named() -> None:
    grid = VisionGrid(patch_size=14, merge_size=2, min_pixels=1, max_pixels=10**6)
    with pytest.raises(ValueError, match="picture of 4020 x 20: its sides differ by more than 200 times"):
        grid.resized((4020, 20))


def test_sizes_are_read_as_a_side_or_as_width_and_height() -> None:
    assert read_size("image_size", "448") == read_size("image_size", 448) == (448, 448)
    assert read_size("image_size", "480x320") == (480, 320)
    for text in ("", "0", "x320", "480x", "-4", "4.5", "480 x 320", "1x2x3"):
        with pytest.raises(ValueError, match=r"image_size is .*; expected pixels, such as 448"):
            read_size("image_size", text)
