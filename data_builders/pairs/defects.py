"""Which defects of a pair set would bias its rates? Found before use, from texts, boxes and sizes.

`preflight` finds them, `DEFECTS` describes them. It cannot tell whether the two images differ only in what is asked, or
whether the answers are true: `data_builders/validate/command.py` checks that for sets made by the builders.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from data_builders.pairs.pair import Pair, box_area, box_text, intersection
from data_builders.prompt_sets.depth import eight_bits
from data_builders.prompt_sets.images import DECODING_ERRORS
from tracking.progress import progress

PLACEHOLDER = "<image>"

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
"""Defects checked by the preflight."""
FATAL = ("repeated_id", "unreadable_image", "unusable_answer", "empty_box")
"""Defects that make a pair unusable: it is left out, and the others are used."""
NOT_SEEN = "not checked: whether the pictures are alike apart from what is asked, and whether the answers are true"


@dataclass(frozen=True)
class Defect:
    """A defect of a pair."""

    pair_id: str
    kind: str
    """One of `DEFECTS`."""
    text: str
    is_fatal: bool
    """True if the pair cannot be used."""


def preflight(directory: Path, pairs: Sequence[Pair]) -> list[Defect]:
    """Returns the defects of the pairs, in order; each kind at most once per pair.

    All images are decoded, which takes a few milliseconds each.
    """
    num_by_id = Counter(pair.id for pair in pairs)
    defects = []
    for pair in progress(pairs, label=f"checking {directory}", unit="pair"):
        found: dict[str, list[str]] = {}
        if num_by_id[pair.id] > 1:
            found["repeated_id"] = [f"stands {num_by_id[pair.id]} times"]
        for kind, text in (*_defects_of_text(pair), *_defects_of_boxes(pair), *_defects_of_images(directory, pair)):
            found.setdefault(kind, []).append(text)
        defects += [Defect(pair.id, kind, "; ".join(texts), kind in FATAL) for kind, texts in found.items()]
    return defects


def summarise(defects: Sequence[Defect], num_pairs: int) -> list[str]:
    """Returns the defects as lines of text: the number of pairs per kind, and what the preflight cannot check."""
    lines = []
    for kind, meaning in DEFECTS.items():
        found = [defect.pair_id for defect in defects if defect.kind == kind]
        if found:
            named = ", ".join(found[:3]) + (", …" if len(found) > 3 else "")
            left_out = "; left out" if kind in FATAL else ""
            lines.append(f"{len(found)} of {num_pairs} pairs: {kind} ({meaning}{left_out}): {named}")
    return [*lines, NOT_SEEN]


Found = Iterator[tuple[str, str]]
"""Kinds of defects with findings."""


def _defects_of_text(pair: Pair) -> Found:
    prompt = (pair.meta or {}).get("published_prompt", pair.prompt)
    if PLACEHOLDER in str(prompt) or PLACEHOLDER in pair.prompt:
        stripped = "" if PLACEHOLDER in pair.prompt else "; taken out"
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
                picture = eight_bits(opened).convert("RGB")
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
    """Describes an error without local paths, which Pillow includes in some messages."""
    return type(error).__name__ if name in str(error) else str(error)
