"""Does a recognition pair show the category in only one image? Recomputed from the images, the mask and the meta.

Checks of pixels cannot tell whether the annotations are correct, or whether a painted-out object can still be guessed.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8

from data_builders.pairs.pair import Pair
from data_builders.pairs.pictures import Found, PairPictures
from data_builders.prompt_sets.images import DECODING_ERRORS
from data_builders.recognition.build import (
    CANVAS_COLOURS,
    SOURCE_KINDS,
    canvas_colour_of,
    fitting_size,
    mean_of,
    prompt_for,
)
from data_builders.recognition.coco import Polygon, polygons_of
from data_builders.recognition.draw import MAX_DILATION, METHODS, PAINTED, draw_mask

DEFECTS = {
    "malformed_meta": "a parameter that the proof needs is missing, or of another type",
    "malformed_mask": "the mask is missing, unreadable or of another size than the pictures",
    "wrong_question": "the prompt does not ask for the recorded category",
    "wrong_answer": "the photograph's answer is not Yes, or the other's not No",
    "object_too_small": "no instance that covers as much of the photograph as it should",
    "unexpected_size": "the photograph's size does not follow from the annotated one",
    "pictures_swapped": "the photograph stands in the place of the other picture",
    "blank_photograph": "the photograph is of one colour",
    "other_photograph": "the photograph's mean colour is not the recorded one",
    "canvas_not_blank": "the canvas is not of one colour",
    "wrong_canvas_colour": "the canvas has another colour than its kind and meta say",
    "changed_outside_mask": "the pictures differ where nothing was painted out",
    "mask_off_outlines": "the mask is not what the recorded outlines give",
    "object_not_painted_out": "too few pixels inside the outlines changed",
    "painted_otherwise": "inside the mask a picture has another mean colour than recorded",
}
"""Defects checked in addition to the preflight."""

META_TYPES: dict[str, type] = {
    "source_kind": str, "category": str, "category_id": int, "image_id": int, "photograph": str, "annotated_size": list,
    "num_instances": int, "largest_area_frac": float, "min_area_frac": float, "max_pixels": int, "mean_colour": list,
}  # fmt: skip
CANVAS_TYPES: dict[str, type] = {"canvas_colour": list}
INPAINTED_TYPES: dict[str, type] = {
    "mask": str, "outlines": list, "mask_dilation": int, "inpaint_method": str, "inpaint_radius": float,
    "target_colour_in_mask": list, "source_colour_in_mask": list,
}  # fmt: skip

MIN_CHANGED_FRAC = 0.5
"""Minimum share of changed pixels inside the outlines; on the shipped scenes at least 0.9 change."""
AREA_TOLERANCE = 0.1
"""Tolerance: COCO counts the pixels of an instance, while here the area of its outline is computed."""

Picture = UInt8[np.ndarray, "height width 3"]
Region = Bool[np.ndarray, "height width"]


def check_recognition(pictures: PairPictures) -> Found:
    """Yields the defects of one pair: kind and finding."""
    pair = pictures.pair
    meta = pair.meta or {}
    malformed = list(_malformed(meta))
    if malformed:
        yield "malformed_meta", "; ".join(malformed)
        return
    yield from _check_question(pair, meta)
    if pictures.target.shape != pictures.source.shape:
        return  # reported by the preflight
    yield from _check_photograph(pictures, meta)
    if meta["source_kind"] == "inpainted":
        yield from _check_inpainted(pictures, meta)
    else:
        yield from _check_canvas(pictures, meta)


def _malformed(meta: Mapping[str, Any]) -> Iterator[str]:
    yield from _mistyped(meta, META_TYPES)
    kind = meta.get("source_kind")
    if kind not in SOURCE_KINDS:
        yield f"source_kind is {kind!r}"
        return
    for name in ("category_id", "image_id", "max_pixels", "largest_area_frac", "min_area_frac"):
        if type(meta.get(name)) in (int, float) and meta[name] < 0:
            yield f"{name} is {meta[name]}"
    if not _are_whole(meta.get("annotated_size"), 2) or min(meta["annotated_size"]) < 1:
        yield f"annotated_size is {meta.get('annotated_size')!r}"
    if not _are_numbers(meta.get("mean_colour"), 3):
        yield f"mean_colour is {meta.get('mean_colour')!r}"
    if kind != "inpainted":
        yield from _mistyped(meta, CANVAS_TYPES)
        if not _are_whole(meta.get("canvas_colour"), 3):
            yield f"canvas_colour is {meta.get('canvas_colour')!r}"
        return
    yield from _mistyped(meta, INPAINTED_TYPES)
    for name in ("target_colour_in_mask", "source_colour_in_mask"):
        if not _are_numbers(meta.get(name), 3):
            yield f"{name} is {meta.get(name)!r}"
    if meta.get("inpaint_method") not in tuple(METHODS):
        yield f"inpaint_method is {meta.get('inpaint_method')!r}"
    if type(meta.get("mask_dilation")) is int and not 0 <= meta["mask_dilation"] <= MAX_DILATION:
        yield f"mask_dilation is {meta['mask_dilation']}"
    outlines = meta.get("outlines")
    if isinstance(outlines, list) and not (outlines and all(map(polygons_of, outlines))):
        yield "outlines are no polygons"


def _mistyped(meta: Mapping[str, Any], types: Mapping[str, type]) -> Iterator[str]:
    for name, kind in types.items():
        if type(meta.get(name)) is not kind:
            yield f"{name} is {meta.get(name)!r}"


def _are_numbers(value: Any, length: int) -> bool:
    return isinstance(value, list) and len(value) == length and all(type(each) in (int, float) for each in value)


def _are_whole(value: Any, length: int) -> bool:
    return _are_numbers(value, length) and all(type(each) is int for each in value)


def _check_question(pair: Pair, meta: Mapping[str, Any]) -> Found:
    if pair.prompt != prompt_for(meta["category"]):
        yield "wrong_question", f"{pair.prompt!r} for the category {meta['category']!r}"
    if (pair.target_answer, pair.source_answer) != ("Yes", "No"):
        yield "wrong_answer", f"{pair.target_answer!r} and {pair.source_answer!r}"
    if meta["num_instances"] < 1:
        yield "object_too_small", f"{meta['num_instances']} instances"
    if not meta["min_area_frac"] <= meta["largest_area_frac"] <= 1:
        yield "object_too_small", f"the largest covers {meta['largest_area_frac']:g} of {meta['min_area_frac']:g} to 1"


def _check_photograph(pictures: PairPictures, meta: Mapping[str, Any]) -> Found:
    height, width, _ = pictures.target.shape
    annotated_width, annotated_height = meta["annotated_size"]
    expected = fitting_size((annotated_width, annotated_height), meta["max_pixels"])
    if (width, height) != expected:
        yield "unexpected_size", f"{width} x {height}, not {expected[0]} x {expected[1]}"
    if _is_blank(pictures.target):
        yield "blank_photograph", str(pictures.target[0, 0].tolist())
        if not _is_blank(pictures.source):
            yield "pictures_swapped", "the target is of one colour, the source is not"
    elif (mean := mean_of(pictures.target)) != meta["mean_colour"]:
        yield "other_photograph", f"{mean}, not {meta['mean_colour']}"


def _check_canvas(pictures: PairPictures, meta: Mapping[str, Any]) -> Found:
    if not _is_blank(pictures.source):
        changed = (pictures.source != pictures.source[0, 0]).any(axis=-1)
        yield "canvas_not_blank", f"{int(changed.sum())} pixels differ from its corner"
        return
    colour = tuple(pictures.source[0, 0].tolist())
    expected = CANVAS_COLOURS.get(meta["source_kind"]) or canvas_colour_of(mean_of(pictures.target))
    if not colour == expected == tuple(meta["canvas_colour"]):
        yield "wrong_canvas_colour", f"{colour}; {meta['source_kind']} is {expected}, recorded {meta['canvas_colour']}"


def _check_inpainted(pictures: PairPictures, meta: Mapping[str, Any]) -> Found:
    annotated_size, size = tuple(meta["annotated_size"]), pictures.target.shape[1::-1]
    polygons: list[Polygon] = [polygon for instance in meta["outlines"] for polygon in instance]
    largest = max(sum(map(_area_in, instance)) for instance in meta["outlines"])
    smallest_allowed = meta["min_area_frac"] * annotated_size[0] * annotated_size[1]
    if largest < smallest_allowed * (1 - AREA_TOLERANCE):
        yield "object_too_small", f"the largest outline holds {largest:.0f} pixels of at least {smallest_allowed:.0f}"
    if len(meta["outlines"]) != meta["num_instances"]:
        yield "mask_off_outlines", f"{len(meta['outlines'])} outlines of {meta['num_instances']} instances"
    inside_outlines = draw_mask(polygons, annotated_size, size, 0) == PAINTED
    changed_frac = float(pictures.differs[inside_outlines].mean()) if inside_outlines.any() else 0.0
    if changed_frac < MIN_CHANGED_FRAC:
        yield "object_not_painted_out", f"{changed_frac:.0%} of the pixels inside the outlines changed"
    try:
        mask = pictures.mask(meta["mask"])
    except DECODING_ERRORS as error:
        yield "malformed_mask", f"{meta['mask']}: {type(error).__name__}"
        return
    if mask.shape != pictures.differs.shape:
        yield "malformed_mask", f"{mask.shape[1]} x {mask.shape[0]} for pictures of {size[0]} x {size[1]}"
        return
    expected = draw_mask(polygons, annotated_size, size, meta["mask_dilation"])
    if num_off := int((mask != expected).sum()):
        yield "mask_off_outlines", f"{num_off} pixels differ"
    num_outside = int((pictures.differs & (mask != PAINTED)).sum())
    if num_outside:
        yield "changed_outside_mask", f"{num_outside} pixels"
    yield from _check_colours(pictures, meta, mask == PAINTED)


def _check_colours(pictures: PairPictures, meta: Mapping[str, Any], inside: Region) -> Found:
    if not inside.any():
        return
    found = [mean_of(picture, inside) for picture in (pictures.target, pictures.source)]
    recorded = [meta["target_colour_in_mask"], meta["source_colour_in_mask"]]
    if found != recorded and found[::-1] == recorded:
        yield "pictures_swapped", "inside the mask each has the colour recorded for the other"
        return
    for side, mean, expected in zip(("target", "source"), found, recorded, strict=True):
        if mean != expected:
            yield "painted_otherwise", f"{side}: {mean}, not {expected}"


def _is_blank(picture: Picture) -> bool:
    return bool((picture[0] == picture[0, 0]).all() and (picture == picture[0]).all())


def _area_in(polygon: Polygon) -> float:
    """Returns the area of a polygon (shoelace formula)."""
    x, y = np.array(polygon).reshape(-1, 2).T
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)
