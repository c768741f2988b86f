"""Numbers as exact fractions, with units, in the notations of replies."""

import decimal
import random
from decimal import Decimal
from fractions import Fraction

import pytest

from eval.grading.quantities import equal_numbers, find_numbers, parse_number, parse_quantity, rounded, with_unit


@pytest.mark.parametrize("separator", ["", ","])
def test_decimals_are_read_exactly(separator: str) -> None:
    rng = random.Random(0)
    for _ in range(500):
        exact = Decimal(rng.randrange(-(10**12), 10**12)).scaleb(-rng.randrange(7))
        text = f"{exact:{separator}f}"
        assert parse_number(text) == Fraction(exact), text
        assert parse_number(f"{exact:e}") == Fraction(exact)


def test_rounding_is_that_of_decimal_half_up() -> None:
    rng = random.Random(1)
    for _ in range(500):
        exact, places = Decimal(rng.randrange(-(10**6), 10**6)).scaleb(-4), rng.randrange(4)
        expected = exact.quantize(Decimal(1).scaleb(-places), rounding=decimal.ROUND_HALF_UP)
        assert rounded(Fraction(exact), places) == Fraction(expected)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (r"1\frac{4}{5}", "9/5"),
        (r"\$32,\!348", "32348"),
        (r"11,\! 111,\! 111,\! 100", "11111111100"),
        ("6.02 × 10²³", "602000000000000000000000"),
        (r"10^{-3}", "1/1000"),
        ("2^{10}", "1024"),
        ("-½", "-1/2"),
        ("ninety-nine", "99"),
        ("1e400", str(10**400)),
    ],
)
def test_other_spellings_of_numbers(text: str, value: str) -> None:
    assert parse_number(text) == Fraction(value)


@pytest.mark.parametrize(
    "text",
    ["", "-", ".", "%", "1/0", "0^{-1}", "2,1251", "10,00", "1,23,456", "1.2.3", "1/2/3", "3:1", "1e999999999",
     "10^{999999999}", "5 cm", "5 apples", "many", "5 or 6", "--5", "five six", "1 2 3", "9" * 401],
)  # fmt: skip
def test_what_is_not_one_plain_number(text: str) -> None:
    assert parse_number(text) is None


@pytest.mark.parametrize(
    ("answer", "gold", "equal"),
    [
        ("100 cm", "1 m", True),
        ("3 ft", "1 yard", True),
        ("36 km/h", "10 m/s", True),
        ("1 m^2", "10000 cm²", True),
        ("1 liter", "1000 cubic centimeters", True),
        ("1 m", "1 m^2", False),
        ("1 kg", "1 m", False),
        ("5 apples", "5 pears", False),
        ("5 red apples", "5 apples", True),
        ("5 M", "5 m", False),
        ("200%", "2", True),
        ("2%", "2", True),
        ("2%", "0.02", True),
        ("2%", "0.2", False),
        ("2%", "20%", False),
    ],
)
def test_units_convert_exactly_or_differ(answer: str, gold: str, equal: bool) -> None:
    assert equal_numbers(answer, gold) is equal


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("7-4", ["7", "4"]),
        ("That leaves -4, or (2+1)-4", ["-4", "2", "1", "4"]),
        ("she has $5,000 and 3 1/2 cups", ["$5,000", "3 1/2"]),
        (r"\frac{1}{2} of 10\,000", [r"\frac{1}{2}", r"10\,000"]),
        ("1.5 × 10^3 m, 5 million people, 5 in the box", ["1.5 × 10^3 m", "5 million", "5"]),
        ("2,1251", ["2,1251"]),
        ("5k and 12cm", ["5k", "12cm"]),
        ("no number", []),
    ],
)
def test_numbers_are_found_among_words_with_their_units(text: str, numbers: list[str]) -> None:
    assert [with_unit(text, number) for number in find_numbers(text)] == numbers


def test_the_unit_of_a_quantity_is_kept() -> None:
    quantity = parse_quantity(r"864 \mbox{ inches}^2")
    assert quantity is not None
    assert quantity.unit is not None
    assert (quantity.value, quantity.unit.dimension) == (864, "length^2")
    assert quantity.unit.factor == Fraction("0.0254") ** 2
