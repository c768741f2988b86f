"""What is a pair? One prompt with two pictures that it can be asked about: what the vision swap is shown.

The *target* is the picture that is asked about, the *source* the one whose vision the swap puts in its place. A set of
pairs is a folder of `pairs.jsonl`, a `Pair` a line, with its images.

`files.py` reads and writes such folders, `sets.py` builds them, `defects.py` finds what would spoil their rates, and
`data_builders/validate/` proves from the pixels that a pair is minimal.
"""

import json
import math
from dataclasses import dataclass, fields
from pathlib import PurePosixPath
from typing import Any

Box = tuple[float, float, float, float]
"""Left, top, right and bottom edge (xyxy)."""

TASKS = ("ocr", "counting", "grounding", "recognition")
"""The paper's four (appendix D): a word read off the picture, a number, a place, yes or no."""
PAIRS_FILE = "pairs.jsonl"


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One prompt, the two pictures it can be asked about, and the answer to each."""

    id: str
    task: str
    prompt: str
    target_image: str
    """The picture that is asked about; a path relative to the set's folder."""
    source_image: str
    """The picture whose vision is swapped in."""
    target_answer: str
    source_answer: str
    target_box: Box | None = None
    """Where the object is that the prompt is about, in the image's pixels."""
    source_box: Box | None = None
    meta: dict[str, Any] | None = None
    """Every parameter that was drawn, and where masks of the pictures stand."""

    def __post_init__(self) -> None:
        for name in ("id", "prompt", "target_image", "source_image", "target_answer", "source_answer"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value.strip():
                raise ValueError(f"pair {self.id!r}: {name} is {value!r}; expected a non-empty string")
        if self.task not in TASKS:
            raise ValueError(f"pair {self.id!r}: task {self.task!r} is unknown; expected one of {', '.join(TASKS)}")
        for image in self.images:
            if PurePosixPath(image).is_absolute() or ".." in PurePosixPath(image).parts:
                raise ValueError(f"pair {self.id!r}: image {image!r}; expected a path inside the set's folder")
        if (self.target_box is None) != (self.source_box is None):
            raise ValueError(f"pair {self.id!r}: has one box; expected one for each picture, or none")

    @property
    def images(self) -> tuple[str, str]:
        """Target and source."""
        return self.target_image, self.source_image


def to_line(pair: Pair) -> str:
    """Returns a pair as its file has it, without the fields it leaves empty."""
    values = ((field.name, getattr(pair, field.name)) for field in fields(pair))
    row = {name: value for name, value in values if value is not None}
    return json.dumps(row, ensure_ascii=False) + "\n"


def from_row(row: dict[str, Any]) -> Pair:
    """Returns the pair that a line holds.

    Raises:
        ValueError, TypeError: for keys that no pair has, or missing ones.
    """
    known = {field.name for field in fields(Pair)}
    if extra := sorted(set(row) - known):
        raise ValueError(f"unexpected {extra}; a pair has the keys {', '.join(sorted(known))}")
    boxes = {name: read_box(name, row[name]) for name in ("target_box", "source_box") if row.get(name) is not None}
    return Pair(**{**row, **boxes})


def read_box(name: str, value: Any) -> Box:
    """Returns four numbers as a box."""
    if (
        not isinstance(value, list | tuple)
        or len(value) != 4
        or not all(type(edge) in (int, float) and math.isfinite(edge) for edge in value)
    ):
        raise ValueError(f"{name} is {value!r}; expected four numbers: left, top, right, bottom")
    left, top, right, bottom = value
    return left, top, right, bottom


def box_text(box: Box) -> str:
    """Returns a box as the published prompts ask for it: whole numbers, `x1,y1,x2,y2`."""
    return ",".join(str(round(edge)) for edge in box)


def intersection(first: Box, second: Box) -> Box:
    """Returns the box that two boxes share; without an area where they share none."""
    return max(first[0], second[0]), max(first[1], second[1]), min(first[2], second[2]), min(first[3], second[3])


def box_area(box: Box) -> float:
    """Returns a box's area; zero where an edge stands on the wrong side."""
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])
