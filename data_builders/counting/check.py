"""Is a counting pair minimal, and are its answers true? Recomputed from pictures, masks and the recorded scene.

The scene is not rendered again. The pixels that each object covers, and those that the removed objects can affect, are
recomputed from the scene's parameters. A mask or object that was shifted, recoloured, removed or added is therefore
found as a mask mismatch, a change outside the region, or an object with another colour than in the scene. Pairs of
unrelated scenes (`minimal` is false) are checked by their pixels only.
"""

from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from data_builders.counting.geometry import FLOOR, Silhouette, cover, edges, silhouettes, touched_region
from data_builders.counting.layout import gap, what_was_never_drawn
from data_builders.counting.scenes import COLOURS, Scene, scene_from_json
from data_builders.pairs.pair import Pair
from data_builders.pairs.pictures import Found, PairPictures
from data_builders.pairs.unproven import UNPROVEN_DEFECTS, check_unproven
from data_builders.prompt_sets.images import DECODING_ERRORS

DEFECTS = {
    "malformed_meta": "a parameter that the proof needs is missing, or of another type",
    "malformed_mask": "a mask is missing, unreadable or of another size than the pictures",
    "changed_outside_region": "the pictures differ where the objects that go cannot touch them",
    "mask_off_scene": "a mask is not what the recorded scene shows",
    "wrong_count": "an answer is not the number of objects in its mask",
    "pictures_swapped": "each picture shows what the other one should",
    "removed_look_otherwise": "where objects come or go, a picture has other colours than recorded",
    "wrong_colour": "an object's pixels have another colour than the scene says",
    "object_hidden": "an object shows less of itself than it must to be counted",
    "object_cut_off": "an object does not stand in the picture whole",
    "objects_collide": "two objects stand in one another",
    **UNPROVEN_DEFECTS["counting"],
}
"""Defects checked in addition to the preflight."""

META_TYPES: dict[str, type] = {
    "fuller": str, "removed": list, "removed_rgb": list, "scene": dict, "min_visible_pixels": int,
    "min_visible_frac": float, "target_ids": str, "source_ids": str, "touched": str,
}  # fmt: skip
SIDES = ("target", "source")
MASKS = ("target_ids", "source_ids", "touched")
RGB_LEVELS = 0.02
"""Tolerance of mean colours against the recorded ones, which are rounded to 0.01."""
GREY_CHROMA = 12.0
"""Largest difference between channels, in levels, for the mean colour of a grey object."""
MIN_CHROMA = 15.0
MIN_COSINE = 0.95
"""Tolerance between the hue of an object's mean colour and that of its named colour."""
MIN_INNER_PIXELS = 6
"""Minimum number of unobstructed pixels to determine an object's colour."""

Ids = UInt8[np.ndarray, "height width"]


@dataclass(frozen=True)
class Record:
    """The contents of a pair's meta."""

    scene: Scene
    """The scene of the fuller image."""
    removed: list[int]
    fuller: str
    rgb: dict[int, dict[str, list[float]]]
    """Number of a removed object -> side -> mean colour of the pixels it covers."""


def check_counting(pictures: PairPictures) -> Found:
    """Yields the defects of one pair: kind and finding."""
    pair = pictures.pair
    if (pair.meta or {}).get("minimal") is False:
        yield from check_unproven(pictures)
        return
    record = _read_meta(pair.meta or {})
    if isinstance(record, str):
        yield "malformed_meta", record
        return
    if pictures.source.shape != pictures.target.shape:
        return  # reported by the preflight
    height, width = pictures.target.shape[:2]
    seen = silhouettes(record.scene, width, height)
    yield from _check_layout(record, seen, width, height)
    yield from _check_masks(pictures, record, seen)
    ids = cover(seen, width, height)
    yield from _check_removed(pictures, record, ids)
    yield from _check_hues(pictures, record, np.where(edges(ids), FLOOR, ids))


def _read_meta(meta: dict[str, Any]) -> Record | str:
    """Parses the meta; returns an error text if it cannot be read."""
    mistyped = [name for name, kind in META_TYPES.items() if type(meta.get(name)) is not kind]
    if mistyped:
        return "; ".join(f"{name} is {meta.get(name)!r}"[:80] for name in mistyped)
    try:
        scene = scene_from_json(meta["scene"])
    except ValueError as error:
        return str(error)
    if stray := what_was_never_drawn(scene):
        return stray
    removed, numbers = meta["removed"], range(1, len(scene.things) + 1)
    if not removed or any(type(each) is not int or each not in numbers for each in removed):
        return f"removed is {removed!r}; the scene's objects are 1 to {len(scene.things)}"
    if len(set(removed)) < len(removed):
        return f"removed is {removed!r}; one stands twice"
    if meta["fuller"] not in SIDES:
        return f"fuller is {meta['fuller']!r}; expected target or source"
    rgb: dict[Any, Any] = {str(each.get("number")): each for each in meta["removed_rgb"] if isinstance(each, dict)}
    if set(rgb) != set(map(str, removed)) or not all(
        _is_rgb(each.get(side)) for each in rgb.values() for side in SIDES
    ):
        return f"removed_rgb is {meta['removed_rgb']!r}; expected a colour on each side for {removed}"
    return Record(scene, removed, meta["fuller"], {number: rgb[str(number)] for number in removed})


def _is_rgb(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(type(each) in (int, float) for each in value)


def _check_layout(record: Record, seen: list[Silhouette], width: int, height: int) -> Found:
    """Objects that could be counted differently: cut off by the frame, or intersecting each other."""
    windows = enumerate((silhouette.window for silhouette in seen), start=1)
    cut = [
        f"object {number}"
        for number, (rows, columns) in windows
        if rows.start == 0 or columns.start == 0 or rows.stop == height or columns.stop == width
    ]
    if cut:
        yield "object_cut_off", ", ".join(cut)
    things = enumerate(record.scene.things, start=1)
    near = [f"{a} and {b}" for (a, first), (b, second) in combinations(things, 2) if gap(first, second) < 0]
    if near:
        yield "objects_collide", ", ".join(near)


def _check_masks(pictures: PairPictures, record: Record, seen: list[Silhouette]) -> Found:
    """The region of the change, the masks and the counts."""
    height, width = pictures.target.shape[:2]
    region = touched_region(record.scene, record.removed, width, height)
    changed = pictures.differs & ~region
    if changed.any():
        row, column = map(int, np.argwhere(changed)[0])
        yield "changed_outside_region", f"{int(changed.sum())} pixels, the first at x {column}, y {row}"
    expected: dict[str, Ids] = {"touched": region.astype(np.uint8) * 255}
    for side in SIDES:
        without = () if side == record.fuller else record.removed
        expected[f"{side}_ids"] = cover(seen, width, height, without=without)
    for name in MASKS:
        path = (pictures.pair.meta or {})[name]
        try:
            mask = pictures.mask(path)
        except DECODING_ERRORS as error:
            yield "malformed_mask", f"{path} ({type(error).__name__})"
            continue
        if mask.shape != (height, width):
            yield "malformed_mask", f"{path} is {mask.shape[1]} x {mask.shape[0]}"
            continue
        if num_off := int((mask != expected[name]).sum()):
            yield "mask_off_scene", f"{name}: {num_off} pixels"
        if name != "touched":
            yield from _check_count(pictures.pair, name.removesuffix("_ids"), mask, seen)


def _check_count(pair: Pair, side: str, ids: Ids, seen: list[Silhouette]) -> Found:
    meta = pair.meta or {}
    shown = np.bincount(ids.ravel(), minlength=len(seen) + 1)
    numbers = [int(number) for number in np.flatnonzero(shown) if number != FLOOR]
    answer = getattr(pair, f"{side}_answer").strip()
    if answer != str(len(numbers)):
        yield "wrong_count", f"the {side}'s answer is {answer!r}; its mask shows {len(numbers)} objects"
    for number in numbers:
        alone = int(seen[number - 1].hit.sum()) if number <= len(seen) else 0
        if shown[number] < max(meta["min_visible_pixels"], meta["min_visible_frac"] * alone):
            yield "object_hidden", f"object {number} shows {shown[number]} of {alone} pixels in the {side}"


def _check_removed(pictures: PairPictures, record: Record, ids: Ids) -> Found:
    """Checks the pixels of removed objects in each image against the recorded mean colours."""
    means = {side: _mean_colours(getattr(pictures, side), ids, len(record.scene.things)) for side in SIDES}
    crosswise = []
    for number in record.removed:
        right, swapped = (
            all(
                np.abs(means[side][number] - record.rgb[number][recorded]).max() <= RGB_LEVELS
                for side, recorded in zip(SIDES, order, strict=True)
            )
            for order in (SIDES, SIDES[::-1])
        )
        if not right:
            crosswise.append((number, swapped))
    if crosswise:
        kind = "pictures_swapped" if all(swapped for _, swapped in crosswise) else "removed_look_otherwise"
        yield kind, ", ".join(f"object {number}" for number, _ in crosswise)


def _check_hues(pictures: PairPictures, record: Record, inner: Ids) -> Found:
    """Checks that objects have their named colours, if enough unobstructed pixels are visible."""
    num_things = len(record.scene.things)
    num_inner = np.bincount(inner.ravel(), minlength=num_things + 1)
    wrong = []
    for side in SIDES:
        means = _mean_colours(getattr(pictures, side), inner, num_things)
        for number, thing in enumerate(record.scene.things, start=1):
            shown = side == record.fuller or number not in record.removed
            if shown and num_inner[number] >= MIN_INNER_PIXELS and not looks(thing.colour, means[number]):
                rgb = means[number].round().astype(int).tolist()
                wrong.append(f"object {number} in the {side}: {rgb} for {thing.colour}")
    if wrong:
        yield "wrong_colour", "; ".join(wrong)


def _mean_colours(
    picture: UInt8[np.ndarray, "height width 3"], ids: Ids, num_things: int
) -> Float[np.ndarray, "numbers 3"]:
    """Returns the mean colour of the pixels of each number, starting with the floor."""
    counts = np.bincount(ids.ravel(), minlength=num_things + 1)
    channels = [picture[..., channel].ravel() for channel in range(3)]
    sums = [np.bincount(ids.ravel(), weights=levels, minlength=num_things + 1) for levels in channels]
    means: Float[np.ndarray, "numbers 3"] = np.stack(sums, axis=-1) / np.maximum(counts, 1)[:, None]
    return means


def looks(colour: str, rgb: Float[np.ndarray, " 3"]) -> bool:
    """True if a mean colour is possible for an object of the named colour under any lighting."""
    if colour == "grey":
        return float(np.ptp(rgb)) <= GREY_CHROMA
    chroma = rgb - rgb.mean()
    named = np.array(COLOURS[colour], dtype=float)
    hue = named - named.mean()
    length = float(np.linalg.norm(chroma))
    return length >= MIN_CHROMA and float(chroma @ hue) >= MIN_COSINE * length * float(np.linalg.norm(hue))
