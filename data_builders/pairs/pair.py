"""What is a pair? One prompt with two pictures that it can be asked about: what the vision swap is shown.

The *target* is the picture that is asked about, the *source* the one whose vision the swap puts in its place. A set of
pairs is a folder of `pairs.jsonl`, a `Pair` a line, with its images. The set released with the paper (a folder for each
task) is read too, from its `data.jsonl` (`data_builders/published.py`).

`data_builders/pair_sets.py` builds such folders, `pair_defects.py` finds what would spoil their rates, and
`data_builders/validate.py` proves from the pixels that a pair is minimal.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath
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


def read_pairs(directory: Path) -> list[Pair]:
    """Reads a set in our own layout or in the published one; a malformed line is an error that names it."""
    return list(iter_pairs(directory))


def iter_pairs(directory: Path) -> Iterator[Pair]:
    """Yields the pairs of a set line by line, as `read_pairs`."""
    from data_builders.published import PUBLISHED_FILE, from_published_row

    readers: dict[str, Callable[[dict[str, Any]], Pair]] = {PAIRS_FILE: from_row, PUBLISHED_FILE: from_published_row}
    path = pairs_file(directory, tuple(readers))
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise TypeError(f"is a {type(row).__name__}; expected one pair, a JSON object, a line")
                pair = readers[path.name](row)
            except json.JSONDecodeError as error:
                what = f"not a JSON object ({error.msg})"
                raise ValueError(f"{path}:{number}: {what}; expected one pair a line") from error
            except (TypeError, ValueError) as error:
                raise ValueError(f"{path}:{number}: {error}") from error
            yield pair


def write_pairs(directory: Path, pairs: Iterable[Pair]) -> None:
    """Writes `pairs.jsonl`, a line a pair."""
    (directory / PAIRS_FILE).write_text("".join(map(to_line, pairs)), encoding="utf-8")


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


def pairs_fingerprint(directory: Path) -> str:
    """Returns a sha256 that changes with the pairs and their images, which the manifest lists where there is one."""
    from data_builders.published import PUBLISHED_FILE

    digest = hashlib.sha256(pairs_file(directory, (PAIRS_FILE, PUBLISHED_FILE)).read_bytes())
    manifest = directory / "manifest.json"
    if manifest.is_file():
        digest.update(manifest.read_bytes())
        return digest.hexdigest()
    for image in sorted({image for pair in read_pairs(directory) for image in pair.images}):
        path = directory / image
        digest.update(hashlib.sha256(path.read_bytes()).digest() if path.is_file() else b"missing")
    return digest.hexdigest()


def pairs_file(directory: Path, names: tuple[str, ...]) -> Path:
    """Returns the first of the named files that a folder holds."""
    if not directory.is_dir():
        raise ValueError(f"{directory} is not a folder; expected a set of pairs (build one with data_builders.build)")
    for name in names:
        path = directory / name
        if path.is_file():
            if not path.stat().st_size:
                raise ValueError(f"{path} is empty; expected at least one pair")
            return path
    inside = sorted(path.parent.name for name in names for path in directory.glob(f"*/{name}"))
    way_out = f"; its folders {', '.join(inside)} do" if inside else ""
    raise ValueError(f"{directory} holds neither {' nor '.join(names)}{way_out}")


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
