r"""Parses numbers exactly: decimals, fractions, mixed numbers, powers of ten, percent and units, as fractions.

Numbers are exact, never approximate: 1009 is not 1000, and 0.333333 is not 1/3. If a data set states a number of
decimals, both sides are rounded to it, halves away from zero. Units agree if they are the same or convert exactly
(`units.py`), and are ignored if one side has none. If only one side has a percent sign, both readings are accepted: 50%
is 50 (percent) and 0.5.

Commas are thousands separators only in groups of three: `1,234` is a number, `2,1251` and `10,00` are not.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from eval.grading.latex import plain
from eval.grading.units import (
    CHINESE_SCALES,
    CHINESE_UNIT,
    PERCENT,
    SCALES,
    Unit,
    known_unit,
    parse_unit,
)

MAX_CHARS = 400
MAX_EXPONENT = 400
"""Larger powers of ten are not expanded into digits."""

_DECIMAL = r"(?:\d{1,3}(?:[, ]\d{3})+(?!\d)|\d+)?(?:\.\d+)?"
_EXPONENT = r"(?:[eE](?P<e>[+-]?\d+)|(?:\\times|\*|x)\s?10\^\{?(?P<times>[+-]?\d+)\}?)"
_VALUE = re.compile(
    rf"""(?P<sign>[+-]?)\s*(?P<currency>\\?\$|[€£¥])?\s*(?P<inner_sign>(?<!\d)-)?(?:
        (?P<whole>\d+)?\s*\\frac\{{(?P<top>-?\d+(?:\.\d+)?)\}}\{{(?P<bottom>\d+(?:\.\d+)?)\}}
      | (?P<mixed>\d+)[ ](?P<over>\d+)/(?P<under>\d+)
      | (?P<base>\d{{1,6}})\^\{{?(?P<power>-?\d{{1,3}})\}}?
      | (?P<decimal>(?=[.\d]){_DECIMAL})(?:{_EXPONENT}|\.?/(?P<divisor>\d+(?:\.\d+)?))?
    )(?P<rest>.*)""",
    re.VERBOSE | re.DOTALL,
)
_SIMPLE = re.compile(r"[+-]?\d{1,15}(?:\.\d{1,15})?", re.ASCII)
_BEFORE = re.compile(r"^(?:\\approx|[=~*]|(?:about|approximately|around|roughly|exactly)\s|[A-Za-z]\s?=)\s*", re.I)
_NUMBER_WORDS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
)  # fmt: skip
_TENS = {"thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90}
NUMBER_WORDS = {word: value for value, word in enumerate(_NUMBER_WORDS)} | _TENS
_WORD = re.compile(r"([a-z]+)(?:[- ]([a-z]+))?")
_CHINESE_SCALES = "".join(CHINESE_SCALES)


@dataclass(frozen=True)
class Quantity:
    """A number with its unit, if any."""

    value: Fraction
    unit: Unit | None = None


def parse_number(text: str) -> Fraction | None:
    """Returns the exact value of a number, alone or with a currency, percent or degree sign, or None."""
    quantity = parse_quantity(text)
    if quantity is None or (quantity.unit is not None and quantity.unit.dimension not in _SIGNS):
        return None
    return quantity.value


_DEGREES = "degrees"
_SIGNS = (PERCENT, _DEGREES, "dollars", "euros", "pounds sterling", "yuan or yen")


@lru_cache(maxsize=4096)
def parse_quantity(text: str) -> Quantity | None:
    """Parses a text that is one number with an optional unit; None if it is not."""
    if _SIMPLE.fullmatch(text):
        return Quantity(Fraction(text))
    if len(text) > MAX_CHARS:
        return None
    text = plain(text)
    text = _BEFORE.sub("", text)
    if text.startswith("(") and text.endswith(")") and "," not in text:
        text = text[1:-1]
    found = _VALUE.fullmatch(text)
    if found is None:
        return _spelled(text)
    try:
        value = _value(found)
    except (ValueError, ZeroDivisionError):
        return None
    return None if value is None else _with_unit(value, found["currency"], found["rest"].strip())


def _value(found: re.Match[str]) -> Fraction | None:
    if found["sign"] and found["inner_sign"]:
        return None
    sign = -1 if "-" in (found["sign"], found["inner_sign"]) else 1
    if found["top"] is not None:
        top = Fraction(found["top"])
        if found["whole"] is not None and top < 0:
            return None
        return sign * (int(found["whole"] or 0) + top / Fraction(found["bottom"]))
    if found["mixed"] is not None:
        return sign * (int(found["mixed"]) + Fraction(int(found["over"]), int(found["under"])))
    if found["base"] is not None:
        return sign * Fraction(found["base"]) ** int(found["power"])
    value = sign * Fraction(re.sub("[, ]", "", found["decimal"]))
    exponent = found["e"] or found["times"]
    if exponent is not None:
        return _power_of_ten(value, exponent)
    return value / Fraction(found["divisor"]) if found["divisor"] is not None else value


def _power_of_ten(value: Fraction, exponent: str) -> Fraction | None:
    if len(exponent) > 6 or abs(int(exponent)) > MAX_EXPONENT:
        return None
    return value * Fraction(10) ** int(exponent)


def _with_unit(value: Fraction, currency: str | None, rest: str) -> Quantity | None:
    if rest and rest[0] in CHINESE_SCALES and known_unit(rest) is None:
        after = rest.lstrip(_CHINESE_SCALES)
        value *= 10 ** sum(CHINESE_SCALES[sign] for sign in rest[: len(rest) - len(after)])
        rest = after.strip()
    scale, _, after = rest.partition(" ")
    if scale.casefold() in SCALES:
        value *= 10 ** SCALES[scale.casefold()]
        rest = after.strip()
    unit = known_unit(currency) if currency else None
    if not rest:
        return Quantity(value, unit)
    own = parse_unit(rest)
    return None if own is None else Quantity(value, unit or own)


def _spelled(text: str) -> Quantity | None:
    """Reads a number in words up to ninety-nine: `seven`, `twenty-one`, `five apples`."""
    found = _WORD.match(text.casefold())
    if found is None or found[1] not in NUMBER_WORDS:
        return None
    value, end = NUMBER_WORDS[found[1]], found.end(1)
    if value >= 20 and 1 <= NUMBER_WORDS.get(found[2] or "", 0) <= 9:
        value, end = value + NUMBER_WORDS[found[2]], found.end(2)
    rest = text[end:].strip()
    return None if rest.startswith("-") else _with_unit(Fraction(value), None, rest)


def are_compatible(first: Unit, second: Unit) -> bool:
    """True if quantities in the two units can be equal; plain degrees may be degrees of an angle or a temperature."""
    if first.dimension == second.dimension:
        return True
    return _DEGREES in (first.dimension, second.dimension) and (first.dimension + second.dimension).count(_DEGREES) == 2


def equal_quantities(answer: Quantity, gold: Quantity, precision: int | None = None) -> bool:
    """Returns whether two quantities are equal, rounded to `precision` decimals if given."""
    ours, theirs = answer.unit, gold.unit
    if ours is not None and theirs is not None and not are_compatible(ours, theirs):
        return False
    readings = [answer.value]
    if ours is not None and theirs is not None:
        readings = [answer.value * ours.factor / theirs.factor]
    elif ours is not None and ours.dimension == PERCENT:
        readings.append(answer.value / 100)
    elif theirs is not None and theirs.dimension == PERCENT:
        readings.append(answer.value * 100)
    if precision is None:
        return gold.value in readings
    return rounded(gold.value, precision) in [rounded(value, precision) for value in readings]


def rounded(value: Fraction, decimals: int) -> Fraction:
    """Rounds to a number of decimals, halves away from zero."""
    scale = 10**decimals
    whole = (abs(value) * scale * 2 + 1) // 2
    return Fraction(whole if value >= 0 else -whole, scale)


def equal_numbers(answer: str, gold: str, precision: int | None = None) -> bool | None:
    """Returns whether an answer equals the gold number; None if the gold is not a number."""
    theirs = parse_quantity(gold)
    if theirs is None:
        return None
    ours = parse_quantity(answer)
    return ours is not None and equal_quantities(ours, theirs, precision)


_SPACE_OF_THOUSANDS = r"(?:~|\\[:; ]|\{\\[,:; ]\})(?=\d{3}(?!\d))|(?<=[０-９])，(?=[０-９]{3}(?![０-９]))"
_DIGITS = rf"\d++(?:(?:,|\{{,\}}|,?\\!|\\,|{_SPACE_OF_THOUSANDS})\d++)*"
_ANY_FRACTION = r"\\[dtc]?frac\s?(?:\{\s?-?\d+\s?\}|\d)\s?(?:\{\s?\d+\s?\}|\d)"
_SUPERSCRIPT = "[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+"
_TENS_POWER = rf"\s?(?:\\times|\\cdot|[×x*])\s?10\s?(?:\^\s?\{{?[-−]?\d+\}}?|{_SUPERSCRIPT})"
_SCALING = rf"{_TENS_POWER}|[eE][-+]?\d++|\s?/\s?\d++(?![\d/])|\^\{{?-?\d++\}}?|{_SUPERSCRIPT}"
_TOKEN = re.compile(
    rf"""(?:(?<![0-9A-Za-z_０-９\u0370-\u03ff)\]}}%])[-−－])?(?:\\?[$€£¥￥]-?)?(?:
        (?:\d++\s?)?{_ANY_FRACTION}
      | \d++\s\d++/\d++
      | (?:{_DIGITS}(?:[.．]\d++)?|(?<!\w)\.\d++)(?:{_SCALING})?
    )(?:\s?(?:\\?[%％]|°|\^\\circ|\^\{{\\circ\}}|¢))?""",
    re.VERBOSE,
)
"""A number within text; a minus between two numbers is not a sign, and malformed groups are kept together."""
_AFTER = re.compile(r"(\s?)([A-Za-z]+(?:\^\{?[23]\}?|[²³])?(?:/[a-z]+(?:\^2|²)?)?)(?![\w^])")
_GAP = r"(?:[\s~]|\\[,;:!\s]|\\q?quad(?![A-Za-z]))*"
_LATEX_AFTER = re.compile(
    rf"{_GAP}\\(?:text|mbox|textrm|mathrm|operatorname)\s*\{{[^{{}}]*\}}(?:\^\{{?-?[1-4]\}}?)?"
    rf"(?:\s*(?:/|\\cdot){_GAP}\\(?:text|mbox|textrm|mathrm|operatorname)\s*\{{[^{{}}]*\}}(?:\^\{{?-?[1-4]\}}?)?)?"
)
_STARTS_LATEX = re.compile(r"[\s~]{0,3}(?:\\[A-Za-z,;:! ])")
_AMBIGUOUS_UNITS = frozenset(("a", "s", "in", "per", "day", "days", "second", "unit", "units", "A", "C", "K"))


def find_numbers(text: str) -> list[re.Match[str]]:
    """Returns the numbers in a text, in order."""
    return list(_TOKEN.finditer(text))


def with_unit(text: str, number: re.Match[str]) -> str:
    r"""Extends a number in a text by what follows it: a unit of the table, a word like million, trailing letters.

    The unit may be in LaTeX (`12\,\text{m}`) or Chinese (`3万千米`).
    """
    end = number.end()
    after = _AFTER.match(text, end)
    if after is not None:
        if after[1] and after[2] in _AMBIGUOUS_UNITS:
            return number.group()
        word = plain(after[2])
        is_part = not after[1] or word.casefold() in SCALES or known_unit(word) is not None
        return text[number.start() : after.end()] if is_part else number.group()
    if end == len(text):
        return number.group()
    if _STARTS_LATEX.match(text, end):
        after = _LATEX_AFTER.match(text, end)
        unit = plain(after.group()) if after else ""
        if after is not None and (unit.casefold() in SCALES or known_unit(unit) is not None):
            return text[number.start() : after.end()]
    elif not text[end].isascii() or text[end] == " ":
        after = CHINESE_UNIT.match(text, end + (text[end] == " "))
        if after is not None and after.group():
            return text[number.start() : after.end()]
    return number.group()
