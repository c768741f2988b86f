"""What is a pair? One prompt with two images that it can be asked about: the input of the vision swap.

The *target* is the image that is asked about, the *source* the one whose vision tokens the swap inserts instead. A pair
set is a folder with `pairs.jsonl`, one `Pair` per line, and its images.

`files.py` reads and writes such folders, `sets.py` builds them, `defects.py` finds defects that would bias their rates,
and `data_builders/validate/` proves from the pixels that a pair is minimal.
"""

import json
import math
from dataclasses import dataclass, fields
from pathlib import PurePosixPath
from typing import Any

Box = tuple[float, float, float, float]
"""Left, top, right, bottom (xyxy)."""

TASKS = ("ocr", "counting", "grounding", "recognition")
"""The paper's four tasks (appendix D): a word in the image, a number, a position, yes or no."""
PAIRS_FILE = "pairs.jsonl"


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One prompt, two images, and the answer for each."""

    id: str
    task: str
    prompt: str
    target_image: str
    """The image that is asked about; a path relative to the set's folder."""
    source_image: str
    """The image whose vision tokens are swapped in."""
    target_answer: str
    source_answer: str
    target_box: Box | None = None
    """Box of the object in the prompt, in image pixels."""
    source_box: Box | None = None
    meta: dict[str, Any] | None = None
    """All drawn parameters, and the paths of masks."""

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
    """Returns a pair as in its file, without empty fields."""
    values = ((field.name, getattr(pair, field.name)) for field in fields(pair))
    row = {name: value for name, value in values if value is not None}
    return json.dumps(row, ensure_ascii=False) + "\n"


def from_row(row: dict[str, Any]) -> Pair:
    """Returns the pair in a line.

    Raises:
        ValueError, TypeError: for unknown or missing keys.
    """
    known = {field.name for field in fields(Pair)}
    if extra := sorted(set(row) - known):
        raise ValueError(f"unexpected {extra}; a pair has the keys {', '.join(sorted(known))}")
    boxes = {name: read_box(name, row[name]) for name in ("target_box", "source_box") if row.get(name) is not None}
    return Pair(**{**row, **boxes})


def read_box(name: str, value: Any) -> Box:
    """Converts four numbers to a box."""
    if (
        not isinstance(value, list | tuple)
        or len(value) != 4
        or not all(type(edge) in (int, float) and math.isfinite(edge) for edge in value)
    ):
        raise ValueError(f"{name} is {value!r}; expected four numbers: left, top, right, bottom")
    left, top, right, bottom = value
    return left, top, right, bottom


def box_text(box: Box) -> str:
    """Formats a box as the published prompts request it: integers, `x1,y1,x2,y2`."""
    return ",".join(str(round(edge)) for edge in box)


def intersection(first: Box, second: Box) -> Box:
    """Returns the intersection of two boxes; it has no area if they do not overlap."""
    return max(first[0], second[0]), max(first[1], second[1]), min(first[2], second[2]), min(first[3], second[3])


def box_area(box: Box) -> float:
    """Returns a box's area; zero if its edges are reversed."""
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])
