"""Formulas in a text: which dollar signs delimit one, closing lines of layout, and the result of a calculation."""

import time

import pytest

from eval.grading.formulas import displayed, formulas_in, result_of, undelimited, without_layout


@pytest.mark.parametrize(
    ("text", "formulas"),
    [
        ("so $x = 5$ and $y$", ["x = 5", "y"]),
        (r"so \(x = 5\)", ["x = 5"]),
        ("$$x\n= 5$$", ["x\n= 5"]),
        ("$ 12 $ cm", ["12"]),
        (r"$\$12$ each", [r"\$12"]),
        ("from $5 to $7", []),
        ("$5 and $7.", []),
        ("between $5-$7", []),
        ("it costs $12", []),
        (r"it costs \$12 or \$13", []),
        ("$5$ to $7$", ["5", "7"]),
    ],
)
def test_a_formula_has_no_blanks_inside_its_delimiters_and_no_digit_after(text: str, formulas: list[str]) -> None:
    assert formulas_in(text) == formulas


def test_delimiters_are_left_out_and_prices_stay() -> None:
    assert undelimited("$12$ cm") == "12 cm"
    assert undelimited(r"\(12\) cm for $5 and $7") == "12 cm for $5 and $7"


@pytest.mark.parametrize(
    ("text", "rest", "is_display"),
    [
        ("so\n$$\nx = 5\n$$", "so\n$$\nx = 5", True),
        ("so\n\\[ x = 5 \\]\n", "so\n\\[ x = 5 \\]", False),
        ("so\n\\[\nx = 5 \\]", "so\n\\[\nx = 5 ", True),
        ("a\n\\end{aligned}\n\\]", "a", True),
        ("It is 7.\n\n---\n", "It is 7.", False),
        ("7\n```", "7", False),
        ("7\n* * *", "7", False),
        ("- 7", "- 7", False),
        ("---", "", False),
        ("", "", False),
    ],
)
def test_closing_lines_of_layout_are_left_out(text: str, rest: str, is_display: bool) -> None:
    assert without_layout(text) == (rest, is_display)


def test_a_displayed_line_loses_alignment_and_line_breaks() -> None:
    assert displayed(r"x &= \frac{1}{2} \\") == r"x = \frac{1}{2}"
    assert displayed(r"&= 5.") == "= 5"
    assert displayed("$$x = 5") == "x = 5"


@pytest.mark.parametrize(
    ("formula", "result"),
    [
        ("3 + 4 = 7", "7"),
        ("x = 3 + 4 = 7", "7"),
        ("= 7", "7"),
        ("y = 2x + 3", "y = 2x + 3"),
        ("x = 5", "x = 5"),
        ("a = 1, b = 2", "a = 1, b = 2"),
        (r"\sum_{n=1}^{5} n", r"\sum_{n=1}^{5} n"),
        ("3 >= 2", "3 >= 2"),
        ("7", "7"),
        ("3 + 4 =", "3 + 4 ="),
    ],
)
def test_a_calculation_has_a_result_and_an_equation_is_whole(formula: str, result: str) -> None:
    assert result_of(formula).strip() == result


@pytest.mark.parametrize("piece", ["$", "$$", "\\(", "\\[", "$a ", "\\\\", "- ", "=", " ", "```\n", "&", "$\\"])
def test_delimiters_without_end_are_read_in_no_time(piece: str) -> None:
    text = piece * (100_000 // len(piece)) + "x"
    begin = time.monotonic()
    (
        formulas_in(text),
        formulas_in(text[-4_000:]),
        undelimited(text),
        without_layout(text),
        displayed(text),
        result_of(text),
    )
    assert time.monotonic() - begin < 2
