r"""Are two mathematical answers equal? Simple cases are decided here, the others by math-verify.

Decided first, without symbolic mathematics: the same plain spelling (`latex.py`); two exact numbers; tuples
and intervals of exact numbers; numerals in a named base (`52_8` is `52`, and neither `42` nor `52_9`); golds that are
words (`\text{east}`) or an option's letter (`\text{(C)}`). All other pairs are passed to `mathematics.py`.

Two cases that math-verify accepts are rejected: a set in braces for a pair, and adjacent numbers (`2 3`, read as 5).
"""

import re

from eval.grading.latex import plain
from eval.grading.mathematics import equal_expressions
from eval.grading.options import equal_options
from eval.grading.quantities import equal_quantities, parse_quantity

MAX_DEPTH = 20
"""Deeper nesting is not a final answer, and its parsing time is unbounded."""

_WORDS = re.compile(r"\$?\s*\\(?:text|mbox|textbf|mathrm)\{[^{}0-9\\]*[A-Za-z]{2}[^{}0-9\\]*\}\s*\$?")
_LETTER = re.compile(r"\$?\s*\\(?:text|mbox|textbf|mathrm)\{\s*\(?[A-J]\)?\s*\}\s*\$?")
_IN_BASE = re.compile(r"([0-9A-F]+)_\{?(\d+)\}?")
_ASSIGNED = re.compile(r"([A-Za-z](?:_\w)?)=([^=]+)")
_TUPLE = re.compile(r"([(\[])([^()\[\]{}]*)([)\]])")
_PAIR = re.compile(r"\([^()]*,[^()]*\)")


def equal_mathematics(answer: str, gold: str) -> bool | None:
    """Returns whether two mathematical answers are equal; None if the gold does not parse or time runs out."""
    verdict = plainly_equal(answer, gold)
    return equal_expressions(answer, gold) if verdict is None else verdict


def plainly_equal(answer: str, gold: str) -> bool | None:
    """Returns whether two answers are equal if that is certain without symbolic mathematics, else None."""
    ours, theirs = plain(answer), plain(gold)
    if not theirs:
        return None
    if ours == theirs:
        return True
    if _LETTER.fullmatch(gold):
        return equal_options(answer, gold)
    if _WORDS.fullmatch(gold):
        return _bare_words(ours) == _bare_words(theirs)
    based = _IN_BASE.fullmatch(theirs)
    if based is not None:
        digits = _IN_BASE.fullmatch(ours)
        return (digits[1], digits[2]) == (based[1], based[2]) if digits else ours == based[1]
    ours, theirs = _same_assignment(ours, theirs)
    if "=" in ours or "=" in theirs:
        return None
    number, right = parse_quantity(ours), parse_quantity(theirs)
    if number is not None and right is not None:
        return equal_quantities(number, right)
    if _are_side_by_side(ours) and not _are_side_by_side(theirs):
        return False
    if _depth(ours) > MAX_DEPTH:
        return False
    if right is not None and re.fullmatch(r"[\d,]+", ours):
        return False  # malformed thousands, or a list
    if ours.startswith("\\{") and _PAIR.fullmatch(theirs):
        return False
    return _equal_tuples(ours, theirs)


def _same_assignment(ours: str, theirs: str) -> tuple[str, str]:
    """Drops `x=` if one side has it, or both have the same."""
    mine, other = _ASSIGNED.fullmatch(ours), _ASSIGNED.fullmatch(theirs)
    if mine and other:
        return (mine[2], other[2]) if mine[1] == other[1] else (ours, theirs)
    if mine and "=" not in theirs:
        return mine[2], theirs
    if other and "=" not in ours:
        return ours, other[2]
    return ours, theirs


def _equal_tuples(ours: str, theirs: str) -> bool | None:
    """Compares exact numbers within the same brackets."""
    mine, other = _TUPLE.fullmatch(ours), _TUPLE.fullmatch(theirs)
    if mine is None or other is None:
        return None
    numbers = [[parse_quantity(part) for part in side[2].split(",")] for side in (mine, other)]
    if any(number is None for side in numbers for number in side):
        return None
    if len(numbers[0]) != len(numbers[1]) or (mine[1], mine[3]) != (other[1], other[3]):
        return False
    return all(a and b and equal_quantities(a, b) for a, b in zip(*numbers, strict=True))


def _are_side_by_side(text: str) -> bool:
    return re.fullmatch(r"[-\d.]+(?: [-\d.]+)+", text) is not None


def _depth(text: str) -> int:
    deepest = depth = 0
    for bracket in re.findall(r"[()\[\]{}]", text):
        depth += 1 if bracket in "([{" else -1
        deepest = max(deepest, depth)
    return deepest


def _bare_words(text: str) -> str:
    return " ".join(re.findall(r"[^\W_]+", text.casefold()))
