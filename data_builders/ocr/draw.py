"""Draws a word on a page: its ink as a mask cropped to its edges, then coloured on a page of another colour.

A word's position is the left edge of its ink and its baseline, so words with different first letters are aligned.
Letters are laid out by Pillow, without ligatures.
"""

import colorsys
import hashlib
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data_builders.ocr.words import LETTERS
from tracking.command import did_you_mean

Rgb = tuple[int, int, int]
Box = tuple[int, int, int, int]
"""Left, top, right, bottom in whole pixels; right and bottom exclusive."""

FONT_SUFFIXES = (".ttf", ".otf", ".ttc")
FONTS_DIR = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
FAINT = 16
"""Lower coverage (of 255) is dropped: it would be invisible but would move the edges of a word."""
PALETTES = ("mixed", "black_on_white")
LIGHT_PAGES_FRAC = 0.75
MAX_TRIES = 1000


@dataclass(frozen=True, kw_only=True)
class Font:
    """A font file."""

    name: str
    path: Path
    sha256: str


def open_font(name: str) -> Font:
    """Opens one of Matplotlib's fonts by name, or any font by path.

    Raises:
        ValueError: if there is none, or it does not have 26 different letters.
    """
    path = Path(name) if name.lower().endswith(FONT_SUFFIXES) else FONTS_DIR / f"{name}.ttf"
    if not path.is_file():
        known = sorted(file.stem for file in FONTS_DIR.glob("*.ttf"))
        raise ValueError(
            f"font {name!r} is neither a {', '.join(FONT_SUFFIXES)} file nor one of Matplotlib's"
            f"{did_you_mean(name, known)}"
        )
    try:
        font = load_font(path, 40)
    except OSError as error:
        raise ValueError(f"font {name!r} cannot be read ({error}); expected TrueType or OpenType") from error
    drawn = [draw_ink(font, letter) for letter in LETTERS]
    looks = {ink.mask.tobytes() for ink in drawn if ink is not None}
    if len(looks) < len(LETTERS):
        raise ValueError(f"font {name!r} draws {len(looks)} different letters; expected all of {LETTERS}")
    return Font(name=path.name, path=path, sha256=hashlib.sha256(path.read_bytes()).hexdigest())


@lru_cache(maxsize=256)
def load_font(path: Path, pixels: int) -> ImageFont.FreeTypeFont:
    """Returns a font at a size (pixels per em)."""
    return ImageFont.truetype(path, pixels, layout_engine=ImageFont.Layout.BASIC)


@dataclass(frozen=True)
class Ink:
    """The coverage of a word, cropped to its edges."""

    mask: Image.Image
    """Coverage of each pixel, 0 to 255."""
    rise: int
    """Rows above the baseline."""

    @property
    def width(self) -> int:
        return self.mask.width

    @property
    def coverage(self) -> float:
        """Coverage of the most covered pixel, up to 1."""
        return float(self.mask.getextrema()[1]) / 255  # type: ignore[arg-type]

    @property
    def drop(self) -> int:
        """Rows below the baseline."""
        return self.mask.height - self.rise

    def box_at(self, left: int, baseline: int) -> Box:
        """Returns the box of the ink for a position; `baseline` is the first row below it."""
        return left, baseline - self.rise, left + self.width, baseline + self.drop


def outline(font: ImageFont.FreeTypeFont, word: str) -> Box:
    """Returns a slightly enlarged box around the ink of a word at the left end of the baseline."""
    left, top, right, bottom = font.getbbox(word, anchor="ls")
    return math.floor(left) - 1, math.floor(top) - 1, math.ceil(right) + 1, math.ceil(bottom) + 1


def draw_ink(font: ImageFont.FreeTypeFont, word: str) -> Ink | None:
    """Returns the ink of a word; None if the font draws nothing."""
    left, top, right, bottom = outline(font, word)
    canvas = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(canvas).text((-left, -top), word, fill=255, font=font, anchor="ls")
    pixels = np.array(canvas)
    pixels[pixels < FAINT] = 0
    mask = Image.fromarray(pixels)
    box = mask.getbbox()
    return None if box is None else Ink(mask.crop(box), -top - box[1])


def draw_page(size: tuple[int, int], page_rgb: Rgb, ink_rgb: Rgb, ink: Ink, left: int, baseline: int) -> Image.Image:
    """Returns a page with one word; each pixel is the mixture of ink and page given by its coverage."""
    word = ink.mask.copy()
    covered = np.arange(256)[:, None]  # [coverages, 1]
    mixed = (255 - covered) * np.array(page_rgb) + covered * np.array(ink_rgb)  # [coverages, 3]
    word.putpalette(((2 * mixed + 255) // 510).astype(np.uint8).tobytes())  # rounded
    page = Image.new("RGB", size, page_rgb)
    page.paste(word.convert("RGB"), ink.box_at(left, baseline))
    return page


def luminance(rgb: Sequence[float]) -> float:
    """Returns the relative luminance of a colour (WCAG 2.2)."""
    linear = [
        value / 255 / 12.92 if value / 255 <= 0.04045 else ((value / 255 + 0.055) / 1.055) ** 2.4 for value in rgb
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: Sequence[float], second: Sequence[float]) -> float:
    """Returns the contrast of two colours, from 1 to 21 (WCAG 2.2)."""
    lighter, darker = sorted((luminance(first), luminance(second)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def blend(page_rgb: Rgb, ink_rgb: Rgb, coverage: float) -> tuple[float, ...]:
    """Returns the colour of a partly covered pixel."""
    return tuple(page + coverage * (ink - page) for page, ink in zip(page_rgb, ink_rgb, strict=True))


def draw_colours(rng: random.Random, palette: str, min_contrast: float, coverage: float) -> tuple[Rgb, Rgb]:
    """Draws the colours of page and ink.

    Args:
        rng: random number generator.
        palette: one of `PALETTES`.
        min_contrast: between the page and the most covered pixels of the words.
        coverage: coverage of those pixels; below 1 if a font is thinner than a pixel.

    Raises:
        ValueError: if the ink is too thin for the contrast.
    """
    is_light = palette == "black_on_white" or rng.random() < LIGHT_PAGES_FRAC
    for _ in range(MAX_TRIES):
        pale = _rgb(rng.random(), 0.3 * rng.random(), 0.85 + 0.15 * rng.random())
        deep = _rgb(rng.random(), 0.3 + 0.7 * rng.random(), 0.1 + 0.6 * rng.random())
        if palette == "black_on_white":
            pale, deep = (255, 255, 255), (0, 0, 0)
        page, ink = (pale, deep) if is_light else (deep, pale)
        if contrast(page, blend(page, ink, coverage)) >= min_contrast:
            return page, ink
    raise ValueError(
        f"the font covers {coverage:.2f} of a pixel at best, too little for a contrast of {min_contrast}; choose a "
        "bolder one, raise --min_font_pixels, or lower --min_contrast"
    )


def _rgb(hue: float, saturation: float, value: float) -> Rgb:
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(hue, saturation, value))
    return red, green, blue
