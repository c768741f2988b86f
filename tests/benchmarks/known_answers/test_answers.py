"""When is a planted truth found? Exact, within rounding, inside the interval."""

import math
from dataclasses import replace

import pytest

from benchmarks.known_answers.answers import FOUND, WRONG, Answer, answer_table, describe
from benchmarks.known_answers.page import headline


def answer(
    truth: float, estimate: float, low: float = math.nan, high: float = math.nan, tolerance: float = 0
) -> Answer:
    return Answer(
        instrument="swap", case="picture read in layer 2", quantity="answers moved, mode from", place="layer 3",
        truth=truth, estimate=estimate, low=low, high=high, tolerance=tolerance,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("given", "verdict"),
    [
        (answer(1, 1), FOUND),
        (answer(1, 0.99), WRONG),
        (answer(1, 0.99, tolerance=0.02), FOUND),
        (answer(1, 1, 0.9, 1), FOUND),
        (answer(1, 1, 0.5, 0.9), WRONG),  # an interval that does not contain its own estimate
        (answer(0, 0, 0.1, 0.2), WRONG),
        (answer(0, 1e-6, 1e-6, 1e-6, tolerance=1e-5), FOUND),  # of values that do not vary, up to rounding
        (answer(0, math.nan), WRONG),  # nothing was measured
    ],
)
def test_verdict(given: Answer, verdict: str) -> None:
    assert given.verdict == verdict


def test_a_verdict_of_its_own_replaces_the_rule() -> None:
    assert replace(answer(0.5, 0.1, 0, 0.2), is_right=True).verdict == FOUND  # a bound that holds
    assert replace(answer(0.5, 0.5), is_right=False).verdict == WRONG


def test_the_first_sentence_counts_what_was_found() -> None:
    table = answer_table([answer(1, 1), answer(1, 0), answer(0, 0)])
    assert headline(table) == "2 of 3 planted truths found."
    assert list(table["verdict"]) == [FOUND, WRONG, FOUND]


def test_a_wrong_answer_is_described_with_its_place_and_both_numbers() -> None:
    assert describe(answer(1, 0, 0, 0.2)) == (
        "swap: picture read in layer 2: answers moved, mode from, layer 3: planted 1, found 0 [0, 0.2]"
    )
