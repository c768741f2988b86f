"""Which unit follows a number, and how does it convert? A small table with exact factors; other words are units too.

A unit is a dimension with a factor to that dimension's base: `5 cm` is 1/20 of a metre. Products, quotients and powers
of units of the table are units as well (`m/s^2`, `N·m`, `平方米`). Words that are not in the table (`5 apples`, `5个`)
are their own dimensions. The table contains the units common in school problems, in English and Chinese;
other units are compared as words.
"""

import re
from collections import Counter
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
    "nm nanometer nanometre 纳米": ("length", "1/1000000000"), "μm micrometer micrometre 微米": ("length", "1/1000000"),
    "mm millimeter millimetre 毫米": ("length", "1/1000"), "cm centimeter centimetre 厘米 公分": ("length", "1/100"),
    "dm decimeter decimetre 分米": ("length", "1/10"), "m meter metre 米": ("length", "1"),
    "km kilometer kilometre 千米 公里": ("length", "1000"), "in inch inches 英寸": ("length", "127/5000"),
    "ft foot feet 英尺": ("length", "381/1250"), "yd yard": ("length", "1143/1250"),
    "mi mile 英里": ("length", "201168/125"),
    "mg milligram 毫克": ("mass", "1/1000"), "g gram 克": ("mass", "1"), "kg kilogram 千克 公斤": ("mass", "1000"),
    "斤": ("mass", "500"), "tonne 吨": ("mass", "1000000"),
    "lb lbs pound": ("mass", "45359237/100000"), "oz ounce": ("mass", "45359237/1600000"),
    "ms millisecond 毫秒": ("time", "1/1000"), "s sec second 秒 秒钟": ("time", "1"),
    "min mins minute 分钟": ("time", "60"),
    "h hr hrs hour 小时 时": ("time", "3600"), "day 天 日": ("time", "86400"), "week 周 星期": ("time", "604800"),
    "month 个月": ("months", "1"), "year yr yrs 年": ("months", "12"),
    "ml milliliter millilitre 毫升": ("length^3", "1/1000000"), "l liter litre 升": ("length^3", "1/1000"),
    "hectare 公顷": ("length^2", "10000"),
    "$ dollar usd buck 美元": ("dollars", "1"), "¢ cent": ("dollars", "1/100"), "€ euro eur 欧元": ("euros", "1"),
    "£ gbp": ("pounds sterling", "1"), "¥ yen yuan rmb 元 块": ("yuan or yen", "1"), "角": ("yuan or yen", "1/10"),
    "° degree deg 度": ("degrees", "1"), "radian rad 弧度": ("radians", "1"), "% percent pct": (PERCENT, "1/100"),
    "°c ℃ celsius 摄氏度 c coulomb": ("degrees Celsius or coulombs", "1"),
    "°f ℉ fahrenheit": ("degrees Fahrenheit", "1"),
    "k kelvin": ("kelvins", "1"), "ω ohm 欧": ("ohms", "1"),
    "n newton 牛 牛顿": ("newtons", "1"), "j joule 焦耳": ("joules", "1"), "kj kilojoule 千焦": ("joules", "1000"),
    "w watt 瓦": ("watts", "1"), "kw kilowatt 千瓦": ("watts", "1000"), "v volt 伏": ("volts", "1"),
    "a ampere amp 安": ("amperes", "1"), "ma milliampere": ("amperes", "1/1000"),
    "hz hertz 赫兹": ("hertz", "1"), "pa pascal": ("pascals", "1"), "kpa kilopascal": ("pascals", "1000"),
    "mph": ("length/time", "1397/3125"), "kmh kph": ("length/time", "5/18"),
    "unit": ("", "1"),
}  # fmt: skip
"""Names of a unit, singular -> dimension and factor; symbols are distinguished from words by length only."""
UNITS = {
    name: Unit(dimension, Fraction(factor)) for names, (dimension, factor) in _NAMED.items() for name in names.split()
}
SYMBOLS = frozenset("mgshlLNJWVACKΩ°%$€£¥¢℃℉") | {name for name in UNITS if "\u4e00" <= name[0] <= "\u9fff"}
"""Case-sensitive one-character units: 5 m is a length, 5 M may be five million."""

SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
"""Word -> power of ten that it multiplies by."""
CHINESE_SCALES = {"十": 1, "百": 2, "千": 3, "万": 4, "亿": 8}
"""Character -> power of ten; several multiply (`百万` is a million)."""
_CHINESE_NAMES = sorted((name for name in UNITS if "\u4e00" <= name[0] <= "\u9fff"), key=len, reverse=True)
CHINESE_UNIT = re.compile(
    rf"[{''.join(CHINESE_SCALES)}]*(?:(?:平方|立方)?(?:{'|'.join(_CHINESE_NAMES)}))?(?:[/每](?:{'|'.join(_CHINESE_NAMES)}))?"
)
"""A scale, a unit of the table, or both, directly after a number."""
_CHANGES_VALUE = re.compile(
    r"\b(?:or|plus|minus|times|squared|cubed|hal(?:f|ves)|thirds?|fourths?|fifths?|point|less|more|fewer|dozens?|not|factorial|"
    r"hundred|thousand|million|billion|trillion|if|when|where|unless|otherwise)\b|\band\s+(?:a|one)\b|^to\b|[半多余几或和]",
    re.IGNORECASE,
)
"""Words after a number that change it, or make it not a number."""
_ONE_UNIT = re.compile(
    r"(?:(square|sq|cubic|cu)\b\.?\s*|(平方|立方))?(°\s?[CF]|[A-Za-zμΩ]+|[°%$€£¥¢℃℉]|[\u4e00-\u9fff]+)\.?(?:\^?\{?(-?[1-4])\}?)?"
)
_POWERS = {"sq": 2, "cu": 3, "平方": 2, "立方": 3}
_QUOTIENT = re.compile(r"\s*(?:/|\bper\b|\ban?\b|每)\s*")
_PRODUCT = re.compile(r"\s*(?:\\cdot(?![A-Za-z])|·|⋅|\*)\s*")
_DIMENSION = re.compile(r"([*/]?)([^*/^]+)(?:\^(\d+))?")
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
    if not words or len(words) > MAX_WORDS or re.search(r"[0-9=+*^\\<>{}$/:,;_]", text):
        return None
    if len(words[0]) == 1 and words[0].isascii() and (len(text) == 1 or words[0].casefold() != "a"):
        return None
    return Unit(singular(words[-1].casefold()))


def known_unit(text: str) -> Unit | None:
    """Returns a unit of the table, or a product, quotient or power of such units."""
    text = text.strip().replace("\\$", "$").replace("\\Omega", "Ω").replace("\\mu ", "μ")
    unit = _power(text)
    if unit is not None:
        return unit
    parts = _QUOTIENT.split(text)
    if len(parts) > 2 or (len(parts) == 1 and not _PRODUCT.search(text)):
        return None
    exponents: Counter[str] = Counter()
    factor = Fraction(1)
    for sign, part in zip((1, -1), parts, strict=False):
        for name in _PRODUCT.split(part):
            unit = _power(name)
            if unit is None:
                return None
            for base, power in _exponents(unit.dimension).items():
                exponents[base] += sign * power
            factor *= unit.factor**sign
    return Unit(_dimension(exponents), factor)


def _power(text: str) -> Unit | None:
    found = _ONE_UNIT.fullmatch(text)
    if found is None:
        return None
    name = found[3].replace(" ", "")
    unit = None
    if len(name) > 1 or name in SYMBOLS:
        folded = name.casefold()
        unit = UNITS.get(folded) or UNITS.get(singular(folded))
    power = _POWERS.get(found[2] or (found[1] or "")[:2].casefold(), 1) * int(found[4] or 1)
    if unit is None or power == 1:
        return unit
    exponents = Counter({base: own * power for base, own in _exponents(unit.dimension).items()})
    return Unit(_dimension(exponents), unit.factor**power)


def _exponents(dimension: str) -> dict[str, int]:
    """Returns base -> exponent of a dimension such as `length/time^2`."""
    return {base: (-1 if sign == "/" else 1) * int(power or 1) for sign, base, power in _DIMENSION.findall(dimension)}


def _dimension(exponents: Counter[str]) -> str:
    """Returns the one spelling of a dimension: the bases in alphabetical order, those below the line last."""
    above = [f"{base}^{power}" if power > 1 else base for base, power in sorted(exponents.items()) if power > 0]
    below = [
        f"/{base}^{-power}" if power < -1 else f"/{base}" for base, power in sorted(exponents.items()) if power < 0
    ]
    return "*".join(above) + "".join(below)


def singular(word: str) -> str:
    """Returns the singular of a word."""
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word
