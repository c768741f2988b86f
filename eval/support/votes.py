"""Which wrong replies give the same answer? What a reply votes for in a majority vote: its meaning under its kind.

`B`, `(B)` and `B. 24 cm` are one answer to a choice, `0.5` and `1/2` one number. Units are read as the grader reads
them: ignored if the gold has none, and the gold's if the answer has none. Answers that mean nothing under their kind,
such as an option that does not exist, are the same if they are equal as texts without blanks and case. All right
answers are one answer, however they are written.
"""

import re
from collections.abc import Callable, Hashable

from eval.grading import CORRECT, boxes_in, named_options, normalise_text, parse_quantity, plain, rounded, yes_or_no
from tracking.records import Record

Vote = tuple[str, Hashable]
"""How the answer was read, and its value."""
RIGHT: Vote = ("right", None)
"""What every right answer votes for."""

_ASSIGNED = re.compile(r"\s*[A-Za-z]\s*=\s*([^=]+)")


def vote(sample: Record) -> Vote:
    """Returns what a judged sample with an answer votes for; equal for answers with the same meaning.

    Args:
        sample: the record of a reply; without an `answer_kind`, numbers are read as numbers and others as texts.
    """
    if sample["status"] == CORRECT:
        return RIGHT
    kind = sample.get("answer_kind") or "number"
    meaning = MEANINGS[kind](sample["extracted"], sample) if kind in MEANINGS else None
    return ("text", re.sub(r"\s+", "", sample["extracted"]).casefold()) if meaning is None else (kind, meaning)


def _option(answer: str, sample: Record) -> Hashable:
    named = named_options(answer, tuple(sample.get("choices") or ()))
    return next(iter(named)) if len(named) == 1 else None


def _yes_or_no(answer: str, sample: Record) -> Hashable:
    said = yes_or_no(plain(answer))
    return next(iter(said)) if len(said) == 1 else None


def _number(answer: str, sample: Record) -> Hashable:
    quantity, gold = parse_quantity(answer), parse_quantity(sample.get("gold") or "")
    if quantity is None:
        return None
    value, dimension = quantity.value, ""
    if gold is not None and gold.unit is not None:
        unit = quantity.unit or gold.unit
        value, dimension = value * unit.factor, unit.dimension
    precision = sample.get("precision")
    return value if precision is None else rounded(value, precision), dimension


def _mathematics(answer: str, sample: Record) -> Hashable:
    spelling = plain(answer)
    assigned = _ASSIGNED.fullmatch(spelling)
    own = assigned[1] if assigned else spelling
    number = _number(own, sample)
    return own if number is None else number


def _box(answer: str, sample: Record) -> Hashable:
    return tuple(boxes_in(answer)) or None


def _text(answer: str, sample: Record) -> Hashable:
    return normalise_text(answer) or None


MEANINGS: dict[str, Callable[[str, Record], Hashable]] = {
    "choice": _option,
    "yes_no": _yes_or_no,
    "number": _number,
    "math": _mathematics,
    "box": _box,
    "text": _text,
}
"""Kind of answer -> its meaning, None if it has none; lists are compared as texts."""
