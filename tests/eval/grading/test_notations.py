"""Moduli, bases and minutes of arc."""

import random

import pytest

from eval.grading.notations import UNDECIDABLE, compare_notations, numeral_in_base

DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def in_base(number: int, base: int) -> str:
    digits = ""
    while number or not digits:
        number, digit = divmod(number, base)
        digits = DIGITS[digit] + digits
    return digits


def test_numerals_are_equal_to_the_numbers_that_they_write() -> None:
    rng = random.Random(0)
    for _ in range(200):
        number, base = rng.randrange(17, 10_000), rng.randrange(2, 17)
        numeral = f"{in_base(number, base)}_{{{base}}}"
        assert compare_notations(numeral, str(number)) is True
        assert compare_notations(numeral, str(number + 1)) is not True


def test_residue_classes_are_equal_if_they_are_congruent() -> None:
    for modulus in range(2, 9):
        for first in range(12):
            for second in range(12):
                congruent = (first - second) % modulus == 0
                classes = (rf"{first} \pmod{{{modulus}}}", rf"{second} \pmod {modulus}")
                assert compare_notations(*classes) is congruent
                expected = True if first == second else UNDECIDABLE if congruent else False
                assert compare_notations(classes[0], str(second)) == expected
                assert compare_notations(rf"{first} \bmod {modulus}", str(second)) is (first % modulus == second)


@pytest.mark.parametrize(
    ("answer", "gold", "verdict"),
    [
        ("2^{100} \\bmod 7", "2", True),
        ("n \\bmod 7", "2", UNDECIDABLE),
        ("2 \\pmod 0", "3", UNDECIDABLE),
        ("30°30'", "30.5°", True),
        ("30^\\circ 30' 36''", "30.51", True),
        ("30^\\circ 30'", "30.3^\\circ", False),
        ("x_1", "5", None),
        ("f'", "f", None),
        ("model", "5", None),
    ],
)
def test_other_notations(answer: str, gold: str, verdict: bool | str | None) -> None:
    assert compare_notations(answer, gold) == verdict


@pytest.mark.parametrize("text", ["58_8", "1_1", "12_0", "x_2", "12_{99}", "a_{ten}", "12", "_"])
def test_digits_that_a_base_does_not_have_are_no_numeral(text: str) -> None:
    assert numeral_in_base(text) is None
