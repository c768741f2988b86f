"""Markup: thoughts, turns, markers of families, templates that open a tag, formulas, and lines of layout."""

import time

import pytest

from eval.grading import INCORRECT, continued, grade, is_well_formed, opens_thoughts
from eval.grading.markup import displayed, formulas_in, result_of, text_after_thoughts, undelimited, without_layout


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("It is 7.", "It is 7."),
        ("<think>8?</think>It is 7.", "It is 7."),
        ("8?</think>It is 7.", "It is 7."),
        ("<think>It is 7.</think>", "<think>It is 7.</think>"),
        ("<think>It is 7.", None),
        ("<think>8?</think>It is 7. <think>Or", None),
        ("<think>8, no, <answer>7</answer>", "<answer>7</answer>"),
        ("<think>as in <answer>7</answer>, but", None),
        ("◁think▷8?◁/think▷7", "7"),
        ("[THINK]8?[/THINK]7", "7"),
        ("[THINK]8?", None),
        ("<Thinking>8?</Thinking><ANSWER>7</ANSWER>", "<answer>7</answer>"),
        ("<|begin_of_box|>7<|end_of_box|>", r"\boxed{7}"),
        ("7<|im_end|>\n<|im_start|>user\n8", "7"),
        ("<|im_start|>assistant\n7</s>", "7"),
        ("if x < 5, 7", "if x < 5, 7"),
    ],
)
def test_the_final_text_is_what_follows_the_thoughts(response: str, expected: str | None) -> None:
    assert text_after_thoughts(response) == expected


def test_a_reply_cut_in_its_thoughts_is_wrong_and_says_why() -> None:
    verdict = grade("<think>The answer is 7. But wait", "7", "number")
    assert (verdict.status, verdict.extracted, verdict.rule) == (INCORRECT, None, "unfinished thoughts")


@pytest.mark.parametrize(
    ("prompt", "opened"),
    [
        ("<|im_start|>assistant\n<think>\n", True),
        ("<|im_start|>assistant\n<think>", True),
        ("assistant\n◁think▷", True),
        ("<|im_start|>assistant\n", False),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", False),
        ("Think inside <think> </think>.<|im_end|>\n<|im_start|>assistant\n", False),
    ],
)
def test_a_prompt_that_opens_thoughts_is_known_by_its_end(prompt: str, opened: bool) -> None:
    assert opens_thoughts(prompt) is opened


def test_where_the_prompt_opened_the_thoughts_the_reply_is_read_with_the_tag() -> None:
    whole, cut = "3 + 4 = 7</think><answer>7</answer>", "3 + 4, so the answer is 7. But"
    assert not is_well_formed(whole)
    assert is_well_formed(continued(whole, opened=True))
    assert grade(continued(cut, opened=False), "7", "number").correct is True
    assert grade(continued(cut, opened=True), "7", "number").rule == "unfinished thoughts"


@pytest.mark.parametrize(
    "piece", ["<think>", "</think>", "<|begin_of_box|>", "<|end_of_box|>", "<", "[THINK]", "◁", "</s>"]
)
def test_markers_without_end_are_read_in_no_time(piece: str) -> None:
    begin = time.monotonic()
    text_after_thoughts(piece * (100_000 // len(piece)))
    assert time.monotonic() - begin < 2


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
