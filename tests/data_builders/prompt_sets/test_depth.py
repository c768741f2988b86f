"""Pictures of 16 bits, as medicine stores them, are shown with their contrast wherever a picture is opened."""

import base64
import re
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_builders.pairs.pictures import read_rgb
from data_builders.prompt_sets import depth
from data_builders.prompt_sets.depth import eight_bits, is_deep
from data_builders.prompt_sets.images import PixelLimits, open_image
from data_builders.prompt_sets.prompts import Prompt
from data_builders.recognition.coco import open_photograph
from eval.compare.page import thumbnail
from eval.replies.descriptions import _data_uri
from eval.replies.pictures import Picture, open_picture
from eval.replies.pictures import PixelLimits as ModelLimits
from eval.tasks.pictures import PictureStore
from tracking.command import REPOSITORY_ROOT
from train.running.data import DataArguments, build_dataset

SIDE = 56
"""A multiple of a cell: nothing is resized."""


def ramp(low: float, high: float) -> np.ndarray:
    """Returns values that rise from left to right."""
    return np.tile(np.linspace(low, high, SIDE), (SIDE, 1))


def as_rgb(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB")).astype(int)


EXPECTED = np.repeat(np.rint(ramp(0, 255)).astype(int)[..., None], 3, axis=2)


@pytest.fixture
def deep_png(tmp_path: Path) -> Path:
    """A PNG of 16 bits whose values are those of a 12-bit scanner."""
    path = tmp_path / "scan.png"
    Image.fromarray(np.rint(ramp(300, 4095)).astype(np.uint16)).save(path)
    with Image.open(path) as stored:
        assert stored.mode == "I;16"
        assert np.asarray(stored.convert("RGB")).min() == 255, "Pillow alone turns it white"
    return path


def from_data_uri(text: str) -> np.ndarray:
    return as_rgb(Image.open(BytesIO(base64.b64decode(text.partition("base64,")[2]))))


def of_store(path: Path) -> np.ndarray:
    directory = path.parent / "store"
    directory.mkdir()
    return as_rgb(Image.open(directory / PictureStore(directory).add(path.read_bytes())))


def of_training(path: Path) -> np.ndarray:
    flat = path.with_name("flat.png")
    Image.new("RGB", (SIDE, SIDE), "red").save(flat)
    turned = path.with_name("turned.png")
    with Image.open(path) as image:
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(turned)
    prompt = Prompt(
        id="a",
        ability="vision",
        question="What ?",
        answer="1",
        answer_kind="number",
        images=(path.name, flat.name, turned.name),
    )
    data = DataArguments(prompts=str(path.parent), split="rl")
    (row,) = build_dataset([prompt], [0], data, with_response=False)
    assert (as_rgb(row["images"][1]) == (255, 0, 0)).all()
    assert np.abs(as_rgb(row["images"][2]) - EXPECTED[:, ::-1]).max() <= 1
    return as_rgb(row["images"][0])


MODEL_LIMITS = ModelLimits(min_pixels=28 * 28, max_pixels=10**6, patch_size=14)
OPENERS: dict[str, Callable[[Path], np.ndarray]] = {
    "rl data, a path": lambda path: as_rgb(open_image(str(path), path.parent, PixelLimits())),
    "rl data, bytes": lambda path: as_rgb(open_image(path.read_bytes(), None, PixelLimits())),
    "rl data, base64": lambda path: as_rgb(
        open_image(base64.b64encode(path.read_bytes()).decode(), None, PixelLimits())
    ),
    "evaluation": lambda path: as_rgb(open_picture(Picture(path), MODEL_LIMITS)),
    "benchmark": of_store,
    "description": lambda path: from_data_uri(_data_uri(path.read_bytes())),
    "flipped prompts": lambda path: from_data_uri(thumbnail(path)[0]),
    "pairs": lambda path: read_rgb(path).astype(int),
    "photographs": lambda path: as_rgb(open_photograph(path.read_bytes(), (SIDE, SIDE)).picture),
    "training": of_training,
}


@pytest.mark.parametrize("opener", OPENERS)
def test_a_16_bit_picture_keeps_its_contrast_wherever_it_is_opened(opener: str, deep_png: Path) -> None:
    assert np.abs(OPENERS[opener](deep_png) - EXPECTED).max() <= 1


class RecordedError(Exception):
    """Ends a call with what the processor was given."""

    def __init__(self, images: list[Image.Image]) -> None:
        self.images = images


class Recorder:
    """Stands before a processor and records the images it is given."""

    def __init__(self, processor: Any) -> None:
        self.tokenizer = processor.tokenizer

    def __call__(self, *, images: list[Any], **_: Any) -> None:
        nested = isinstance(images[0], list)  # the pictures of each prompt, as some processors expect them
        raise RecordedError([image for own in images for image in own] if nested else images)


def test_probes_and_replies_give_the_processor_the_same_picture(deep_png: Path, pocket_checkpoint: Path) -> None:
    from analyze.attention.replies import read_reply
    from analyze.skip.generation import _tokenize
    from eval.replies.generation import generate
    from models.loading import load_processor

    recorder: Any = Recorder(load_processor(pocket_checkpoint))
    calls: list[Callable[[], Any]] = [
        lambda: generate(None, recorder, ["x"], [[deep_png]], {}),  # type: ignore[arg-type]
        lambda: _tokenize(recorder, ["x"], [[deep_png]], [0]),
        lambda: read_reply(
            recorder,
            text="red",
            question="red",
            image_paths=[deep_png],
            reply="red",
            vision_ids=(),
            picture_fields=(),
            mark_ids=(),
        ),
    ]
    for call in calls:
        with pytest.raises(RecordedError) as given:
            call()
        (image,) = given.value.images
        assert np.abs(as_rgb(image) - EXPECTED).max() <= 1


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        (ramp(-1024, 3071), np.int32, ramp(0, 255)),
        (ramp(0.0, 1.0), np.float32, ramp(0, 255)),
        (ramp(-1e6, 1e6), np.float32, ramp(0, 255)),
        (ramp(0, 255), np.uint16, ramp(0, 255)),
        (ramp(20, 100), np.uint16, ramp(20, 100)),
        (ramp(20, 100), np.int32, ramp(20, 100)),
        (np.full((SIDE, SIDE), 65535), np.uint16, np.full((SIDE, SIDE), 255)),
        (np.zeros((SIDE, SIDE)), np.uint16, np.zeros((SIDE, SIDE))),
    ],
)
def test_each_mode_is_scaled_by_its_range_and_what_fits_is_kept(
    values: np.ndarray, kind: type, expected: np.ndarray
) -> None:
    rounded = values if kind is np.float32 else np.rint(values)
    image = Image.fromarray(rounded.astype(kind))
    assert is_deep(image)
    shown = eight_bits(image)
    assert shown.mode == "L" and np.abs(np.asarray(shown).astype(int) - expected).max() <= 1


def test_values_that_are_no_numbers_do_not_hide_the_others() -> None:
    values = ramp(10, 1000).astype(np.float32)
    values[0, :2] = (np.nan, np.inf)
    shown = np.asarray(eight_bits(Image.fromarray(values))).astype(int)
    assert np.abs(shown[1] - np.rint(ramp(255 * 10 / 1000, 255)[1])).max() <= 1


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK"])
def test_a_picture_of_8_bits_is_left_as_it_is(mode: str) -> None:
    image = Image.effect_noise((20, 20), 50).convert("RGB").convert(mode)
    assert eight_bits(image) is image


def test_it_is_told_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(depth, "_told", Event())
    for _ in range(3):
        eight_bits(Image.fromarray(np.rint(ramp(300, 4095)).astype(np.uint16)))
    told = capsys.readouterr().err
    assert told.count("note: ") == 1 and "mode I;16, values 300 to 4095" in told


def test_no_module_of_the_packages_shows_a_picture_without_scaling_it() -> None:
    """A new place that opens a picture must not bring the fault back; it can import `eight_bits`."""
    direct = re.compile(r'(?:Image\.open\([^)]*\)|\b(?:file|image|opened|picture))\.convert\("RGB"\)')
    packages = ("data_builders", "merge", "eval", "analyze", "train")
    found = {
        f"{path.relative_to(REPOSITORY_ROOT)}: {line.strip()}"
        for package in packages
        for path in (REPOSITORY_ROOT / package).rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if direct.search(line) and "eight_bits" not in line
    }
    only_decoded = {'analyze/probes/inputs.py: opened.convert("RGB")'}
    assert found == only_decoded
