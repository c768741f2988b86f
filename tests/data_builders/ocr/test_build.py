"""Reading pairs: one page, two words, and nothing else that differs."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_builders.ocr.build import OCR, OcrArguments, check_words, open_ocr_pairs
from data_builders.ocr.draw import contrast, draw_ink, draw_page, load_font, open_font
from data_builders.pairs.defects import preflight
from data_builders.pairs.files import read_pairs
from data_builders.pairs.sets import Drawing, DrawnPair, PairSetArguments, build_pair_set
from data_builders.pairs.vision_grid import PROCESSORS
from data_builders.vocabulary.command import SCIENCE_FILE, read_vocabulary, split_of_word

NUM_PAIRS = 40


def drawing(tmp_path: Path = Path(), split: str = "test", seed: int = 0, processor: str = "qwen2_5_vl") -> Drawing:
    return Drawing(task="ocr", seed=seed, split=split, grid=PROCESSORS[processor], work_dir=tmp_path)


def draw_pairs(num_pairs: int = NUM_PAIRS, seed: int = 0, **options: Any) -> list[DrawnPair]:
    draw = open_ocr_pairs(OcrArguments(**options), drawing(seed=seed))
    return [draw(index) for index in range(num_pairs)]


def pages_of(drawn: DrawnPair) -> list[np.ndarray]:
    pages = []
    for name in drawn.pair.images:
        image = drawn.files[name]
        assert isinstance(image, Image.Image)
        pages.append(np.asarray(image.convert("RGB")))
    return pages


def box_of(different: np.ndarray) -> list[int]:
    rows, columns = np.flatnonzero(different.any(axis=1)), np.flatnonzero(different.any(axis=0))
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"image_size": "384", "distractor": "length"},
        {"image_size": "640x160", "distractor": "similar", "max_font_pixels": 200, "margin_pixels": 3},
        {"palette": "black_on_white", "fonts": ["DejaVuSerif-Italic", "STIXGeneral", "cmr10"]},
    ],
)
@pytest.mark.cases_slow
def test_two_words_stand_flush_on_equal_pages_and_wholly_within_them(options: dict[str, Any]) -> None:
    for drawn in draw_pairs(**options):
        meta = drawn.pair.meta or {}
        target, source = pages_of(drawn)
        size = OcrArguments(**options).size
        assert target.shape == source.shape == (size[1], size[0], 3)
        boxes = []
        for side, page in (("target", target), ("source", source)):
            assert (page[0, 0] == meta["page_rgb"]).all()
            box = box_of((page != page[0, 0]).any(axis=-1))
            assert box == list(meta[f"{side}_ink_box"])
            distances = (box[0], box[1], size[0] - box[2], size[1] - box[3])
            assert min(distances) >= meta["margin_pixels"]
            boxes.append(box)
        assert boxes[0][0] == boxes[1][0] == meta["left"]
        outside = (target != source).any(axis=-1)
        for box in boxes:
            outside[box[1] : box[3], box[0] : box[2]] = False
        assert not outside.any()


def test_words_without_tails_stand_on_the_baseline() -> None:
    seen = 0
    for drawn in draw_pairs():
        meta = drawn.pair.meta or {}
        for side, word in (("target", drawn.pair.target_answer), ("source", drawn.pair.source_answer)):
            bottom = meta[f"{side}_ink_box"][3]
            if set(word) & set("gjpqy"):
                assert bottom >= meta["baseline"] + 0.1 * meta["font_pixels"]
            else:
                seen += 1
                assert meta["baseline"] <= bottom <= meta["baseline"] + 1
    assert seen > 20


def test_the_ink_is_readable_on_its_page() -> None:
    for drawn in draw_pairs(min_contrast=9.0):
        meta = drawn.pair.meta or {}
        for page in pages_of(drawn):
            distance = np.abs(page.astype(int) - page[0, 0].astype(int)).sum(axis=-1)
            fullest = page.reshape(-1, 3)[distance.argmax()]
            assert contrast(page[0, 0].tolist(), fullest.tolist()) >= 8.9
            assert fullest.tolist() == list(meta["ink_rgb"])
    assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)
    assert contrast((118, 118, 118), (255, 255, 255)) == pytest.approx(4.54, abs=0.01)  # WCAG's own example


def test_options_are_heeded_and_fonts_come_equally_often() -> None:
    fonts = ["DejaVuSans", "DejaVuSerif", "DejaVuSansMono", "STIXGeneral"]
    pairs = [
        drawn.pair
        for drawn in draw_pairs(
            fonts=fonts, min_font_pixels=30, max_font_pixels=33, min_letters=5, max_letters=8, distractor="length"
        )
    ]
    metas = [pair.meta or {} for pair in pairs]
    assert Counter(meta["font"] for meta in metas) == {f"{font}.ttf": NUM_PAIRS // 4 for font in fonts}
    assert {meta["font_pixels"] for meta in metas} == {30, 31, 32, 33}
    words = [(pair.target_answer, pair.source_answer) for pair in pairs]
    assert all(len(first) == len(second) and 5 <= len(first) <= 8 for first, second in words)


def test_a_word_stands_in_one_split_alone(tmp_path: Path) -> None:
    words: dict[str, set[str]] = {}
    for split in ("train", "validation", "test"):
        draw = open_ocr_pairs(OcrArguments(), drawing(split=split))
        pairs = [draw(index).pair for index in range(60)]
        words[split] = {word for pair in pairs for word in (pair.target_answer, pair.source_answer)}
        assert {split_of_word(word) for word in words[split]} == {split}
    assert len(set.union(*words.values())) == sum(map(len, words.values()))


def test_a_pair_is_drawn_from_its_number_alone() -> None:
    first, again = draw_pairs(8), open_ocr_pairs(OcrArguments(), drawing())
    for index in (7, 2, 5):
        drawn = again(index)
        assert drawn.pair == first[index].pair
        assert all(np.array_equal(*both) for both in zip(pages_of(drawn), pages_of(first[index]), strict=True))
    others = [drawn.pair for drawn in draw_pairs(8, seed=1)]
    assert not {(pair.target_answer, pair.source_answer) for pair in others} & {
        (drawn.pair.target_answer, drawn.pair.source_answer) for drawn in first
    }


def test_a_set_is_sound_and_every_pair_has_the_same_record(tmp_path: Path) -> None:
    arguments = OcrArguments(image_size="224", min_font_pixels=20, max_font_pixels=32, max_letters=10)
    build_pair_set(tmp_path, OCR, arguments, drawing(tmp_path), PairSetArguments(num_pairs=100, num_workers=1))
    pairs = read_pairs(tmp_path)
    assert preflight(tmp_path, pairs) == []
    assert len({frozenset((pair.target_answer, pair.source_answer)) for pair in pairs}) == 100
    assert {pair.prompt for pair in pairs} == {"Read the text in the image. Answer with the exact word only."}
    records = {json.dumps({key: type(value).__name__ for key, value in (pair.meta or {}).items()}) for pair in pairs}
    assert len(records) == 1


def test_a_font_from_a_file_is_described_by_its_contents_and_not_by_its_place(tmp_path: Path) -> None:
    copied = tmp_path / "own.ttf"
    copied.write_bytes(open_font("DejaVuSans").path.read_bytes())
    vocabulary = tmp_path / "words.txt"
    vocabulary.write_text("\n".join(reversed(read_vocabulary(SCIENCE_FILE))))
    described = OCR.describe(OcrArguments(fonts=[str(copied)], vocabulary=str(vocabulary)))
    assert str(tmp_path) not in json.dumps(described)
    by_name = OCR.describe(OcrArguments(fonts=["DejaVuSans"]))
    assert described.pop("fonts") == {"own.ttf": by_name.pop("fonts")["DejaVuSans.ttf"]}
    assert described == by_name
    drawn, named = draw_pairs(3, fonts=[str(copied)], vocabulary=str(vocabulary)), draw_pairs(3, fonts=["DejaVuSans"])
    for first, second in zip(drawn, named, strict=True):
        assert all(np.array_equal(*both) for both in zip(pages_of(first), pages_of(second), strict=True))


def test_a_page_with_a_palette_has_the_colours_of_one_painted_in_rgb() -> None:
    ink = draw_ink(load_font(open_font("DejaVuSerif").path, 37), "wavelength")
    assert ink is not None
    for page_rgb, ink_rgb in (
        ((250, 240, 201), (9, 77, 130)),
        ((0, 0, 0), (255, 255, 255)),
        ((31, 2, 60), (255, 9, 77)),
    ):
        painted = Image.new("RGB", (400, 90), page_rgb)
        painted.paste(ink_rgb, ink.box_at(20, 50), ink.mask)
        page = draw_page((400, 90), page_rgb, ink_rgb, ink, 20, 50)
        assert page.convert("RGB").tobytes() == painted.tobytes()


def test_ink_is_cut_to_what_can_be_seen() -> None:
    font = load_font(open_font("DejaVuSans").path, 40)
    flat, tailed = draw_ink(font, "mass"), draw_ink(font, "gauge")
    assert flat is not None
    assert tailed is not None
    for ink in (flat, tailed):
        pixels = np.asarray(ink.mask)
        assert all(edge.any() for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]))
        assert not ((pixels > 0) & (pixels < 16)).any()
    assert flat.drop <= 1 < tailed.drop


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"distractor": "lenght"}, "distractor 'lenght' is unknown; .* did you mean 'length'"),
        ({"palette": "blue"}, "palette 'blue' is unknown"),
        ({"min_font_pixels": 60}, "min_font_pixels 60, max_font_pixels 56: expected 1 or more"),
        ({"min_letters": 0}, "min_letters 0, max_letters 14: expected 1 or more"),
        ({"min_contrast": 20.0}, "min_contrast is 20.0; expected 3 to 15"),
        ({"fonts": []}, "expected at least one, and none twice"),
        ({"margin_pixels": 224}, "margin_pixels is 224; expected at least 1, and less than half"),
        ({"image_size": "big"}, "image_size is 'big'; expected pixels"),
    ],
)
def test_options_without_a_meaning_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OcrArguments(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fonts": ["DejaVuSanss"]}, "font 'DejaVuSanss' is neither .* did you mean 'DejaVuSans'"),
        ({"fonts": ["STIXSizOneSymReg"]}, "draws .* different letters; expected all of abc"),
        ({"min_letters": 14, "distractor": "similar"}, "num_pairs is 1000; .* 14 to 14 letters make .* ask for fewer"),
        ({"min_font_pixels": 10}, r"an x of DejaVuSans.ttf is \d\.\d pixels tall .* raise it"),
        ({"min_font_pixels": 54}, r"min_font_pixels 54: \w+ in \S+ does not fit on a page of 448 x 448"),
        ({"vocabulary": "nowhere.txt"}, "vocabulary nowhere.txt is no file"),
    ],
)
def test_a_set_that_cannot_be_drawn_is_refused_before_it_is_begun(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_words(OcrArguments(**options), drawing(), 1000)


def test_words_too_small_for_the_model_are_refused_by_the_size_it_sees() -> None:
    with pytest.raises(ValueError, match=r"is 3\.\d pixels tall where the model sees it"):
        check_words(OcrArguments(), drawing(processor="pocket"), 10)


def test_a_font_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.ttf").write_bytes(b"no font")
    with pytest.raises(ValueError, match=r"a\.ttf' cannot be read .* expected TrueType or OpenType"):
        open_font(str(tmp_path / "a.ttf"))
    copied = tmp_path / "b.ttf"
    copied.write_bytes(open_font("DejaVuSans").path.read_bytes())
    with pytest.raises(ValueError, match="expected files of different names and contents"):
        OCR.describe(OcrArguments(fonts=["DejaVuSans", str(copied)]))
