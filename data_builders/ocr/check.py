"""Do the two images of a reading pair differ only in the word? Recomputed from the pixels and the fonts.

Each word is drawn again with the recorded font (found by its sha256 in Matplotlib's folder, or by name and sha256 among
the system's fonts) and this module's own arithmetic, and compared pixel by pixel. If the font is not installed,
`unseen` reports it; page, edges, baseline and colours are still checked.

`read_words` runs Tesseract on the images of any set with the task `ocr`; it needs about 0.1 s per image.
"""

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw, ImageFont, ImageOps

from data_builders.ocr.build import CONTRAST_LIMITS, MIN_LETTER_PIXELS
from data_builders.ocr.draw import FAINT, FONTS_DIR, contrast
from data_builders.ocr.words import DISTRACTORS, edit_distance
from data_builders.pairs.pair import Pair
from data_builders.pairs.pictures import Found, PairPictures, box_around
from data_builders.vocabulary.command import split_of_word

DEFECTS = {
    "ocr_record": "meta lacks something of what was drawn, or holds something else",
    "untrue_record": "split, distractor, edit distance or contrast are not those of the words that were drawn",
    "page_not_blank": "there is something on the page beside the word",
    "differs_outside_words": "the pictures differ outside the two words",
    "wrong_ink_box": "the ink ends elsewhere than meta says",
    "word_moved": "the words do not stand at the recorded left edge and baseline",
    "word_cut_off": "the ink is nearer to the edge of the page than the recorded margin",
    "wrong_ink_colour": "the ink has another colour than meta says",
    "illegible": "too small, or too little contrast, in the picture that the model sees",
    "swapped_words": "each picture shows the other one's word",
    "wrong_rendering": "the pixels are not those of the answer in the recorded font, size and place",
    "word_misread": "Tesseract reads another word",
}
"""Defects checked in reading pairs."""

COLOUR_TOLERANCE = 2
"""Tolerance per channel for a mixture of two colours, due to rounding."""
OVERSHOOT_FRAC = 0.04
"""Overshoot of round letters below the baseline, in ems."""
CONTRAST_TOLERANCE = 0.1
"""Tolerance of the contrast of a partly covered pixel, due to rounding."""
CANVAS_PADDING = 8
HANGING_LETTERS = frozenset("fgjpqyz")
"""Letters with descenders in some fonts."""
READ_HEIGHTS = (48, 36)
"""Heights in pixels to which a word is scaled before reading; the second is tried if the first is misread."""
READ_PADDING = 16
READ_TIMEOUT_S = 30.0

Picture = UInt8[np.ndarray, "height width 3"]


def _is_int(value: Any) -> bool:
    return type(value) is int


def _is_ints(num: int, most: int = 1_000_000) -> Callable[[Any], bool]:
    return lambda value: (
        isinstance(value, list | tuple)
        and len(value) == num
        and all(type(each) is int and 0 <= each <= most for each in value)
    )


RECORD: dict[str, Callable[[Any], bool]] = {
    "resized_size": _is_ints(2),
    "split": lambda value: isinstance(value, str),
    "distractor": lambda value: value in DISTRACTORS,
    "edit_distance": _is_int,
    "font": lambda value: isinstance(value, str),
    "font_sha256": lambda value: isinstance(value, str) and bool(re.fullmatch("[0-9a-f]{64}", value)),
    "font_pixels": lambda value: _is_int(value) and 0 < value <= 10_000,
    "left": _is_int,
    "baseline": _is_int,
    "margin_pixels": _is_int,
    "page_rgb": _is_ints(3, 255),
    "ink_rgb": _is_ints(3, 255),
    "contrast": lambda value: type(value) in (int, float),
    "target_ink_box": _is_ints(4),
    "source_ink_box": _is_ints(4),
}
"""Key of meta -> check of its value."""


def check_ocr(pictures: PairPictures) -> Found:
    """Yields the defects of a reading pair built by this suite."""
    pair, meta = pictures.pair, pictures.pair.meta or {}
    wrong = [name for name, is_right in RECORD.items() if not is_right(meta.get(name))]
    if wrong:
        yield "ocr_record", ", ".join(f"{name} is {meta.get(name)!r}" for name in wrong)
        return
    yield from _check_record(pair, meta)
    pages = [
        _Page("target", pair.target_answer, pictures.target, meta),
        _Page("source", pair.source_answer, pictures.source, meta),
    ]
    for page in pages:
        yield from ((kind, f"{page.side}: {text}") for kind, text in page.check())
    found = min(page.contrast for page in pages)
    if not abs(found - meta["contrast"]) <= CONTRAST_TOLERANCE:
        yield "untrue_record", f"the contrast is {found:.2f}, not {meta['contrast']}"
    outside = pictures.differs & ~_covered(pictures.differs.shape, [page.recorded_box for page in pages])
    if outside.any():
        yield "differs_outside_words", f"{outside.sum()} pixels, in {box_around(outside)}"
    yield from _check_rendering(pages)


def unseen(pair: Pair) -> str | None:
    """Returns what cannot be checked of a pair's pixels on this machine; None if everything can."""
    meta = pair.meta or {}
    name, sha256 = str(meta.get("font")), str(meta.get("font_sha256"))
    if find_font(name, sha256) is None:
        return f"the words were not drawn again: the font {name} (sha256 {sha256[:12]}…) is not here"
    return None


def _check_record(pair: Pair, meta: Mapping[str, Any]) -> Found:
    words = (pair.target_answer, pair.source_answer)
    for word in words:
        if split_of_word(word) != meta["split"]:
            yield "untrue_record", f"{word!r} belongs to split {split_of_word(word)}, not {meta['split']}"
    if edit_distance(*words) != meta["edit_distance"]:
        yield "untrue_record", f"the edit distance is {edit_distance(*words)}, not {meta['edit_distance']}"
    if meta["distractor"] == "length" and len(words[0]) != len(words[1]):
        yield "untrue_record", f"{words[0]!r} and {words[1]!r} differ in length"


@dataclass(frozen=True)
class _Page:
    """One image of a pair, with its meta."""

    side: str
    word: str
    pixels: Picture
    meta: Mapping[str, Any]

    @property
    def recorded_box(self) -> tuple[int, int, int, int]:
        left, top, right, bottom = self.meta[f"{self.side}_ink_box"]
        return left, top, right, bottom

    @cached_property
    def ink(self) -> Bool[np.ndarray, "height width"]:
        """Mask of pixels that differ from the page's colour."""
        return _where_different(self.pixels, np.array(self.meta["page_rgb"], dtype=np.uint8))

    @cached_property
    def ink_box(self) -> tuple[int, int, int, int] | None:
        return box_around(self.ink)

    def check(self) -> Found:
        ink, box = self.ink, self.ink_box
        beside = ink & ~_covered(ink.shape, [self.recorded_box])
        if beside.any():
            yield "page_not_blank", f"{beside.sum()} pixels beside the word, in {box_around(beside)}"
        if box is None:
            yield "wrong_ink_box", f"no ink; expected {self.recorded_box}"
            return
        if box != self.recorded_box:
            yield "wrong_ink_box", f"{box}; expected {self.recorded_box}"
        yield from self._check_place(box)
        yield from self._check_colour()

    def _check_place(self, box: tuple[int, int, int, int]) -> Found:
        if box[0] != self.meta["left"]:
            yield "word_moved", f"the ink begins in column {box[0]}; expected {self.meta['left']}"
        baseline = self.meta["baseline"]
        overshoot = 1 + OVERSHOOT_FRAC * self.meta["font_pixels"]
        hangs = bool(HANGING_LETTERS & set(self.word))
        if not box[1] < baseline or box[3] < baseline - 1 or (not hangs and box[3] > baseline + overshoot):
            yield "word_moved", f"the ink stands in rows {box[1]} to {box[3]}; expected on the baseline {baseline}"
        height, width = self.pixels.shape[:2]
        distance = min(box[0], box[1], width - box[2], height - box[3])
        if distance < self.meta["margin_pixels"]:
            yield "word_cut_off", f"{distance} pixels to the edge; expected {self.meta['margin_pixels']}"
        seen = self.meta["resized_size"]
        scale = min(seen[0] / width, seen[1] / height)
        if (box[3] - box[1]) * scale < MIN_LETTER_PIXELS:
            yield "illegible", f"{(box[3] - box[1]) * scale:.1f} pixels tall where the model sees it"

    @cached_property
    def _colours(self) -> Float[np.ndarray, "pixels 3"]:
        colours: Float[np.ndarray, "pixels 3"] = self.pixels[self.ink].astype(float)
        return colours

    @cached_property
    def _coverage(self) -> Float[np.ndarray, " pixels"]:
        """Coverage of each ink pixel, from the channel in which page and ink differ most."""
        page, ink = (np.array(self.meta[name], dtype=float) for name in ("page_rgb", "ink_rgb"))
        channel = int(np.argmax(np.abs(ink - page)))
        step = float((ink - page)[channel]) or 1.0
        coverage: Float[np.ndarray, " pixels"] = np.clip((self._colours[:, channel] - page[channel]) / step, 0, 1)
        return coverage

    @property
    def contrast(self) -> float:
        """Contrast between the page and the most covered pixel."""
        if not len(self._colours):
            return 1.0
        return contrast(self.meta["page_rgb"], self._colours[self._coverage.argmax()].tolist())

    def _check_colour(self) -> Found:
        page, ink = (np.array(self.meta[name], dtype=float) for name in ("page_rgb", "ink_rgb"))
        off = np.abs(page + self._coverage[:, None] * (ink - page) - self._colours).max(axis=1)
        if off.max() > COLOUR_TOLERANCE:
            found = [int(value) for value in self._colours[off.argmax()]]
            yield "wrong_ink_colour", f"{found} is no mixture of {self.meta['page_rgb']} and {self.meta['ink_rgb']}"
        if self.contrast < CONTRAST_LIMITS[0]:
            yield "illegible", f"a contrast of {self.contrast:.1f}; expected {CONTRAST_LIMITS[0]:g}"


def _where_different(pixels: Picture, others: UInt8[np.ndarray, "*shape 3"]) -> Bool[np.ndarray, "height width"]:
    """Returns the pixels that differ in any channel; six times faster than `any` along an axis of three."""
    red, green, blue = np.moveaxis(pixels != others, -1, 0)
    different: Bool[np.ndarray, "height width"] = red | green | blue
    return different


def _covered(shape: tuple[int, ...], boxes: list[tuple[int, int, int, int]]) -> Bool[np.ndarray, "height width"]:
    """Returns the mask of the boxes."""
    covered = np.zeros(shape, dtype=bool)
    for left, top, right, bottom in boxes:
        covered[top:bottom, left:right] = True
    return covered


def _check_rendering(pages: list[_Page]) -> Found:
    meta = pages[0].meta
    path = find_font(meta["font"], meta["font_sha256"])
    if path is None:
        return
    size = pages[0].pixels.shape[:2]
    drawn = [render(path, page.word, meta, size) for page in pages]
    num_wrong = [_num_different(page.pixels, word) for page, word in zip(pages, drawn, strict=True)]
    num_crossed = [_num_different(page.pixels, word) for page, word in zip(pages, drawn[::-1], strict=True)]
    if all(num_wrong) and not any(num_crossed):
        yield "swapped_words", f"target shows {pages[1].word!r}, source {pages[0].word!r}"
        return
    for page, num in zip(pages, num_wrong, strict=True):
        if num:
            yield "wrong_rendering", f"{page.side}: {num} pixels are not those of {page.word!r}"


def _num_different(pixels: Picture, drawn: Picture | None) -> int:
    """Returns the number of differing pixels; all of them if the word does not fit on the page."""
    return pixels[..., 0].size if drawn is None else int(_where_different(pixels, drawn).sum())


def render(path: Path, word: str, meta: Mapping[str, Any], shape: tuple[int, int]) -> Picture | None:
    """Draws a word as recorded, mixing colours in integer arithmetic; None if it does not fit on the page."""
    font = ImageFont.truetype(path, meta["font_pixels"], layout_engine=ImageFont.Layout.BASIC)
    left, top, right, bottom = (round(edge) for edge in font.getbbox(word, anchor="ls"))
    if right - left > 2 * shape[1] or bottom - top > 2 * shape[0]:
        return None
    canvas = Image.new("L", (right - left + 2 * CANVAS_PADDING, bottom - top + 2 * CANVAS_PADDING))
    origin = (CANVAS_PADDING - left, CANVAS_PADDING - top)
    ImageDraw.Draw(canvas).text(origin, word, fill=255, font=font, anchor="ls")
    coverage = np.array(canvas, dtype=np.int64)
    coverage[coverage < FAINT] = 0
    box = box_around(coverage > 0)
    if box is None:
        return None
    ink = coverage[box[1] : box[3], box[0] : box[2], None]  # [rows, columns, 1]
    column, row = meta["left"], meta["baseline"] + box[1] - origin[1]
    if min(column, row) < 0 or column + ink.shape[1] > shape[1] or row + ink.shape[0] > shape[0]:
        return None
    page = np.empty((*shape, 3), dtype=np.uint8)
    page[:] = meta["page_rgb"]
    mixed = np.array(meta["page_rgb"]) * (255 - ink) + np.array(meta["ink_rgb"]) * ink
    page[row : row + ink.shape[0], column : column + ink.shape[1]] = (2 * mixed + 255) // 510
    return page


@cache
def find_font(name: str, sha256: str) -> Path | None:
    """Returns a font's file: one of Matplotlib's, or a system font with that name; None if it is not installed."""
    from matplotlib.font_manager import findSystemFonts

    named = [Path(place) for place in findSystemFonts() if Path(place).name == name]
    return next((path for path in (*sorted(FONTS_DIR.glob("*.ttf")), *named) if _sha256(path) == sha256), None)


@cache
def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def tesseract_available() -> bool:
    """True if Tesseract is installed."""
    return shutil.which("tesseract") is not None


def read_words(pictures: PairPictures) -> Found:
    """Yields the words that Tesseract misreads.

    Raises:
        ValueError: if Tesseract is not installed.
    """
    if not tesseract_available():
        raise ValueError("tesseract is not installed, so no words can be read back; install tesseract-ocr")
    pair = pictures.pair
    for side, pixels, word in (
        ("target", pictures.target, pair.target_answer),
        ("source", pictures.source, pair.source_answer),
    ):
        found = read_word(pixels, word)
        if found is not None:
            yield "word_misread", f"{side}: {found!r}; expected {word!r}"


def read_word(pixels: Picture, expected: str) -> str | None:
    """Returns what Tesseract reads; None if it reads the expected word at one of several heights."""
    readings = []
    for height in READ_HEIGHTS:
        readings.append(_read(_prepare(pixels, height)))
        if readings[-1].casefold() == expected.casefold():
            return None
    return " or ".join(dict.fromkeys(readings))


def _prepare(pixels: Picture, height: int) -> Image.Image:
    """Returns the ink of an image, black on white, scaled to a height."""
    packed = pixels.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], dtype=np.uint32)
    values, numbers = np.unique(packed, return_counts=True)
    page = int(values[numbers.argmax()])
    distance = np.abs(pixels.astype(int) - [page >> 16, page >> 8 & 255, page & 255]).max(axis=-1)
    box = box_around(distance > distance.max() // 4)
    if box is None:
        return Image.new("L", (height, height), 255)
    grey = 255 - distance[box[1] : box[3], box[0] : box[2]] * 255 // distance.max()
    word = Image.fromarray(grey.astype(np.uint8))
    word = word.resize((max(1, round(word.width * height / word.height)), height), Image.Resampling.BICUBIC)
    return ImageOps.expand(word, READ_PADDING, 255)


def _read(image: Image.Image) -> str:
    """Returns the letters that Tesseract finds in one line."""
    file = BytesIO()
    image.save(file, format="PNG")
    done = subprocess.run(
        ["tesseract", "-", "-", "--psm", "7", "--dpi", "300"],
        input=file.getvalue(),
        capture_output=True,
        env=os.environ | {"OMP_THREAD_LIMIT": "1"},
        timeout=READ_TIMEOUT_S,
        check=True,
    )
    return "".join(done.stdout.decode(errors="replace").split())
