"""Is a grounding pair minimal, and do its boxes match its pixels? Recomputed from the images and the mask.

The contents of the page are found as pixels that differ from its colour. Only two checks draw anything again: the
object and each distractor must match their recorded shape, size and rotation.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from data_builders.grounding.build import GAP_PIXELS, PROMPT, gap_between
from data_builders.grounding.draw import BACKGROUNDS, COLOURS, SHAPES, Thing
from data_builders.pairs.pair import Box, Pair, box_text
from data_builders.pairs.pictures import Found, PairPictures, box_around

DEFECTS = {
    "malformed_meta": "a parameter that the proof needs is missing, or of another type",
    "malformed_mask": "the mask is missing, unreadable or of another size than the pictures",
    "changed_outside_boxes": "the pictures differ outside the two boxes",
    "pictures_swapped": "each picture shows the object where the other one's box is",
    "box_off_pixels": "a box is not the one around the object's pixels",
    "object_changed": "the object is not the same to the pixel in both pictures",
    "stray_pixels": "something stands on the page that is neither the object nor a distractor",
    "wrong_colour": "the object's pixels have another colour than its name says",
    "redrawn_otherwise": "drawn again from its shape, size and rotation, an object looks otherwise",
    "mask_off_pixels": "the mask is not where the object is",
    "wrong_name": "prompt, name, colour and shape do not agree",
    "ambiguous_object": "a distractor has the object's name",
    "objects_too_near": f"less than {GAP_PIXELS} pixels between two boxes, or between one and the frame",
    "answer_off_box": "an answer is not its box in whole pixels",
}
"""Defects checked in addition to the preflight."""

THING_TYPES: dict[str, type] = {"colour": str, "shape": str, "size_pixels": int, "rotation_degrees": float}
META_TYPES: dict[str, type] = {
    **THING_TYPES, "object_name": str, "background": str, "mask": str, "distractors": list,
    "image_size": list,
}  # fmt: skip

WholeBox = tuple[int, int, int, int]
Picture = UInt8[np.ndarray, "height width 3"]
Region = Bool[np.ndarray, "height width"]


def check_grounding(pictures: PairPictures) -> Found:
    """Yields the defects of one pair: kind and finding."""
    pair = pictures.pair
    malformed = list(_malformed(pair))
    if malformed:
        yield "malformed_meta", "; ".join(malformed)
        return
    yield from _check_words(pair)
    yield from _check_boxes(pair)
    if pictures.target.shape != pictures.source.shape or not _stand_inside(pictures):
        return  # the preflight reports unequal sizes and boxes outside the image
    yield from _check_pixels(pictures)


def _malformed(pair: Pair) -> Iterator[str]:
    meta = pair.meta or {}
    yield from _mistyped(meta, META_TYPES, "")
    if pair.target_box is None or pair.source_box is None:
        yield "no boxes"
    elif any(edge != int(edge) for edge in (*pair.target_box, *pair.source_box)):
        yield f"boxes {pair.target_box} and {pair.source_box} are not whole pixels"
    if not _are_numbers(meta.get("image_size"), 2):
        yield f"image_size is {meta.get('image_size')!r}"
    background = meta.get("background")
    if not isinstance(background, str) or background not in BACKGROUNDS:
        yield f"background is {background!r}"
    colour = meta.get("colour")
    for name, rgb in (
        ("colour_rgb", COLOURS.get(colour) if isinstance(colour, str) else None),
        ("background_rgb", BACKGROUNDS.get(background) if isinstance(background, str) else None),
    ):
        if rgb is not None and meta.get(name) != list(rgb):
            yield f"{name} is {meta.get(name)!r}; expected {list(rgb)}"
    if meta.get("gap_pixels") != GAP_PIXELS:
        yield f"gap_pixels is {meta.get('gap_pixels')!r}; expected {GAP_PIXELS}"
    distractors = meta.get("distractors")
    for number, entry in enumerate(distractors if isinstance(distractors, list) else ()):
        if not isinstance(entry, dict):
            yield f"distractor {number} is {entry!r}"
            continue
        yield from _mistyped(entry, THING_TYPES, f"distractor {number}: ")
        if not _are_numbers(entry.get("box"), 4) or any(type(edge) is not int for edge in entry["box"]):
            yield f"distractor {number}: box is {entry.get('box')!r}"


def _mistyped(entry: Mapping[str, Any], types: Mapping[str, type], prefix: str) -> Iterator[str]:
    for name, kind in types.items():
        if type(entry.get(name)) is not kind:
            yield f"{prefix}{name} is {entry.get(name)!r}"
    for name, known in (("colour", COLOURS), ("shape", SHAPES)):
        if isinstance(entry.get(name), str) and entry[name] not in known:
            yield f"{prefix}{name} {entry[name]!r} is unknown"
    shape, rotation = entry.get("shape"), entry.get("rotation_degrees")
    if isinstance(shape, str) and shape in SHAPES and type(rotation) is float:
        most = SHAPES[shape].max_rotation
        if not abs(rotation) <= most:
            yield f"{prefix}rotation_degrees is {rotation}; expected at most {most} to either side for a {shape}"
    size = entry.get("size_pixels")
    if type(size) is int and not 0 < size < 10_000:
        yield f"{prefix}size_pixels is {size}"


def _are_numbers(value: Any, length: int) -> bool:
    return isinstance(value, list) and len(value) == length and all(type(each) in (int, float) for each in value)


def _thing(entry: Mapping[str, Any]) -> Thing:
    return Thing(**{name: entry[name] for name in THING_TYPES})


def _check_words(pair: Pair) -> Found:
    meta = pair.meta or {}
    name = _thing(meta).name
    if meta["object_name"] != name or pair.prompt != PROMPT.format(name=name):
        yield "wrong_name", f"{pair.prompt!r} and {meta['object_name']!r} for a {name}"
    namesakes = [number for number, entry in enumerate(meta["distractors"]) if _thing(entry).name == name]
    if namesakes:
        yield "ambiguous_object", f"{len(namesakes)} more {name}"


def _check_boxes(pair: Pair) -> Found:
    meta = pair.meta or {}
    sides = _sides(pair)
    for side, box, answer in sides:
        if answer != box_text(box):
            yield "answer_off_box", f"{side}: {answer!r} for {box_text(box)}"
    width, height = meta["image_size"]
    boxes = {side: box for side, box, _ in sides}
    boxes |= {f"distractor {number}": tuple(entry["box"]) for number, entry in enumerate(meta["distractors"])}
    for (first, one), (second, other) in combinations(boxes.items(), 2):
        if gap_between(one, other) < GAP_PIXELS:
            yield "objects_too_near", f"{first} and {second}: {gap_between(one, other):g} pixels"
    for name, box in boxes.items():
        to_frame = min(box[0], box[1], width - box[2], height - box[3])
        if to_frame < GAP_PIXELS:
            yield "objects_too_near", f"{name} and the frame: {to_frame:g} pixels"


def _sides(pair: Pair) -> tuple[tuple[str, Box, str], tuple[str, Box, str]]:
    assert pair.target_box is not None and pair.source_box is not None
    return ("target", pair.target_box, pair.target_answer), ("source", pair.source_box, pair.source_answer)


def _whole(box: Any) -> WholeBox:
    left, top, right, bottom = (int(edge) for edge in box)
    return left, top, right, bottom


def _stand_inside(pictures: PairPictures) -> bool:
    height, width = pictures.target.shape[:2]
    boxes = [box for _, box, _ in _sides(pictures.pair)]
    boxes += [entry["box"] for entry in (pictures.pair.meta or {})["distractors"]]
    return all(0 <= box[0] < box[2] <= width and 0 <= box[1] < box[3] <= height for box in boxes)


@dataclass(frozen=True)
class Seen:
    """The object as found in one image."""

    region: Region
    """Its pixels."""
    box: WholeBox
    """Around them."""
    stray: WholeBox | None
    """Box around everything else on the page."""
    patch: Picture
    """The image within the box."""


def _check_pixels(pictures: PairPictures) -> Found:
    pair, meta = pictures.pair, pictures.pair.meta or {}
    page = np.array(BACKGROUNDS[meta["background"]], np.uint8)
    boxes = {side: _whole(box) for side, box, _ in _sides(pair)}
    seen = {
        side: _look(picture, page, meta["distractors"], boxes[side])
        for side, picture in (("target", pictures.target), ("source", pictures.source))
    }
    outside = pictures.differs.copy()
    for box in boxes.values():
        outside[_inside(box)] = False
    target, source = seen["target"], seen["source"]
    if target and source and (target.box, source.box) == (boxes["source"], boxes["target"]):
        yield "pictures_swapped", f"target's object at {box_text(target.box)}, source's at {box_text(source.box)}"
    else:
        for side, found in seen.items():
            if found is None:
                yield "box_off_pixels", f"{side}: no object on the page"
            elif found.box != boxes[side]:
                yield "box_off_pixels", f"{side}: {box_text(boxes[side])}; the object is at {box_text(found.box)}"
        if outside.any():
            place = box_around(outside)
            assert place is not None
            yield "changed_outside_boxes", f"{np.count_nonzero(outside)} pixels in {box_text(place)}"
    for side, found in seen.items():
        if found is not None and found.stray is not None:
            yield "stray_pixels", f"{side}: in {box_text(found.stray)}"
    yield from _check_distractors(pictures, page)
    if target is None or source is None:
        return
    if not np.array_equal(target.patch, source.patch):
        same_size = target.patch.shape == source.patch.shape
        found_there = (
            f"{np.count_nonzero((target.patch != source.patch).any(axis=-1))} pixels of it"
            if same_size
            else "{} x {} and {} x {}".format(*target.patch.shape[1::-1], *source.patch.shape[1::-1])
        )
        yield "object_changed", found_there
    yield from _check_object(target, meta, page)
    yield from _check_mask(pictures, target, source)


def _inside(box: WholeBox) -> tuple[slice, slice]:
    return slice(box[1], box[3]), slice(box[0], box[2])


def _look(picture: Picture, page: UInt8[np.ndarray, "3"], distractors: list[Any], box: WholeBox) -> Seen | None:
    """Finds the object: the pixels that are neither page nor distractor, or the part of them around its box."""
    region = (picture != page).any(axis=-1)
    for entry in distractors:
        region[_inside(_whole(entry["box"]))] = False
    found = box_around(region)
    if found is None:
        return None
    stray = None
    if found != box:
        from scipy.ndimage import label

        parts, num_parts = label(region, structure=np.ones((3, 3)))
        sizes = np.bincount(parts[_inside(box)].ravel(), minlength=num_parts + 1)
        if not sizes[1:].any():
            sizes = np.bincount(parts.ravel(), minlength=num_parts + 1)
        largest = 1 + int(np.argmax(sizes[1:]))
        stray = box_around(region & (parts != largest))
        region = parts == largest
        found = box_around(region)
        assert found is not None
    return Seen(region, found, stray, picture[_inside(found)])


def _check_object(seen: Seen, meta: Mapping[str, Any], page: UInt8[np.ndarray, "3"]) -> Found:
    """Checks the most frequent colour of the object; its edge, which mixes with the page, is checked by redrawing."""
    thing = _thing(meta)
    rgb = np.median(seen.patch[seen.region[_inside(seen.box)]], axis=0)
    if tuple(rgb) != COLOURS[thing.colour]:
        nearest = min(COLOURS, key=lambda name: float(np.abs(rgb - COLOURS[name]).sum()))
        yield "wrong_colour", f"{', '.join(f'{value:g}' for value in rgb)}, nearest {nearest}, for {thing.colour}"
    yield from _compare(seen.patch, thing, np.asarray(rgb, np.uint8), page, "the object")


def _compare(
    patch: Picture, thing: Thing, rgb: UInt8[np.ndarray, "3"], page: UInt8[np.ndarray, "3"], what: str
) -> Found:
    cover = thing.cover()
    redrawn = Image.new("RGB", cover.size, tuple(page.tolist()))
    redrawn.paste(tuple(rgb.tolist()), (0, 0, *cover.size), cover)
    expected = np.asarray(redrawn)
    if expected.shape != patch.shape:
        sizes = (*patch.shape[1::-1], *cover.size)
        yield "redrawn_otherwise", "{}: {} x {} pixels, drawn again {} x {}".format(what, *sizes)
    elif not np.array_equal(expected, patch):
        num_pixels = np.count_nonzero((expected != patch).any(axis=-1))
        yield "redrawn_otherwise", f"{what}: {num_pixels} of {patch.shape[0] * patch.shape[1]} pixels"


def _check_distractors(pictures: PairPictures, page: UInt8[np.ndarray, "3"]) -> Found:
    """Checks distractors in the target only; the comparison of the two images covers the source."""
    for number, entry in enumerate((pictures.pair.meta or {})["distractors"]):
        thing = _thing(entry)
        rgb = np.array(COLOURS[thing.colour], np.uint8)
        yield from _compare(pictures.target[_inside(_whole(entry["box"]))], thing, rgb, page, f"distractor {number}")


def _check_mask(pictures: PairPictures, target: Seen, source: Seen) -> Found:
    try:
        mask = pictures.mask((pictures.pair.meta or {})["mask"])
    except (OSError, ValueError, SyntaxError) as error:
        yield "malformed_mask", type(error).__name__
        return
    if mask.shape != target.region.shape:
        yield "malformed_mask", "{} x {} pixels".format(*mask.shape[::-1])
        return
    off = (mask > 0) != (target.region | source.region)
    if off.any():
        yield "mask_off_pixels", f"{np.count_nonzero(off)} pixels"
    elif not np.array_equal(mask[_inside(target.box)], mask[_inside(source.box)]):
        yield "mask_off_pixels", "it covers the object otherwise at one place than at the other"
