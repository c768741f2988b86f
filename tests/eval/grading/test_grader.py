r"""Grading: which response is right, which is wrong, and which cannot be judged."""

import subprocess
import sys
import time

import pytest

from eval.grading import CORRECT, INCORRECT, UNSCORED, grade, is_gradable, is_well_formed

TIME_LIMIT_S = 5.0
"""No reply may hold up a training step for longer."""


@pytest.mark.parametrize(
    ("answer", "gold", "status"),
    [
        ("7", "7", CORRECT),
        ("7.0", "7", CORRECT),
        ("07", "7", CORRECT),
        ("+7", "7", CORRECT),
        ("-7", "7", INCORRECT),
        ("3.5", "5", INCORRECT),  # a released grader strips `3.` as an option label
        ("5", "3.5", INCORRECT),
        ("1009", "1000", INCORRECT),  # within 1 %, and still another number
        ("1,000", "1000", CORRECT),
        ("1,234,567.50", "1234567.5", CORRECT),
        ("10,00", "1000", INCORRECT),
        ("$12.50", "12.5", CORRECT),
        ("50%", "50", CORRECT),
        ("1/2", "0.5", CORRECT),
        ("2/4", "1/2", CORRECT),
        ("1/3", "0.333333", INCORRECT),
        ("1/0", "0", INCORRECT),
        ("0.1", "1/10", CORRECT),
        (".5", "0.5", CORRECT),
        ("five", "5", CORRECT),
        ("**7**", "7", CORRECT),
        ("$5$", "5", CORRECT),
        ("−5", "-5", CORRECT),
        ("-", "0", INCORRECT),
        ("1e3", "1000", CORRECT),
        ("five", "6", INCORRECT),
    ],
)
def test_numbers_are_equal_only_as_exact_values(answer: str, gold: str, status: str) -> None:
    assert grade(f"<answer>{answer}</answer>", gold, "number").status == status


@pytest.mark.parametrize(
    ("answer", "gold", "status"),
    [
        ("Top left", "top left", CORRECT),
        ("the red circle.", "red circle", CORRECT),
        ("top-left", "top left", CORRECT),
        ("STRASSE", "straße", CORRECT),
        ("left top", "top left", INCORRECT),
        ("red", "reddish", INCORRECT),
        ("theatre", "atre", INCORRECT),
    ],
)
def test_texts_are_equal_without_case_articles_and_punctuation(answer: str, gold: str, status: str) -> None:
    assert grade(f"<answer>{answer}</answer>", gold, "text").status == status


@pytest.mark.parametrize(
    ("answer", "gold", "status"),
    [
        (r"11\sqrt2", r"11\sqrt{3}", INCORRECT),  # bare LaTeX parses to 11 on both sides
        (r"11\sqrt{3}", r"11\sqrt{3}", CORRECT),
        (r"$11\sqrt{3}$", r"11\sqrt{3}", CORRECT),
        (r"\frac{1}{2}", "0.5", CORRECT),
        (r"\frac{2}{4}", r"\frac{1}{2}", CORRECT),
        (r"(x+1)^2", "x^2+2x+1", CORRECT),
        ("1009", "1000", INCORRECT),
        ("3.5", "5", INCORRECT),
        ("(1, 2)", "(1,2)", CORRECT),
        ("(2, 1)", "(1,2)", INCORRECT),
        ("no idea", "5", INCORRECT),
    ],
)
def test_mathematics_is_compared_as_expressions(answer: str, gold: str, status: str) -> None:
    assert grade(f"<answer>{answer}</answer>", gold, "math").status == status


@pytest.mark.parametrize(
    ("response", "kind"),
    [
        ("", "number"),
        ("   \n\n ", "text"),
        ("<answer></answer>", "number"),
        ("I cannot tell.", "number"),
        ("This reply goes on and on about what it sees", "text"),
    ],
)
def test_a_reply_without_an_answer_is_incorrect(response: str, kind: str) -> None:
    verdict = grade(response, "5", kind)
    assert (verdict.status, verdict.extracted, verdict.rule) == (INCORRECT, None, "no answer")
    assert verdict.correct is False


@pytest.mark.parametrize(
    ("gold", "kind"), [("many", "number"), ("1/0", "number"), ("", "number"), ("", "math"), ("\\", "math")]
)
def test_only_a_gold_that_does_not_parse_is_unscored(gold: str, kind: str) -> None:
    verdict = grade("<answer>5</answer>", gold, kind)
    assert verdict.status == UNSCORED
    assert verdict.correct is None
    assert grade("<answer>?</answer>", "5", kind).status == INCORRECT


def test_an_unknown_kind_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'maths' is unknown; expected one of number, text, math"):
        grade("5", "5", "maths")


@pytest.mark.parametrize(
    "response",
    [
        pytest.param("<answer>" * 16_000, id="opened and never closed"),
        pytest.param("answer is a" + " " * 50_000 + "b", id="spaces inside an answer"),
        pytest.param("answer is " * 20_000, id="announced without end"),
        pytest.param("\\boxed{" * 40_000, id="boxes without end"),
        pytest.param("####" + "\n" * 100_000, id="hashes and empty lines"),
        pytest.param("9" * 200_000, id="one long number"),
        pytest.param("<answer>" + "9" * 200_000 + "</answer>", id="a long number as answer"),
        pytest.param("1," * 100_000, id="commas"),
        pytest.param("\x00\x85\u2028\ufffd" * 50_000, id="control characters"),
        pytest.param("<think>" * 40_000 + "<", id="thoughts without end"),
    ],
)
def test_long_and_hostile_replies_are_judged_in_bounded_time(response: str) -> None:
    begin = time.monotonic()
    for kind in ("number", "math"):
        assert grade(response, "5", kind).status == INCORRECT
    assert not is_well_formed(response)
    assert time.monotonic() - begin < TIME_LIMIT_S


@pytest.mark.slow
def test_an_expression_that_takes_for_ever_is_given_up() -> None:
    """A judge that sleeps stands in for expressions from which math-verify never returns."""
    sleeping = (
        "import time; from eval.grading import mathematics; "
        "mathematics._judge = lambda answer, gold: time.sleep(60); mathematics.serve()"
    )
    program = (
        "import sys\nfrom eval.grading import mathematics\nfrom eval.grading import grade, is_gradable\n"
        f"mathematics.JUDGE = (sys.executable, '-c', {sleeping!r})\n"
        r"print(grade(r'<answer>\sqrt{x}+1</answer>', r'\sqrt{x+1}', 'math').status)"
        "\n"
        r"print(is_gradable(r'\sqrt{x}+1', 'math'))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=90, check=False)
    assert done.stdout.split() == [UNSCORED, "False"], done.stderr


@pytest.mark.parametrize(
    ("gold", "kind", "gradable"),
    [
        ("7", "number", True),
        ("1,000", "number", True),
        ("five", "number", True),
        ("5 cm", "number", True),
        ("many", "number", False),
        ("1/0", "number", False),
        ("top left", "text", True),
        ("the", "text", False),
        ("?", "text", False),
        ("x" * 401, "text", False),
        (r"\frac{1}{2}", "math", True),
        (r"\boxed{3}", "math", True),
        ("0", "math", True),
        ("$5$", "math", True),
        ("B", "math", True),
        (" ", "math", False),
        ("B", "choice", True),
        ("red", "choice", False),
        ("yes", "yes_no", True),
        ("perhaps", "yes_no", False),
        ("1, 2, 3, 4", "box", True),
        ("3, 4, 1, 2", "box", False),
        ("[1, 2]", "list", True),
    ],
)
def test_a_gold_answer_is_gradable_where_replies_to_it_can_be_told_apart(gold: str, kind: str, gradable: bool) -> None:
    assert is_gradable(gold, kind) is gradable


def test_an_unknown_kind_is_no_matter_of_gold_answers() -> None:
    with pytest.raises(ValueError, match="answer kind 'mth' is unknown"):
        is_gradable("7", "mth")
