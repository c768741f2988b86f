"""The checks of reading pairs find what is planted, and nothing in what the builder draws."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_builders.ocr.build import OcrArguments, open_ocr_pairs
from data_builders.ocr.check import DEFECTS, RECORD, check_ocr, read_words, tesseract_available, unseen
from data_builders.ocr.draw import draw_ink, load_font, open_font
from data_builders.pairs.defects import DEFECTS as PAIR_DEFECTS
from data_builders.pairs.pair import Pair
from data_builders.pairs.pictures import PairPictures
from data_builders.pairs.sets import Drawing, with_grid
from data_builders.pairs.vision_grid import PROCESSORS
from data_builders.vocabulary.command import split_of_word

GRID = PROCESSORS["qwen2_5_vl"]

needs_tesseract = pytest.mark.skipif(not tesseract_available(), reason="needs the program tesseract")


def write_pair(directory: Path, index: int, **options: Any) -> Pair:
    drawing = Drawing(task="ocr", seed=0, split="test", grid=GRID, work_dir=directory)
    arguments = OcrArguments(**options)
    drawn = open_ocr_pairs(arguments, drawing)(index)
    (directory / "images").mkdir(exist_ok=True)
    for name, image in drawn.files.items():
        assert isinstance(image, Image.Image)
        image.save(directory / name)
    return with_grid(drawn.pair, arguments.size, GRID)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Pair]:
    """A pair that is only looked at."""
    directory = tmp_path_factory.mktemp("sound")
    return directory, write_pair(directory, 0)


def kinds_of(directory: Path, pair: Pair) -> set[str]:
    return {kind for kind, _ in check_ocr(PairPictures(directory, pair))}


def edit(directory: Path, name: str, change: Callable[[np.ndarray], Any]) -> None:
    pixels = np.array(Image.open(directory / name).convert("RGB"))
    change(pixels)
    Image.fromarray(pixels).save(directory / name)


def with_meta(pair: Pair, **changes: Any) -> Pair:
    return replace(pair, meta={**(pair.meta or {}), **changes})


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"image_size": "384", "distractor": "similar", "palette": "black_on_white"},
        {"image_size": "400x200", "distractor": "length", "min_contrast": 3.0},
        {"fonts": ["DejaVuSerif-Italic", "STIXGeneral", "cmr10", "DejaVuSansMono-BoldOblique"]},
    ],
)
def test_what_the_builder_draws_has_no_defect(tmp_path: Path, options: dict[str, Any]) -> None:
    for index in range(4):
        pair = write_pair(tmp_path, index, **options)
        assert list(check_ocr(PairPictures(tmp_path, pair))) == []
        assert unseen(pair) is None


def far_corner(pair: Pair) -> tuple[int, int]:
    """A pixel away from both words."""
    return (0 if (pair.meta or {})["baseline"] > 150 else -1), 0


def test_a_pixel_beside_the_words_is_found(tmp_path: Path) -> None:
    pair = write_pair(tmp_path, 0)
    row, column = far_corner(pair)
    edit(tmp_path, pair.target_image, lambda pixels: pixels.__setitem__((row, column, 0), pixels[row, column, 0] ^ 1))
    assert {"page_not_blank", "differs_outside_words", "wrong_ink_box"} <= kinds_of(tmp_path, pair)


def test_the_same_blot_in_both_pictures_is_found(tmp_path: Path) -> None:
    pair = write_pair(tmp_path, 0)
    row, column = far_corner(pair)
    for name in pair.images:
        edit(tmp_path, name, lambda pixels: pixels.__setitem__((row, column), 128))
    found = kinds_of(tmp_path, pair)
    assert "page_not_blank" in found
    assert "differs_outside_words" not in found


def test_a_pixel_within_a_word_is_found(tmp_path: Path) -> None:
    pair = write_pair(tmp_path, 0)
    left, top, right, bottom = (pair.meta or {})["source_ink_box"]
    row, column = (top + bottom) // 2, (left + right) // 2
    edit(tmp_path, pair.source_image, lambda pixels: pixels.__setitem__((row, column, 1), pixels[row, column, 1] ^ 4))
    assert "wrong_rendering" in kinds_of(tmp_path, pair)


def test_swapped_pictures_are_found(tmp_path: Path) -> None:
    pair = write_pair(tmp_path, 0)
    assert "swapped_words" in kinds_of(
        tmp_path, replace(pair, target_image=pair.source_image, source_image=pair.target_image)
    )
    assert "swapped_words" in kinds_of(
        tmp_path, replace(pair, target_answer=pair.source_answer, source_answer=pair.target_answer)
    )


def test_swapped_words_of_one_width_are_found_in_the_letters(tmp_path: Path) -> None:
    pair = write_pair(tmp_path, 0, distractor="length", fonts=["DejaVuSansMono"])
    swapped = replace(pair, target_image=pair.source_image, source_image=pair.target_image)
    assert "swapped_words" in kinds_of(tmp_path, swapped)


def test_another_word_size_place_or_colour_is_found(tmp_path: Path) -> None:
    pair = write_pair(tmp_path, 2)
    meta = pair.meta or {}
    font = open_font(Path(meta["font"]).stem)
    size = tuple(meta["image_size"])

    def draw(word: str, *, pixels: int = 0, left: int = 0, down: int = 0, ink_rgb: Any = None) -> set[str]:
        ink = draw_ink(load_font(font.path, meta["font_pixels"] + pixels), word)
        assert ink is not None
        page = Image.new("RGB", size, tuple(meta["page_rgb"]))
        box = ink.box_at(meta["left"] + left, meta["baseline"] + down)
        page.paste(tuple(ink_rgb or meta["ink_rgb"]), box, ink.mask)
        page.save(tmp_path / pair.target_image)
        return kinds_of(tmp_path, pair)

    assert draw(pair.target_answer) == set()
    assert "wrong_rendering" in draw("axolotl")
    assert {"wrong_rendering", "wrong_ink_box"} <= draw(pair.target_answer, pixels=2)
    assert {"wrong_rendering", "word_moved", "wrong_ink_box"} <= draw(pair.target_answer, left=3)
    assert {"wrong_rendering", "wrong_ink_box"} <= draw(pair.target_answer, down=-2)
    assert {"wrong_rendering", "wrong_ink_colour"} <= draw(pair.target_answer, ink_rgb=(255, 0, 255))


def test_a_word_at_the_edge_is_found(tmp_path: Path) -> None:
    pair = write_pair(tmp_path, 1, margin_pixels=4)
    distance = min((pair.meta or {})["target_ink_box"][:2])
    assert "word_cut_off" in kinds_of(tmp_path, with_meta(pair, margin_pixels=distance + 1))
    picture = Image.open(tmp_path / pair.target_image).convert("RGB")
    shifted = Image.new("RGB", picture.size, picture.getpixel((0, 0)))
    shifted.paste(picture, (-(pair.meta or {})["left"] - 5, 0))
    shifted.save(tmp_path / pair.target_image)
    assert {"word_cut_off", "word_moved", "wrong_ink_box"} <= kinds_of(tmp_path, pair)


def test_ink_that_can_hardly_be_seen_is_found(tmp_path: Path) -> None:
    pair = write_pair(tmp_path, 3, palette="black_on_white")
    faint = with_meta(pair, ink_rgb=[225, 225, 225])
    for name in pair.images:
        edit(tmp_path, name, lambda pixels: pixels.__setitem__(..., 255 - (255 - pixels.astype(int)) * 30 // 255))
    assert "illegible" in kinds_of(tmp_path, faint)


def test_words_too_small_where_the_model_sees_them_are_found(sound: tuple[Path, Pair]) -> None:
    directory, pair = sound
    assert "illegible" in kinds_of(directory, with_meta(pair, resized_size=[56, 56]))


def test_an_empty_page_is_found(tmp_path: Path) -> None:
    pair = write_pair(tmp_path, 0)
    edit(tmp_path, pair.source_image, lambda pixels: pixels.__setitem__(..., (pair.meta or {})["page_rgb"]))
    assert {"wrong_ink_box", "wrong_rendering"} <= kinds_of(tmp_path, pair)


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"target_ink_box": [0, 0, 5, 5]}, "wrong_ink_box"),
        ({"left": 0}, "word_moved"),
        ({"baseline": 3}, "word_moved"),
        ({"font_pixels": 29}, "wrong_rendering"),
        ({"font_pixels": 9_999}, "wrong_rendering"),
        ({"page_rgb": [1, 2, 3]}, "page_not_blank"),
        ({"ink_rgb": [255, 0, 255]}, "wrong_ink_colour"),
        ({"split": "train"}, "untrue_record"),
        ({"edit_distance": 1}, "untrue_record"),
        ({"distractor": "length"}, "untrue_record"),
        ({"contrast": 20.9}, "untrue_record"),
        ({"contrast": float("nan")}, "untrue_record"),
    ],
)
def test_a_record_that_is_not_true_is_found(sound: tuple[Path, Pair], changes: dict[str, Any], kind: str) -> None:
    directory, pair = sound
    assert kind in kinds_of(directory, with_meta(pair, **changes))


@pytest.mark.parametrize("name", RECORD)
def test_a_record_that_cannot_be_read_is_a_defect_and_no_crash(sound: tuple[Path, Pair], name: str) -> None:
    directory, pair = sound
    for value in (None, "x", -1.5, [], [1], {"a": 1}, [1, 2, 3, 10**9], True):
        is_font_name = name == "font" and value == "x"  # the font is known by its contents
        assert bool(kinds_of(directory, with_meta(pair, **{name: value}))) != is_font_name, value
    rest = {key: value for key, value in (pair.meta or {}).items() if key != name}
    assert kinds_of(directory, replace(pair, meta=rest)) == {"ocr_record"}


def test_without_the_font_it_is_said_and_edges_and_colours_are_still_measured(tmp_path: Path) -> None:
    copied = tmp_path / "elsewhere.ttf"
    copied.write_bytes(open_font("DejaVuSans").path.read_bytes() + b"\0")
    pair = write_pair(tmp_path, 0, fonts=[str(copied)])
    assert "the font elsewhere.ttf" in (unseen(pair) or "")
    assert kinds_of(tmp_path, pair) == set()
    swapped = replace(pair, target_image=pair.source_image, source_image=pair.target_image)
    assert kinds_of(tmp_path, swapped) == {"wrong_ink_box", "page_not_blank"}


def test_kinds_are_described_and_not_those_of_the_preflight() -> None:
    assert not set(DEFECTS) & set(PAIR_DEFECTS)


def test_words_of_another_split_are_found(sound: tuple[Path, Pair]) -> None:
    directory, pair = sound
    assert split_of_word("boson") != "test"
    assert "untrue_record" in kinds_of(directory, replace(pair, target_answer="boson"))


@needs_tesseract
def test_tesseract_reads_the_words_and_finds_another_one(tmp_path: Path) -> None:
    pair = write_pair(tmp_path, 3)
    assert list(read_words(PairPictures(tmp_path, pair))) == []
    other = replace(pair, source_answer="axolotl")
    ((kind, text),) = read_words(PairPictures(tmp_path, other))
    assert kind == "word_misread"
    assert text == f"source: {pair.source_answer!r}; expected 'axolotl'"


def test_without_tesseract_reading_is_refused_in_one_line(
    sound: tuple[Path, Pair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not tesseract_available()
    with pytest.raises(ValueError, match="tesseract is not installed"):
        list(read_words(PairPictures(*sound)))
