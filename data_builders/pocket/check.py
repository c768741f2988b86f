"""Is a pair of the pocket world minimal, and are its answers true? Checked from the pixels of its nine cells.

A cell of background is empty; otherwise its centre gives the colour, and the filled share of the object's box the
shape. From these the question is answered again, and the differing cells are compared with those that the kind of pair
may change. Then both images are drawn again from the recorded cells and compared pixel by pixel.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8

from data_builders.pairs.pictures import Found, PairPictures, box_around
from data_builders.pocket.draw import BACKGROUND_RGB, CELL_PIXELS, GRID, IMAGE_PIXELS, RGB, Scene, Thing, render
from models.pocket import COLOURS, PLACES, SHAPES

DEFECTS = {
    "unknown_pocket_kind": "its meta names no kind of pair of the pocket world",
    "malformed_cells": "the recorded cells are missing or cannot be read",
    "no_pocket_picture": f"a picture is not {IMAGE_PIXELS} pixels wide and high",
    "wrong_pocket_question": "its prompt is not one that this kind of pair asks",
    "unreadable_cell": "a cell holds something that is no object of the pocket world",
    "wrong_pocket_answer": "an answer is not what the cells of its picture show",
    "other_cells_differ": "the pictures differ in other cells than those that are asked about",
    "more_than_one_change": "the object that is asked about changes in more than the one thing",
    "recorded_otherwise": "drawn again from the recorded cells, a picture looks otherwise",
}
"""Defects checked by this module."""

MAX_COLOUR_DISTANCE = 3
"""Tolerance in levels of the colour at an object's centre, for rounding."""
FILLED_FRAC = {"triangle": (0.5, 0.65), "circle": (0.7, 0.88), "square": (1.0, 1.0)}
"""Shape -> filled share of its box: 1/2, pi/4 and 1, counting pixels on the edge as filled.

Of 12,000 drawn objects, triangles filled 0.505 to 0.588, circles 0.737 to 0.862, squares 1.
"""


class Cell(NamedTuple):
    """The content of a cell; None for what cannot be read."""

    pixels: UInt8[np.ndarray, "cell cell 3"]
    is_empty: bool
    colour: str | None
    shape: str | None

    @property
    def ink(self) -> Bool[np.ndarray, "cell cell"]:
        """Mask of drawn pixels."""
        drawn: Bool[np.ndarray, "cell cell"] = (self.pixels != np.array(BACKGROUND_RGB, np.uint8)).any(axis=-1)
        return drawn


Cells = dict[str, Cell]
"""The cells by place name."""


def check_pocket(pictures: PairPictures) -> Found:
    """Yields the defects of one pair of the pocket world."""
    pair = pictures.pair
    kind = KINDS.get(str((pair.meta or {}).get("kind")))
    if kind is None:
        yield "unknown_pocket_kind", f"{(pair.meta or {}).get('kind')!r}; expected one of {', '.join(KINDS)}"
        return
    for side, picture in (("target", pictures.target), ("source", pictures.source)):
        if picture.shape[:2] != (IMAGE_PIXELS, IMAGE_PIXELS):
            yield "no_pocket_picture", f"{side} {picture.shape[1]} x {picture.shape[0]}"
            return
    asked = re.fullmatch(kind.question, pair.prompt)
    if asked is None:
        yield "wrong_pocket_question", repr(pair.prompt)
        return
    target, source = read_cells(pictures.target), read_cells(pictures.source)
    for side, cells, answer in (("target", target, pair.target_answer), ("source", source, pair.source_answer)):
        for place, cell in cells.items():
            if not cell.is_empty and None in (cell.colour, cell.shape):
                yield "unreadable_cell", f"{side} {place}: colour {cell.colour}, shape {cell.shape}"
        shown = kind.answer(cells, *asked.groups())
        if shown != answer:
            yield "wrong_pocket_answer", f"{side} {answer!r}, its cells show {shown!r}"
    changed = [place for place in PLACES if not np.array_equal(target[place].pixels, source[place].pixels)]
    yield from kind.changes(changed, target, source, *asked.groups())
    yield from _check_record(pictures)


def _check_record(pictures: PairPictures) -> Found:
    for side, picture in (("target", pictures.target), ("source", pictures.source)):
        recorded = (pictures.pair.meta or {}).get(f"{side}_cells")
        scene = read_scene(recorded)
        if scene is None:
            yield "malformed_cells", f"{side}_cells {recorded!r}"
            continue
        num_pixels = int((np.asarray(render(scene)) != picture).any(axis=-1).sum())
        if num_pixels:
            yield "recorded_otherwise", f"{side}: {num_pixels} pixels"


def read_scene(recorded: Any) -> Scene | None:
    """Parses the nine cells as written by `describe_cells`; None if they are malformed.

    `red circle 9.7 0.3 -1.2` has a radius and two offsets; an empty text is an empty cell.
    """
    if not isinstance(recorded, list) or len(recorded) != GRID * GRID:
        return None
    things: list[Thing | None] = []
    for text in recorded:
        number = r"(-?\d[\d.e-]*)"
        found = re.fullmatch(f"{_COLOUR} {_SHAPE} {number} {number} {number}", text) if isinstance(text, str) else None
        if found is None and text != "":
            return None
        if found is None:
            things.append(None)
            continue
        colour, shape, *numbers = found.groups()
        try:
            radius, offset_x, offset_y = map(float, numbers)
        except ValueError:
            return None
        things.append(Thing(shape, colour, radius, offset_x, offset_y))
    return tuple(things)


def read_cells(picture: UInt8[np.ndarray, "height width 3"]) -> Cells:
    """Returns the content of each cell of an image."""
    rows = picture.reshape(GRID, CELL_PIXELS, GRID, CELL_PIXELS, 3).swapaxes(1, 2)
    return dict(zip(PLACES, map(_read_cell, rows.reshape(-1, CELL_PIXELS, CELL_PIXELS, 3)), strict=True))


def _read_cell(pixels: UInt8[np.ndarray, "cell cell 3"]) -> Cell:
    empty = Cell(pixels, True, None, None)
    box = box_around(empty.ink)
    if box is None:
        return empty
    middle = pixels[CELL_PIXELS // 2, CELL_PIXELS // 2].astype(int)
    colours = [name for name, rgb in RGB.items() if np.abs(middle - rgb).max() <= MAX_COLOUR_DISTANCE]
    filled = empty.ink[box[1] : box[3], box[0] : box[2]].mean()
    shapes = [name for name, (low, high) in FILLED_FRAC.items() if low <= filled <= high]
    return Cell(pixels, False, colours[0] if colours else None, shapes[0] if shapes else None)


def _count(cells: Cells, colour: str) -> str:
    return str(sum(cell.colour == colour for cell in cells.values()))


def _sum(cells: Cells, a: str | None, first: str, sign: str, b: str | None, second: str) -> str:
    value = int(a or 1) * int(_count(cells, first))
    return str(value + (1 if sign == "+" else -1) * int(b or 1) * int(_count(cells, second)))


def _colour_at(cells: Cells, place: str) -> str | None:
    return cells[place].colour


def _shape_at(cells: Cells, place: str) -> str | None:
    return cells[place].shape


def _place_of(cells: Cells, colour: str, shape: str) -> str | None:
    places = [place for place, cell in cells.items() if (cell.colour, cell.shape) == (colour, shape)]
    return places[0] if len(places) == 1 else None


def _one_object_less(changed: list[str], target: Cells, source: Cells, *asked: str) -> Found:
    if len(changed) != 1:
        yield "other_cells_differ", f"{', '.join(changed) or 'none'}; expected one cell"
    for place in changed:
        if target[place].is_empty == source[place].is_empty:
            yield "more_than_one_change", f"{place} is empty in neither picture"
        elif not {target[place].colour, source[place].colour} & set(asked):
            yield "more_than_one_change", f"{place} holds nothing that is asked about"


def _other_colour(changed: list[str], target: Cells, source: Cells, place: str) -> Found:
    yield from _only(changed, {place})
    if not np.array_equal(target[place].ink, source[place].ink):
        yield "more_than_one_change", f"the object in the {place} changes its outline as well"


def _other_shape(changed: list[str], target: Cells, source: Cells, place: str) -> Found:
    yield from _only(changed, {place})
    if target[place].colour != source[place].colour:
        yield "more_than_one_change", f"the object in the {place} changes its colour as well"


def _other_place(changed: list[str], target: Cells, source: Cells, colour: str, shape: str) -> Found:
    before, after = _place_of(target, colour, shape), _place_of(source, colour, shape)
    if before is None or after is None:
        return  # already reported as a wrong answer
    yield from _only(changed, {before, after})
    for first, second in ((before, after), (after, before)):
        if not np.array_equal(target[first].pixels, source[second].pixels):
            yield "more_than_one_change", f"the {first} of the target is not the {second} of the source as it is"


def _no_object(changed: list[str], target: Cells, source: Cells, colour: str, shape: str) -> Found:
    drawn = [place for place, cell in source.items() if not cell.is_empty]
    if drawn:
        yield "other_cells_differ", f"the canvas holds something in the {', '.join(drawn)}"


def _is_there(cells: Cells, colour: str, shape: str) -> str:
    return "Yes" if any((cell.colour, cell.shape) == (colour, shape) for cell in cells.values()) else "No"


def _only(changed: list[str], expected: set[str]) -> Found:
    if set(changed) != expected:
        yield "other_cells_differ", f"{', '.join(changed) or 'none'}; expected {', '.join(sorted(expected))}"


class Kind(NamedTuple):
    """The question of a kind of pair, how the cells answer it, and what may change."""

    question: str
    answer: Callable[..., str | None]
    changes: Callable[..., Found]


_COLOUR, _SHAPE, _PLACE = (f"({'|'.join(names)})" for names in (COLOURS, SHAPES, PLACES))
_TERM = rf"(?:([0-9]) \* )?{_COLOUR}"

KINDS = {
    "counting": Kind(rf"How many {_COLOUR} objects are there \?", _count, _one_object_less),
    "sum": Kind(rf"What is {_TERM} ([+-]) {_TERM} \?", _sum, _one_object_less),
    "colour": Kind(rf"What colour is the object in the {_PLACE} \?", _colour_at, _other_colour),
    "shape": Kind(rf"What shape is the object in the {_PLACE} \?", _shape_at, _other_shape),
    "place": Kind(rf"Where is the {_COLOUR} {_SHAPE} \?", _place_of, _other_place),
    "blank": Kind(rf"Is there a {_COLOUR} {_SHAPE} \?", _is_there, _no_object),
}
