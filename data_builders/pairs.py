"""What is a set of paired pictures? A folder of `pairs.jsonl` with its images: what the vision swap is shown.

Each line is one `Pair`: a question with two pictures, the *target*, which the question is about, and the *source*,
whose vision the swap puts in its place. The set released with the paper (a folder for each task) is read too, from its
`data.jsonl`:

    {"id": "…", "task": "ocr", "target_image": "…", "source_image": "…", "prompt": "…", "meta": {"target_text": "…", …}}

`preflight` finds what in a set would spoil its rates, `DEFECTS` says what it looks for. It cannot see whether the two
pictures are alike apart from what the question asks for, nor whether the answers are true: that is for the builder to
ensure and for its tests to show.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from data_builders.images import DECODING_ERRORS

Box = tuple[float, float, float, float]
"""Left, top, right and bottom edge (xyxy)."""

TASKS = ("ocr", "counting", "grounding", "recognition")
"""The paper's four (appendix D): a word read off the picture, a number, a place, yes or no."""
PAIRS_FILE = "pairs.jsonl"
PUBLISHED_FILE = "data.jsonl"
PLACEHOLDER = "<image>"
PUBLISHED_KEYS = {
    "target_answer": ("target_answer", "target_text"),
    "source_answer": ("source_answer", "source_text"),
    "target_box": ("target_bbox_xyxy",),
    "source_box": ("source_bbox_xyxy",),
}
"""Field of a pair -> its names in `meta` of the published sets."""

DEFECTS = {
    "repeated_id": "its id stands twice",
    "unreadable_image": "an image is missing or cannot be decoded",
    "unusable_answer": "an answer that no reply can be judged by: counting needs numbers, recognition Yes and No",
    "empty_box": "a box without an area",
    "same_answer": "both pictures have the same answer, so nothing can be seen to move",
    "identical_images": "both pictures have the same pixels",
    "unequal_sizes": "the pictures differ in size; with unequal grids of vision tokens they cannot be swapped",
    "placeholder_in_prompt": f"the prompt holds a literal {PLACEHOLDER}, which a model would read as text",
    "boxes_overlap": "the two boxes share some area, so a box can hit both",
    "box_sizes_differ": "the object changes its size as well as its place",
    "box_outside_image": "a box ends outside its picture",
}
"""What the preflight looks for."""
FATAL = ("repeated_id", "unreadable_image", "unusable_answer", "empty_box")
"""Defects with which a pair cannot be asked or judged at all: it is left out, and the rest goes on."""
NOT_SEEN = "not checked: whether the pictures are alike apart from what is asked, and whether the answers are true"


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One question, the two pictures it can be asked about, and the answer to each."""

    id: str
    task: str
    question: str
    target_image: str
    """The picture that is asked about; a path relative to the set's folder."""
    source_image: str
    """The picture whose vision is swapped in."""
    target_answer: str
    source_answer: str
    target_box: Box | None = None
    """Where the object is that the question is about, in the image's pixels."""
    source_box: Box | None = None
    meta: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        for name in ("id", "question", "target_image", "source_image", "target_answer", "source_answer"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value.strip():
                raise ValueError(f"pair {self.id!r}: {name} is {value!r}; expected a non-empty string")
        if self.task not in TASKS:
            raise ValueError(f"pair {self.id!r}: task {self.task!r} is unknown; expected one of {', '.join(TASKS)}")
        for image in (self.target_image, self.source_image):
            if PurePosixPath(image).is_absolute() or ".." in PurePosixPath(image).parts:
                raise ValueError(f"pair {self.id!r}: image {image!r}; expected a path inside the set's folder")
        if (self.target_box is None) != (self.source_box is None):
            raise ValueError(f"pair {self.id!r}: has one box; expected one for each picture, or none")


@dataclass(frozen=True)
class Defect:
    """Something in a pair that spoils what can be learned from it."""

    pair_id: str
    kind: str
    """One of `DEFECTS`."""
    text: str
    is_fatal: bool
    """The pair cannot be used; the others can."""


def read_pairs(directory: Path) -> list[Pair]:
    """Reads a set in our own layout or in the published one; a malformed line is an error that names it."""
    path = _pairs_file(directory)
    read = _from_row if path.name == PAIRS_FILE else _from_published_row
    pairs = []
    for number, line in enumerate(path.read_bytes().decode().removesuffix("\n").split("\n"), start=1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise TypeError(f"is a {type(row).__name__}; expected one pair, a JSON object, a line")
            pairs.append(read(row))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{number}: not a JSON object ({error.msg}); expected one pair a line") from error
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}:{number}: {error}") from error
    return pairs


def write_pairs(directory: Path, pairs: Iterable[Pair]) -> None:
    """Writes `pairs.jsonl`, a line a pair, without the fields a pair leaves empty."""
    lines = []
    for pair in pairs:
        row = {name: value for name, value in asdict(pair).items() if value is not None}
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    (directory / PAIRS_FILE).write_text("".join(lines), encoding="utf-8")


def pairs_fingerprint(directory: Path) -> str:
    """Returns a sha256 that changes with the pairs and their images, which the manifest lists where there is one."""
    digest = hashlib.sha256(_pairs_file(directory).read_bytes())
    manifest = directory / "manifest.json"
    if manifest.is_file():
        digest.update(manifest.read_bytes())
        return digest.hexdigest()
    for image in sorted({image for pair in read_pairs(directory) for image in (pair.target_image, pair.source_image)}):
        path = directory / image
        digest.update(hashlib.sha256(path.read_bytes()).digest() if path.is_file() else b"missing")
    return digest.hexdigest()


def preflight(directory: Path, pairs: Sequence[Pair]) -> list[Defect]:
    """Returns what is wrong with the pairs, in their order; a pair has each kind of defect once.

    All images are decoded, which takes a few milliseconds each.
    """
    num_by_id = Counter(pair.id for pair in pairs)
    defects = []
    for pair in pairs:
        found: dict[str, list[str]] = {}
        if num_by_id[pair.id] > 1:
            found["repeated_id"] = [f"stands {num_by_id[pair.id]} times"]
        for kind, text in (*_defects_of_text(pair), *_defects_of_boxes(pair), *_defects_of_images(directory, pair)):
            found.setdefault(kind, []).append(text)
        defects += [Defect(pair.id, kind, "; ".join(texts), kind in FATAL) for kind, texts in found.items()]
    return defects


def summarise(defects: Sequence[Defect], num_pairs: int) -> list[str]:
    """Returns the defects as lines of text: how many pairs have each kind, and what no preflight can see."""
    lines = []
    for kind, meaning in DEFECTS.items():
        found = [defect.pair_id for defect in defects if defect.kind == kind]
        if found:
            named = ", ".join(found[:3]) + (", …" if len(found) > 3 else "")
            left_out = "; left out" if kind in FATAL else ""
            lines.append(f"{len(found)} of {num_pairs} pairs: {kind} ({meaning}{left_out}): {named}")
    return [*lines, NOT_SEEN]


def _pairs_file(directory: Path) -> Path:
    if not directory.is_dir():
        raise ValueError(f"{directory} is not a folder; expected a set of pairs (build one with data_builders.build)")
    for name in (PAIRS_FILE, PUBLISHED_FILE):
        path = directory / name
        if path.is_file():
            if not path.stat().st_size:
                raise ValueError(f"{path} is empty; expected at least one pair")
            return path
    inside = sorted(path.parent.name for name in (PAIRS_FILE, PUBLISHED_FILE) for path in directory.glob(f"*/{name}"))
    way_out = f"; its folders {', '.join(inside)} do" if inside else ""
    raise ValueError(f"{directory} holds neither {PAIRS_FILE} nor {PUBLISHED_FILE}{way_out}")


def _from_row(row: dict[str, Any]) -> Pair:
    known = {field.name for field in fields(Pair)}
    if extra := sorted(set(row) - known):
        raise ValueError(f"unexpected {extra}; a pair has the keys {', '.join(sorted(known))}")
    boxes = {name: _read_box(name, row[name]) for name in ("target_box", "source_box") if row.get(name) is not None}
    return Pair(**{**row, **boxes})


def _from_published_row(row: dict[str, Any]) -> Pair:
    prompt, meta = row.get("prompt"), row.get("meta")
    if not isinstance(prompt, str) or not isinstance(meta, dict):
        raise ValueError(
            f"prompt {prompt!r}, meta a {type(meta).__name__}; expected a text and an object, as published"
        )
    found: dict[str, Any] = {
        field: next((meta[name] for name in names if name in meta), None) for field, names in PUBLISHED_KEYS.items()
    }
    for side in ("target", "source"):
        if found[f"{side}_box"] is not None:
            box = _read_box(f"{side}_box", found[f"{side}_box"])
            found |= {f"{side}_box": box, f"{side}_answer": box_text(box)}
    kept = {key: value for key, value in meta.items() if not any(key in names for names in PUBLISHED_KEYS.values())}
    question = prompt.removeprefix(PLACEHOLDER).strip()
    if question != prompt:
        kept["prompt"] = prompt
    found |= {name: row.get(name) for name in ("id", "task", "target_image", "source_image")}
    return Pair(**found, question=question, meta=kept)


def _read_box(name: str, value: Any) -> Box:
    if not isinstance(value, list | tuple) or len(value) != 4 or not all(type(edge) in (int, float) for edge in value):
        raise ValueError(f"{name} is {value!r}; expected four numbers: left, top, right, bottom")
    left, top, right, bottom = value
    return left, top, right, bottom


def box_text(box: Box) -> str:
    """Returns a box as the published prompts ask for it: whole numbers, `x1,y1,x2,y2`."""
    return ",".join(str(round(edge)) for edge in box)


Found = Iterator[tuple[str, str]]
"""Kinds of defects, each with what was found."""


def _defects_of_text(pair: Pair) -> Found:
    prompt = (pair.meta or {}).get("prompt", pair.question)
    if PLACEHOLDER in str(prompt) or PLACEHOLDER in pair.question:
        stripped = "" if PLACEHOLDER in pair.question else "; taken out"
        yield "placeholder_in_prompt", f"{prompt!r}{stripped}"
    answers = (pair.target_answer, pair.source_answer)
    pattern = {"counting": r"\d+", "recognition": "(?i:yes|no)"}.get(pair.task)
    unusable = [answer for answer in answers if pattern and not re.fullmatch(pattern, answer.strip())]
    if unusable:
        yield "unusable_answer", " and ".join(repr(answer) for answer in unusable)
    if answers[0].strip().casefold() == answers[1].strip().casefold():
        yield "same_answer", repr(pair.target_answer)


def _defects_of_boxes(pair: Pair) -> Found:
    if pair.target_box is None or pair.source_box is None:
        return
    for side, box in (("target", pair.target_box), ("source", pair.source_box)):
        if box[0] >= box[2] or box[1] >= box[3]:
            yield "empty_box", f"{side} {box_text(box)}"
    if box_area(intersection(pair.target_box, pair.source_box)) > 0:
        yield "boxes_overlap", f"{box_text(pair.target_box)} and {box_text(pair.source_box)}"
    target_size, source_size = ((box[2] - box[0], box[3] - box[1]) for box in (pair.target_box, pair.source_box))
    if target_size != source_size:
        yield "box_sizes_differ", "{:g} x {:g} and {:g} x {:g}".format(*target_size, *source_size)


def _defects_of_images(directory: Path, pair: Pair) -> Found:
    pictures = []
    for side, name, box in (
        ("target", pair.target_image, pair.target_box),
        ("source", pair.source_image, pair.source_box),
    ):
        try:
            with Image.open(directory / name) as opened:
                picture = opened.convert("RGB")
        except DECODING_ERRORS as error:
            found = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be decoded: {_say(error, name)}"
            yield "unreadable_image", f"{side} {name} {found}"
            continue
        pictures.append(picture)
        if box is not None and (min(box) < 0 or box[2] > picture.width or box[3] > picture.height):
            yield "box_outside_image", f"{side} {box_text(box)} in {picture.width} x {picture.height}"
    if len(pictures) < 2:
        return
    target, source = pictures
    if target.size != source.size:
        yield "unequal_sizes", f"{target.width} x {target.height} and {source.width} x {source.height}"
    elif target.tobytes() == source.tobytes():
        yield "identical_images", f"{pair.target_image} and {pair.source_image}"


def _say(error: Exception, name: str) -> str:
    """Names an error without the paths of this machine, which Pillow puts into some of its texts."""
    return type(error).__name__ if name in str(error) else str(error)


def intersection(first: Box, second: Box) -> Box:
    """Returns the box that two boxes share; without an area where they share none."""
    return max(first[0], second[0]), max(first[1], second[1]), min(first[2], second[2]), min(first[3], second[3])


def box_area(box: Box) -> float:
    """Returns a box's area; zero where an edge stands on the wrong side."""
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])
