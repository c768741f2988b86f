"""What is certain without mathematics, and that mathematics agrees wherever it can be asked."""

import random

import pytest

from eval.grading.expressions import equal_mathematics, plainly_equal
from eval.grading.mathematics import equal_expressions

NUMBERS = [
    "7",
    "-7",
    "0.5",
    r"\frac{1}{2}",
    r"\frac{2}{4}",
    r"1\frac{1}{2}",
    "1.5",
    "1500",
    r"1.5 \times 10^3",
    "2^{3}",
    "8",
]


def test_the_shortcut_agrees_with_math_verify_on_numbers() -> None:
    rng = random.Random(0)
    for _ in range(40):
        answer, gold = rng.choice(NUMBERS), rng.choice(NUMBERS)
        decided = plainly_equal(answer, gold)
        assert decided is not None
        assert decided is equal_expressions(answer, gold), (answer, gold)


@pytest.mark.parametrize(
    ("answer", "gold", "decided"),
    [
        ("(3,4)", "(3, 4)", True),
        ("(3,4)", "(3,5)", False),
        ("(3,4)", "[3,4]", False),
        ("(3,4)", "(3,4,5)", False),
        ("(x,4)", "(y,4)", None),
        ("52_8", "52_{8}", True),
        ("52_7", "52_8", False),
        ("east", r"\text{East}", True),
        ("the east", r"\text{east}", False),
        ("x=5", "5", True),
        ("5", "x=6", False),
        ("y=5", "x=5", None),
        ("2,1251", "21251", False),
        ("2 3", "5", False),
        (r"\sqrt{4}", "2", None),
        ("5", "", None),
        ("(" * 21 + "5" + ")" * 21, r"\sqrt{2}", False),
    ],
)
def test_what_is_plain_to_see_is_decided_and_nothing_else(answer: str, gold: str, decided: bool | None) -> None:
    assert plainly_equal(answer, gold) is decided


@pytest.mark.parametrize(
    ("answer", "gold", "equal"),
    [
        (r"\pi(R^2-r^2)", r"\pi(R-r)(R+r)", True),
        (r"\pi(r^2-R^2)", r"\pi(R^2-r^2)", False),
        (r"\begin{pmatrix} 1 \\ \sqrt{4} \end{pmatrix}", "(1, 2)", True),
        (r"$\sqrt{4}$ or $3$", "3, 2", True),
        (r"words and then \frac{1}{2}", r"\frac{1}{2}", False),
        (r"the answer: \frac{1}{2}", r"\frac{1}{2}", False),
        (r"-2 \leq x \leq 7", "[-2, 7]", True),
        ("1.414214", r"\sqrt{2}", False),
        (r"\sqrt{2}", r"\frac{2}{\sqrt{2}}", True),
        ("2k\n+ 2", "2(k+1)", True),
    ],
)
def test_what_math_verify_would_get_wrong_is_put_to_it_right(answer: str, gold: str, equal: bool) -> None:
    assert equal_mathematics(answer, gold) is equal
