"""Reading pairs: two words on equal pages, with the same font, size, position and colours.

    Read the text in the image. Answer with the exact word only.

Both words have the same left edge of their ink and the same baseline, at a position where both fit on the page. Fonts
are equally frequent. A word belongs to one split, by its hash (`vocabulary.split_of_word`). No two pairs of a set have
the same two words (`words.py`); a set larger than the vocabulary allows is rejected. The files are palette PNGs:
readers must convert them to RGB, as Qwen's processors do.

    python -m data_builders.build ocr --num-pairs 100 --seed 0 --output-dir outputs/pairs/ocr
    python -m data_builders.build ocr --distractor similar --fonts DejaVuSansMono my.ttf --output-dir D
"""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data_builders.ocr.draw import (
    PALETTES,
    Font,
    Ink,
    blend,
    contrast,
    draw_colours,
    draw_ink,
    draw_page,
    load_font,
    open_font,
    outline,
)
from data_builders.ocr.words import DISTRACTORS, WordPairs, edit_distance
from data_builders.pairs.pair import Pair
from data_builders.pairs.sets import Drawing, DrawnPair, DrawPair, PairTask, image_names, pair_id
from data_builders.pairs.vision_grid import Size, read_size
from data_builders.vocabulary.command import SCIENCE_FILE, read_vocabulary, split_of_word
from tracking.command import did_you_mean

PROMPT = "Read the text in the image. Answer with the exact word only."
"""The prompt of the published pairs."""
MIN_LETTER_PIXELS = 8
"""Minimum x-height in the resized image; Tesseract begins to misread below it."""
CONTRAST_LIMITS = (3.0, 15.0)


@dataclass(frozen=True, kw_only=True)
class OcrArguments:
    """The words, and how they are drawn."""

    distractor: str = field(
        default="any",
        metadata={
            "help": "how the other word is chosen: any, one of the same length, or one of the most similar by look"
        },
    )
    image_size: str = field(
        default="448",
        metadata={
            "help": "side of the page in pixels, or WIDTHxHEIGHT; 448 is a multiple of both 28 and 32 pixels, "
            "the sizes of a vision token"
        },
    )
    fonts: list[str] = field(
        default_factory=lambda: ["DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSansMono"],
        metadata={"help": "names of fonts that Matplotlib includes, or paths of other fonts"},
    )
    min_font_pixels: int = field(default=28, metadata={"help": "smallest font size, in pixels per em"})
    max_font_pixels: int = field(
        default=56, metadata={"help": "largest font size, in pixels per em; less if a word would not fit"}
    )
    margin_pixels: int = field(
        default=14, metadata={"help": "minimum distance from the ink to the edge of the page, in pixels"}
    )
    palette: str = field(default="mixed", metadata={"help": "colours of page and ink: mixed or black_on_white"})
    min_contrast: float = field(
        default=7.0,
        metadata={
            "help": "minimum contrast between page and ink as defined by WCAG 2.2, from 3 to 15; 7 is its level AAA"
        },
    )
    vocabulary: str | None = field(
        default=None, metadata={"help": "a file with one word per line; by default the list of this suite"}
    )
    min_letters: int = field(default=4, metadata={"help": "minimum number of letters of a word"})
    max_letters: int = field(default=14, metadata={"help": "maximum number of letters of a word"})

    def __post_init__(self) -> None:
        for name, allowed in (("distractor", DISTRACTORS), ("palette", PALETTES)):
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(
                    f"{name} {value!r} is unknown; expected one of {', '.join(allowed)}{did_you_mean(value, allowed)}"
                )
        for least, most in (("min_font_pixels", "max_font_pixels"), ("min_letters", "max_letters")):
            if not 1 <= getattr(self, least) <= getattr(self, most):
                raise ValueError(
                    f"{least} {getattr(self, least)}, {most} {getattr(self, most)}: expected 1 or more, and the first "
                    "no larger than the second"
                )
        if not CONTRAST_LIMITS[0] <= self.min_contrast <= CONTRAST_LIMITS[1]:
            raise ValueError("min_contrast is {}; expected {:g} to {:g}".format(self.min_contrast, *CONTRAST_LIMITS))
        if not self.fonts or len(set(self.fonts)) < len(self.fonts):
            raise ValueError(f"fonts are {self.fonts}; expected at least one, and none twice")
        if self.margin_pixels < 1 or 2 * self.margin_pixels >= min(self.size):
            raise ValueError(
                f"margin_pixels is {self.margin_pixels}; expected at least 1, and less than half of image_size "
                f"{self.image_size}"
            )

    @property
    def size(self) -> Size:
        """Width and height of a page."""
        return read_size("image_size", self.image_size)


def read_words(arguments: OcrArguments) -> list[str]:
    """Returns the words of all splits with the requested lengths."""
    words = read_vocabulary(Path(arguments.vocabulary) if arguments.vocabulary else SCIENCE_FILE)
    return [word for word in words if arguments.min_letters <= len(word) <= arguments.max_letters]


def describe(arguments: OcrArguments) -> dict[str, Any]:
    """Returns what determines the product, with file contents instead of names."""
    fonts = {font.name: font.sha256 for font in map(open_font, arguments.fonts)}
    if len(set(fonts.values())) < len(arguments.fonts):
        raise ValueError(f"fonts are {arguments.fonts}; expected files of different names and contents")
    words = sorted(read_words(arguments))
    vocabulary = {"num_words": len(words), "sha256": hashlib.sha256("\n".join(words).encode()).hexdigest()}
    changed = {"image_size": list(arguments.size), "fonts": fonts, "vocabulary": vocabulary}
    return asdict(arguments) | changed


def words_of_split(arguments: OcrArguments, drawing: Drawing) -> list[str]:
    """Returns the words of the set's split."""
    return [word for word in read_words(arguments) if split_of_word(word) == drawing.split]


def open_word_pairs(arguments: OcrArguments, drawing: Drawing) -> WordPairs:
    """Returns all pairs of words of the split."""
    return WordPairs(words_of_split(arguments, drawing), arguments.distractor, drawing.rng)


def check_words(arguments: OcrArguments, drawing: Drawing, num_pairs: int) -> None:
    """Checks before drawing that there are enough words, and that they are neither too long nor too small.

    Raises:
        ValueError: with the number of possible pairs, or the word that does not fit.
    """
    possible = len(open_word_pairs(arguments, drawing))
    if num_pairs > possible:
        raise ValueError(
            f"num_pairs is {num_pairs}; the words of split {drawing.split!r} with {arguments.min_letters} to "
            f"{arguments.max_letters} letters make {possible} pairs with distractor {arguments.distractor!r}; ask for "
            "fewer, allow other lengths or distractors, or name a larger --vocabulary"
        )
    size, smallest = arguments.size, arguments.min_font_pixels
    shrink = min(seen / side for seen, side in zip(drawing.grid.resized(size), size, strict=True))
    for font in map(open_font, arguments.fonts):
        height = draw_word("x", font, smallest).mask.height * shrink
        if height < MIN_LETTER_PIXELS:
            raise ValueError(
                f"min_font_pixels {smallest}: an x of {font.name} is {height:.1f} pixels tall where the model sees it; "
                f"expected {MIN_LETTER_PIXELS}: raise it"
            )
        words = words_of_split(arguments, drawing)
        if excess_of(words, font, smallest, arguments) > 1:
            word = max(words, key=lambda word: excess_of([word], font, smallest, arguments))
            raise ValueError(
                f"min_font_pixels {smallest}: {word} in {font.name} does not fit on a page of {size[0]} x {size[1]} "
                f"with margins of {arguments.margin_pixels}; lower it or max_letters, or enlarge image_size"
            )


def open_ocr_pairs(arguments: OcrArguments, drawing: Drawing) -> DrawPair:
    """Returns the function that draws a pair, given its number."""
    size = arguments.size
    fonts = [open_font(name) for name in arguments.fonts]
    word_pairs = open_word_pairs(arguments, drawing)

    def draw(index: int) -> DrawnPair:
        rng = drawing.rng(index)
        words = word_pairs[index]
        turn, place = divmod(index, len(fonts))
        font = drawing.rng("fonts", turn).sample(fonts, len(fonts))[place]
        pixels = draw_size(words, font, arguments, rng)
        inks = [draw_word(word, font, pixels) for word in words]
        coverage = min(ink.coverage for ink in inks)
        page_rgb, ink_rgb = draw_colours(rng, arguments.palette, arguments.min_contrast, coverage)
        margin = arguments.margin_pixels
        left = rng.randint(margin, size[0] - margin - max(ink.width for ink in inks))
        baseline = rng.randint(margin + max(ink.rise for ink in inks), size[1] - margin - max(ink.drop for ink in inks))
        names = image_names(drawing.task, index)
        pages = [draw_page(size, page_rgb, ink_rgb, ink, left, baseline) for ink in inks]
        pair = Pair(
            id=pair_id(drawing.task, index),
            task="ocr",
            prompt=PROMPT,
            target_image=names[0],
            source_image=names[1],
            target_answer=words[0],
            source_answer=words[1],
            meta={
                "split": drawing.split,
                "distractor": arguments.distractor,
                "edit_distance": edit_distance(*words),
                "font": font.name,
                "font_sha256": font.sha256,
                "font_pixels": pixels,
                "left": left,
                "baseline": baseline,
                "margin_pixels": margin,
                "page_rgb": page_rgb,
                "ink_rgb": ink_rgb,
                "contrast": round(contrast(page_rgb, blend(page_rgb, ink_rgb, coverage)), 2),
                "target_ink_box": inks[0].box_at(left, baseline),
                "source_ink_box": inks[1].box_at(left, baseline),
            },
        )
        return DrawnPair(pair, dict(zip(names, pages, strict=True)))

    return draw


def draw_word(word: str, font: Font, pixels: int) -> Ink:
    """Returns the ink of a word at a font size."""
    ink = draw_ink(load_font(font.path, pixels), word)
    assert ink is not None, f"{word} in {font.name} at {pixels} pixels has no ink"
    return ink


def excess_of(words: Sequence[str], font: Font, pixels: int, arguments: OcrArguments) -> float:
    """Returns the size of words on one baseline relative to the page without its margins."""
    boxes = [outline(load_font(font.path, pixels), word) for word in words]
    width = max(right - left for left, _, right, _ in boxes)
    height = max(bottom for *_, bottom in boxes) - min(top for _, top, *_ in boxes)
    free = [side - 2 * arguments.margin_pixels for side in arguments.size]
    return max(width / free[0], height / free[1])


def draw_size(words: Sequence[str], font: Font, arguments: OcrArguments, rng: random.Random) -> int:
    """Draws a font size at which all words fit on the page."""
    largest = arguments.max_font_pixels
    while (excess := excess_of(words, font, largest, arguments)) > 1:
        largest = max(arguments.min_font_pixels, min(largest - 1, int(largest / excess) + 1))
    return rng.randint(arguments.min_font_pixels, largest)


OCR = PairTask(OcrArguments, open_ocr_pairs, describe, check=check_words, flat=True)
