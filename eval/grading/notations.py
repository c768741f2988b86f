r"""Values with a modulus, a base, or minutes of arc: are they equal? Exact rules for what math-verify does not read.

    modulus  `9 \bmod 7` is 2; `9 \pmod 7` is the residue class of 2
    base     `204_5` is 54; but for a gold in a base, its digits count: `54` is not the answer `204_5`
    arc      `30^\circ 15'` is 30.25 degrees

Two residue classes are equal if their moduli are and their difference is a multiple of it. A residue class and a number
are equal if the number is its representative, different if they are incongruent, and undecidable otherwise.
"""

import re
from collections.abc import Callable
from fractions import Fraction

from eval.grading.latex import plain
from eval.grading.quantities import Quantity, parse_quantity
from eval.grading.units import UNITS

MAX_BASE = 36
MAX_POWER = 10**9
"""Larger exponents are not reduced by a modulus."""
UNDECIDABLE = "undecidable"

_BASE_NAMES = {
    "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10, "eleven": 11,
    "twelve": 12, "sixteen": 16,
}  # fmt: skip
_IN_BASE = re.compile(r"\(?([0-9A-Z]+)\)?_\{?\(?(\d{1,2}|[a-z]+)\)?\}?")
_MODULO = re.compile(
    r"(?:[A-Za-z]\s*(?:\\equiv|≡|=)\s*)?(?P<value>[^=]+?)\s*"
    r"(?:\(\s*(?:\\bmod|\\mod|mod)\s*(?P<inner>\d+)\s*\)|\\pmod\s*\{?\s*(?P<class>\d+)\s*\}?"
    r"|(?:\\bmod|\\mod|mod)\s*\{?\s*(?P<operator>\d+)\s*\}?)"
)
_POWER = re.compile(r"(\d{1,40})\^\{?(\d{1,40})\}?")
_ARC = re.compile(
    r"(?P<sign>-?)(?P<degrees>\d+)°\s*(?P<minutes>\d+(?:\.\d+)?)(?:'|\^\\prime|\^\{\\prime\})"
    r"(?:\s*(?P<seconds>\d+(?:\.\d+)?)(?:''|\"|\^\\prime\s?\\prime|\^\{\\prime\s?\\prime\}))?"
)


def numeral_in_base(text: str) -> tuple[str, int] | None:
    """Returns digits and base of a plain text such as `204_5`, if the digits exist in that base."""
    found = _IN_BASE.fullmatch(text) if "_" in text else None
    if found is None:
        return None
    base = int(found[2]) if found[2].isdecimal() else _BASE_NAMES.get(found[2], 0)
    if not 2 <= base <= MAX_BASE or any(int(digit, 36) >= base for digit in found[1]):
        return None
    return found[1], base


def compare_notations(answer: str, gold: str) -> bool | str | None:
    """Returns whether two values are equal if one is written in one of the notations, else None; may be UNDECIDABLE."""
    text = answer + gold
    for signs, compare in _COMPARED:
        if any(sign in text for sign in signs):
            verdict = compare(plain(answer), plain(gold))
            if verdict is not None:
                return verdict
    return None


def _compare_bases(ours: str, theirs: str) -> bool | str | None:
    mine, other = numeral_in_base(ours), numeral_in_base(theirs)
    if other is not None:
        return mine == other or ours == other[0]
    if mine is None:
        return None
    right = parse_quantity(theirs)
    if right is None:
        return None
    if right.value == int(*mine):
        return True
    return UNDECIDABLE if theirs == mine[0] else False  # the gold may be in the base that its question names


def _compare_residues(ours: str, theirs: str) -> bool | str | None:
    mine, other = _MODULO.fullmatch(ours), _MODULO.fullmatch(theirs)
    if mine is None and other is None:
        return None
    if mine is not None and other is not None and not (mine["operator"] or other["operator"]):
        moduli = [int(side["class"] or side["inner"]) for side in (mine, other)]
        values = [_integer(side["value"], moduli[0]) for side in (mine, other)]
        if moduli[0] != moduli[1]:
            return False
        return UNDECIDABLE if None in values else values[0] == values[1]
    first, second = _number_or_class(ours, mine), _number_or_class(theirs, other)
    if first is None or second is None:
        return UNDECIDABLE
    if first[0] == second[0]:
        return True
    modulus = first[1] or second[1]
    return UNDECIDABLE if modulus and (first[0] - second[0]) % modulus == 0 else False


def _number_or_class(text: str, found: re.Match[str] | None) -> tuple[Fraction, int] | None:
    """Returns a value and its modulus: 0 for a number, such as the result of the operator mod."""
    if found is None:
        quantity = parse_quantity(text)
        return None if quantity is None else (quantity.value, 0)
    modulus = int(found["operator"] or found["class"] or found["inner"])
    if found["operator"]:
        value = _integer(found["value"], modulus)
        return None if value is None else (Fraction(value), 0)
    quantity = parse_quantity(found["value"])
    return None if quantity is None or modulus == 0 else (quantity.value, modulus)


def _integer(text: str, modulus: int) -> int | None:
    """Returns an integer or a power of integers, reduced by a modulus."""
    power = _POWER.fullmatch(text)
    if modulus == 0 or (power and int(power[2]) > MAX_POWER):
        return None
    if power:
        return pow(int(power[1]), int(power[2]), modulus)
    quantity = parse_quantity(text)
    return None if quantity is None or quantity.value.denominator != 1 else int(quantity.value) % modulus


def _compare_arcs(ours: str, theirs: str) -> bool | str | None:
    mine, other = _ARC.fullmatch(ours), _ARC.fullmatch(theirs)
    if mine is None and other is None:
        return None
    first, second = (
        _degrees(found) if found else parse_quantity(text) for text, found in ((ours, mine), (theirs, other))
    )
    if first is None or second is None:
        return None
    return first.value == second.value and (first.unit in (None, second.unit) or second.unit is None)


def _degrees(found: re.Match[str]) -> Quantity:
    parts = [Fraction(found[name] or 0) for name in ("degrees", "minutes", "seconds")]
    value = parts[0] + parts[1] / 60 + parts[2] / 3600
    return Quantity(-value if found["sign"] else value, UNITS["°"])


_COMPARED: tuple[tuple[tuple[str, ...], Callable[[str, str], bool | str | None]], ...] = (
    (("_",), _compare_bases),
    (("mod",), _compare_residues),
    (("'", "prime"), _compare_arcs),
)
"""Signs of a notation, and how it is compared."""
