"""Checks pairs without a record of how they were drawn, such as the published ones, by their pixels.

Fonts, scenes and masks are unknown. The page is the colour of most of the image, ink is what differs from it. Two
rendered scenes are compared by their outlines: those in one image without an outline nearby in the other. If objects
were removed from a scene, the emptier image has hardly any such outlines; two unrelated scenes have many each.

Known limits: outlines need images at least 240 pixels wide, and the outlines of a scene with one or two objects may
coincide with those of an unrelated scene.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8

from data_builders.pairs.pair import box_text
from data_builders.pairs.pictures import Found, PairPictures, box_around
from data_builders.pairs.vision_grid import PROCESSORS

UNPROVEN_DEFECTS = {
    "ocr": {
        "page_not_uniform": "no colour fills half of a picture, so its word cannot be told from its page",
        "words_move": "the words stand at different places",
        "ink_differs": "the words have different colours",
        "pages_differ": "the pages have different colours",
    },
    "counting": {
        "unrelated_scenes": "each picture has much that the other lacks: these are two scenes, not one with a change",
    },
    "grounding": {
        "page_not_uniform": "no colour fills half of a picture, so its object cannot be told from its page",
        "box_off_object": "a box is not the one around what is drawn",
        "object_colours_differ": "the object changes its colour as well as its place",
        "boxes_shift": "boxes stand in the pixels of the file alone, and the model sees the picture in another size",
    },
    "recognition": {
        "blank_not_uniform": "the picture without the object is no blank canvas",
        "scene_is_blank": "the picture with the object is a blank canvas",
    },
}
"""Defects checked in the pairs of each task."""
NOT_SEEN = {
    "ocr": "whether both words have the same font and size",
    "counting": "whether the pictures show as many objects as the answers say",
    "grounding": "whether the object keeps its shape and angle, and is what the prompt names",
    "recognition": "whether the photographs show what the prompts name",
}
"""What cannot be determined from the pixels."""

JPEG_LEVELS = 40
"""Levels by which JPEG (quality 75 and up) may change a pixel near an edge."""
COLOUR_LEVELS = 48
"""Tolerance in levels for equal ink colours: thin strokes never reach their full colour."""
MAX_PLACE_PIXELS = 3
"""Tolerance of the edges of two words at one position: letters have different side bearings."""
INCLUSIVE_PIXELS = 1
"""Boxes may be inclusive or exclusive of the last pixel."""
BLANK_LEVELS = 8
REFERENCE_PROCESSOR = "qwen2_5_vl"
OUTLINE_LEVELS = 6.0
"""Minimum gradient, in levels per pixel, of an outline pixel."""
FAINT_LEVELS = 3.0
"""Minimum gradient of a faint outline, which can match an outline of the other image."""
NEAR_FRAC = 1 / 120
"""Matching distance as a share of the width: 4 pixels in CLEVR's images."""
MAX_OWN_FRAC = 0.25
"""Largest share of unmatched outlines in the emptier of two images of one scene.

For 60 minimal pairs of this suite, at least 240 pixels wide, the median is 0 and the maximum 0.18 (outlines that a
removed object had hidden), also as JPEG of quality 50 to 95; for the 100 published pairs the minimum is 0.32 and the
median 0.61.
"""


class Ink(NamedTuple):
    """The content of a page."""

    page: UInt8[np.ndarray, "3"]
    colour: UInt8[np.ndarray, "3"]
    """Colour of the drawn pixel farthest from the page's colour."""
    main_colour: UInt8[np.ndarray, "3"]
    """Most frequent colour of the drawn pixels."""
    box: tuple[int, int, int, int]


def check_unproven(pictures: PairPictures) -> Found:
    """Yields the defects visible in the pixels of one pair."""
    yield from CHECKS[pictures.pair.task](pictures)


def outlines_of_own(
    first: UInt8[np.ndarray, "height width 3"], second: UInt8[np.ndarray, "height width 3"]
) -> tuple[float, float]:
    """Returns for each of two images the share of its outlines, in grey, without an outline nearby in the other."""
    import cv2

    edges = []
    for picture in (first, second):
        smooth = cv2.GaussianBlur(picture.astype(np.float32) @ np.full(3, 1 / 3, np.float32), (0, 0), 1.0)
        edges.append(cv2.magnitude(cv2.Sobel(smooth, -1, 1, 0), cv2.Sobel(smooth, -1, 0, 1)) / 8)
    reach = max(1, round(NEAR_FRAC * first.shape[1]))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    near = [cv2.dilate((edge > FAINT_LEVELS).astype(np.uint8), disc) > 0 for edge in edges]
    strong = [edge > OUTLINE_LEVELS for edge in edges]
    own = [(strong[side] & ~near[1 - side]).sum() / max(1, strong[side].sum()) for side in (0, 1)]
    return float(own[0]), float(own[1])


def _check_ocr(pictures: PairPictures) -> Found:
    inks = _read_inks(pictures)
    if inks is None:
        yield "page_not_uniform", "cannot be compared"
        return
    target, source = inks
    if not _same_place(target.box, source.box):
        yield "words_move", f"{box_text(target.box)} and {box_text(source.box)}"
    for kind, name in (("ink_differs", "colour"), ("pages_differ", "page")):
        first, second = getattr(target, name), getattr(source, name)
        if _largest_step(first, second) > COLOUR_LEVELS:
            yield kind, f"{first.tolist()} and {second.tolist()}"


def _same_place(first: tuple[int, int, int, int], second: tuple[int, int, int, int]) -> bool:
    """True for words with a common left edge, centre or right edge, on one line."""
    middles = [(box[0] + box[2]) / 2 for box in (first, second)]
    offsets = (first[0] - second[0], middles[0] - middles[1], first[2] - second[2])
    shared_height = min(first[3], second[3]) - max(first[1], second[1])
    on_one_line = shared_height >= min(first[3] - first[1], second[3] - second[1]) / 2
    return on_one_line and min(map(abs, offsets)) <= MAX_PLACE_PIXELS


def _check_counting(pictures: PairPictures) -> Found:
    if pictures.target.shape != pictures.source.shape:
        return
    own = outlines_of_own(pictures.target, pictures.source)
    if min(own) > MAX_OWN_FRAC:
        levels = np.abs(pictures.target.astype(np.int16) - pictures.source).max(axis=-1)
        differing = f"{(levels > JPEG_LEVELS).mean():.0%} of the pixels differ by more than {JPEG_LEVELS} levels"
        yield (
            "unrelated_scenes",
            f"{own[0]:.0%} and {own[1]:.0%} of the outlines have none near in the other; {differing}",
        )


def _check_grounding(pictures: PairPictures) -> Found:
    pair = pictures.pair
    inks = _read_inks(pictures)
    if inks is None:
        yield "page_not_uniform", "cannot be compared with its box"
        return
    for side, ink, box in zip(("target", "source"), inks, (pair.target_box, pair.source_box), strict=True):
        if box is not None and max(abs(a - b) for a, b in zip(ink.box, box, strict=True)) > INCLUSIVE_PIXELS:
            yield "box_off_object", f"{side} {box_text(box)}, drawn {box_text(ink.box)}"
    if _largest_step(inks[0].main_colour, inks[1].main_colour) > COLOUR_LEVELS:
        yield "object_colours_differ", f"{inks[0].main_colour.tolist()} and {inks[1].main_colour.tolist()}"
    height, width = pictures.target.shape[:2]
    resized = PROCESSORS[REFERENCE_PROCESSOR].resized((width, height))
    if resized != (width, height) and "target_box_resized" not in (pair.meta or {}):
        yield "boxes_shift", f"{width} x {height} is seen as {resized[0]} x {resized[1]} by {REFERENCE_PROCESSOR}"


def _check_recognition(pictures: PairPictures) -> Found:
    for side, picture, answer in (
        ("target", pictures.target, pictures.pair.target_answer),
        ("source", pictures.source, pictures.pair.source_answer),
    ):
        spread = max(int(np.ptp(picture[..., channel])) for channel in range(3))
        shows_object = answer.strip().casefold() == "yes"
        if shows_object and spread <= BLANK_LEVELS:
            yield "scene_is_blank", f"the {side}, answered {answer!r}, spreads over {spread} levels"
        if not shows_object and spread > BLANK_LEVELS:
            yield "blank_not_uniform", f"the {side}, answered {answer!r}, spreads over {spread} levels"


def _read_inks(pictures: PairPictures) -> tuple[Ink, Ink] | None:
    """Returns the drawn content of both images; None if one has no uniform page, or nothing on it."""
    target, source = (
        _read_ink(picture, JPEG_LEVELS if name.lower().endswith((".jpg", ".jpeg")) else 0)
        for picture, name in zip((pictures.target, pictures.source), pictures.pair.images, strict=True)
    )
    return None if target is None or source is None else (target, source)


def _read_ink(picture: UInt8[np.ndarray, "height width 3"], tolerance: int) -> Ink | None:
    page = _page_of(picture)
    if page is None:
        return None
    distance = _largest_step(picture, page)
    drawn: Bool[np.ndarray, "height width"] = distance > tolerance
    box = box_around(drawn)
    if box is None:
        return None
    farthest = picture.reshape(-1, 3)[distance.argmax()]
    colours, counts = np.unique(picture[drawn], axis=0, return_counts=True)
    return Ink(page, farthest, colours[counts.argmax()], box)


def _page_of(picture: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "3"] | None:
    """Returns the colour of more than half of the pixels (then the median of each channel); None if there is none."""
    leading = [np.bincount(picture[..., channel].ravel(), minlength=256).argmax() for channel in range(3)]
    page = np.array(leading, np.uint8)
    differs = picture != page
    is_page = ~(differs[..., 0] | differs[..., 1] | differs[..., 2])
    return page if is_page.mean() > 0.5 else None


def _largest_step(first: UInt8[np.ndarray, "*shape 3"], second: UInt8[np.ndarray, "..."]) -> Any:
    """Returns the difference of colours in levels, maximum over channels."""
    steps = np.maximum(first, second) - np.minimum(first, second)
    return np.maximum(np.maximum(steps[..., 0], steps[..., 1]), steps[..., 2])


CHECKS: dict[str, Callable[[PairPictures], Found]] = {
    "ocr": _check_ocr,
    "counting": _check_counting,
    "grounding": _check_grounding,
    "recognition": _check_recognition,
}
