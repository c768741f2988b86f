"""Which unit follows a number, and how does it convert? A small table with exact factors; other words are units too.

A unit is a dimension with a factor to that dimension's base: `5 cm` is 1/20 of a metre. Words that are not in the table
(`5 apples`) are their own dimensions. The table contains the units common in school problems; other units are compared
as words.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

PERCENT = "%"


@dataclass(frozen=True)
class Unit:
    """The unit of a number."""

    dimension: str
    factor: Fraction = Fraction(1)
    """Factor to the dimension's base unit."""


_NAMED: dict[str, tuple[str, str]] = {
    "mm millimeter millimetre 毫米": ("length", "1/1000"), "cm centimeter centimetre 厘米": ("length", "1/100"),
    "dm decimeter decimetre": ("length", "1/10"), "m meter metre 米": ("length", "1"),
    "km kilometer kilometre 千米": ("length", "1000"), "inch inches": ("length", "127/5000"),
    "ft foot feet": ("length", "381/1250"), "yd yard": ("length", "1143/1250"), "mi mile": ("length", "201168/125"),
    "mg milligram": ("mass", "1/1000"), "g gram": ("mass", "1"), "kg kilogram": ("mass", "1000"),
    "lb lbs pound": ("mass", "45359237/100000"), "oz ounce": ("mass", "45359237/1600000"),
    "ms millisecond": ("time", "1/1000"), "s sec second": ("time", "1"), "min mins minute": ("time", "60"),
    "h hr hrs hour": ("time", "3600"), "day": ("time", "86400"), "week": ("time", "604800"),
    "month": ("months", "1"), "year yr yrs": ("months", "12"),
    "ml milliliter millilitre": ("length^3", "1/1000000"), "l liter litre": ("length^3", "1/1000"),
    "$ dollar usd buck": ("dollars", "1"), "¢ cent": ("dollars", "1/100"), "€ euro eur": ("euros", "1"),
    "£ gbp": ("pounds sterling", "1"), "¥ yen yuan rmb 元": ("yuan or yen", "1"),
    "° degree deg 度": ("degrees", "1"), "radian rad": ("radians", "1"), "% percent pct": (PERCENT, "1/100"),
    "n newton": ("newtons", "1"), "j joule": ("joules", "1"), "kj kilojoule": ("joules", "1000"),
    "w watt": ("watts", "1"), "kw kilowatt": ("watts", "1000"), "v volt": ("volts", "1"), "hz hertz": ("hertz", "1"),
    "pa pascal": ("pascals", "1"), "mph": ("length/time", "1397/3125"), "kmh kph": ("length/time", "5/18"),
    "unit": ("", "1"),
}  # fmt: skip
"""Names of a unit, singular -> dimension and factor; symbols are distinguished from words by length only."""
UNITS = {
    name: Unit(dimension, Fraction(factor)) for names, (dimension, factor) in _NAMED.items() for name in names.split()
}
SYMBOLS = frozenset("mgshlLNJWV°%$€£¥¢米元度")
"""Case-sensitive one-character units: 5 m is a length, 5 M may be five million."""

SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
"""Word -> power of ten that it multiplies by."""
_CHANGES_VALUE = re.compile(
    r"\b(?:or|plus|minus|times|squared|cubed|hal(?:f|ves)|thirds?|fourths?|fifths?|point|less|more|fewer|dozens?|not|factorial|"
    r"hundred|thousand|million|billion|trillion)\b|\band\s+(?:a|one)\b|^to\b",
    re.IGNORECASE,
)
"""Words after a number that change it, or make it not a number."""
_ONE_UNIT = re.compile(
    r"(?:(square|sq|cubic|cu)\b\.?\s*)?([A-Za-z]+|[°%$€£¥¢]|[\u4e00-\u9fff]+)\.?(?:\^?\{?([23])\}?)?"
)
MAX_WORDS = 14


def parse_unit(text: str) -> Unit | None:
    """Returns the unit named by the text after a number; None if the text is not a unit, or changes the number."""
    text = text.strip().strip(".")
    if _CHANGES_VALUE.search(text):
        return None
    known = known_unit(text)
    if known is not None:
        return known
    words = re.findall(r"[^\W\d_]+(?:['-][^\W\d_]+)*", text)
    if not words or len(words) > MAX_WORDS or re.search(r"[0-9=+*^\\<>{}$/]", text) or len(text) == 1:
        return None
    if len(words[0]) == 1 and words[0].casefold() != "a":
        return None
    return Unit(singular(words[-1].casefold()))


def known_unit(text: str) -> Unit | None:
    """Returns a unit of the table, or a square, cube or quotient of such units."""
    parts = re.split(r"\s*(?:/|\bper\b|\ban?\b)\s*", text.strip().replace("\\$", "$"))
    if not 1 <= len(parts) <= 2:
        return None
    units = [_power(part) for part in parts]
    if units[0] is None or units[-1] is None:
        return None
    if len(units) == 1:
        return units[0]
    return Unit(f"{units[0].dimension}/{units[1].dimension}", units[0].factor / units[1].factor)  # type: ignore[union-attr]


def _power(text: str) -> Unit | None:
    found = _ONE_UNIT.fullmatch(text)
    if found is None:
        return None
    name = found[2].casefold()
    unit = (UNITS.get(name) or UNITS.get(singular(name))) if len(name) > 1 or found[2] in SYMBOLS else None
    power = {"sq": 2, "cu": 3}.get((found[1] or "")[:2], 1) * int(found[3] or 1)
    if unit is None or power == 1:
        return unit
    return Unit(f"{unit.dimension}^{power}", unit.factor**power)


def singular(word: str) -> str:
    """Returns the singular of a word."""
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word
