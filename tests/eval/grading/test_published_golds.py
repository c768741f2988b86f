"""The golds of GSM8K, MATH-500 and MathVista, given as replies: all right, others' wrong, none slow."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eval.grading import CORRECT, INCORRECT, Verdict, grade
from eval.grading.mathematics import equal_expressions
from tracking.command import REPOSITORY_ROOT

SHARED = REPOSITORY_ROOT.parent / "shared" / "data"
SLOWEST_S = 1.0
EQUAL_NEIGHBOURS = {("5", "x=5"), ("7", "7"), ("3", "3")}
"""Neighbouring answers of MATH-500 that are the same answer."""


def published(name: str) -> Path:
    if not (SHARED / name).is_file():
        pytest.skip(f"{SHARED / name} is not here: the published problems are no part of the repository")
    return SHARED / name


def lines(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in published(name).read_text(encoding="utf-8").splitlines()]


def timed_grade(*args: Any) -> Verdict:
    """Grades one reply within the limit; a busy machine may hold up a first and a second try."""
    for is_last in (False, False, True):
        begin = time.monotonic()
        verdict = grade(*args)
        took_s = time.monotonic() - begin
        if took_s < SLOWEST_S:
            break
        assert not is_last, (took_s, args)
    return verdict


def test_every_solution_of_gsm8k_is_right() -> None:
    rows = lines("gsm8k_test.jsonl")
    assert len(rows) == 1319
    for row in rows:
        gold = row["answer"].rpartition("####")[2].strip()
        assert timed_grade(row["answer"], gold, "number").status == CORRECT, row


def test_every_solution_of_math_500_is_right() -> None:
    rows = lines("math500_test.jsonl")
    assert len(rows) == 500
    for row in rows:
        assert timed_grade(row["solution"], row["answer"], "math").status == CORRECT, row


def test_every_gold_of_math_500_is_wrong_for_the_next_problem_unless_equal() -> None:
    golds = [row["answer"] for row in lines("math500_test.jsonl")]
    assert equal_expressions("1+x", "x+1") is True
    for answer, gold in zip(golds, golds[1:] + golds[:1], strict=True):
        expected = CORRECT if (answer, gold) in EQUAL_NEIGHBOURS else INCORRECT
        assert timed_grade(rf"So \boxed{{{answer}}}", gold, "math").status == expected, (answer, gold)


def questions() -> Iterator[tuple[dict[str, Any], str, int | None]]:
    """MathVista's questions with the kind of their answers and their precision."""
    for question in json.loads(published("mathvista_testmini.json").read_text(encoding="utf-8")).values():
        kind = "choice" if question["choices"] else "list" if question["answer_type"] == "list" else "number"
        yield question, kind, None if question["precision"] is None else int(question["precision"])


@pytest.mark.parametrize("form", ["<answer>{}</answer>", "\\boxed{{{}}}", "Looking at it.\nThe answer is {}."])
def test_every_gold_of_mathvista_grades_itself_and_no_other_option(form: str) -> None:
    num_golds = num_repeated = 0
    for question, kind, precision in questions():
        gold, choices = question["answer"], question["choices"]
        assert timed_grade(form.format(gold), gold, kind, choices, precision).status == CORRECT, question
        for option in choices or ():
            expected = CORRECT if option == gold else INCORRECT
            assert timed_grade(form.format(option), gold, kind, choices, precision).status == expected, (option, gold)
        num_golds += 1
        num_repeated += len(choices or ()) != len(set(choices or ()))
    assert (num_golds, num_repeated) == (1000, 3)


@pytest.mark.parametrize("form", ["The answer is ({letter}).", "{letter}", "{letter}. {text}", "option {letter}"])
def test_options_of_mathvista_are_known_by_their_letters_too(form: str) -> None:
    for question, kind, _ in questions():
        choices = question["choices"] or ()
        if any(len(option.strip("()")) == 1 and option.strip("()").isalpha() for option in choices):
            continue  # a text that is a letter comes before the letter
        for letter, option in zip("ABCDEFGH", choices, strict=False):
            verdict = grade(form.format(letter=letter, text=option), question["answer"], kind, choices)
            assert (verdict.status == CORRECT) == (option == question["answer"]), (letter, question)
