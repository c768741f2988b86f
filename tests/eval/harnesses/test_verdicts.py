"""Where two verdicts differ, and why: counted per metric, and one reason for each reply."""

from typing import Any

import pytest

from eval.grading import CORRECT, INCORRECT, UNSCORED
from eval.harnesses.verdicts import (
    CUT,
    NO_ANSWER,
    NOT_JUDGED,
    OTHER_ANSWER,
    SAME_ANSWER,
    UNKNOWN_ANSWER,
    disagreement_table,
    reason,
    verdict_table,
)


def record(
    status: str, extracted: str | None, score: float, answer: str | None = None, **further: Any
) -> dict[str, Any]:
    return {
        "key": "t/1", "task": "t", "gold": "7", "answer_kind": "number", "choices": [], "response": "…",
        "rule": "boxed", "finish_reason": None, "status": status, "extracted": extracted,
        "harness_verdicts": {"acc": {"score": score, "answer": answer}}, **further,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (record(CORRECT, "7", 0.0, "18"), OTHER_ANSWER),
        (record(CORRECT, "7", 0.0, "7.0"), SAME_ANSWER),
        (record(CORRECT, "1,250", 0.0, "1250"), SAME_ANSWER),
        (record(CORRECT, "blue", 0.0, "B", choices=["red", "blue"]), SAME_ANSWER),
        (record(CORRECT, "blue", 0.0, "A", choices=["red", "blue"]), OTHER_ANSWER),
        (record(CORRECT, "7", 0.0), UNKNOWN_ANSWER),
        (record(INCORRECT, None, 1.0, "7"), NO_ANSWER),
        (record(UNSCORED, "7", 1.0, "7"), NOT_JUDGED),
        (record(INCORRECT, None, 1.0, "7", finish_reason="length"), CUT),
        (record(UNSCORED, None, 0.0, no_reply="the endpoint failed"), "the endpoint failed"),
    ],
)
def test_each_disagreement_has_its_reason(found: dict[str, Any], why: str) -> None:
    assert reason(found, found["harness_verdicts"]["acc"]) == why
    assert disagreement_table([found])["reason"].tolist() == [why]


def test_counts_are_over_what_both_judged() -> None:
    records = [
        record(CORRECT, "7", 1.0), record(CORRECT, "7", 0.0), record(CORRECT, "7", 0.0), record(INCORRECT, "8", 1.0),
        record(INCORRECT, "8", 0.0), record(UNSCORED, "x", 1.0), record(CORRECT, "7", 0.5),
    ]  # fmt: skip
    (row,) = verdict_table(records).to_dict("records")
    assert (row["n"], row["harness_accuracy"], row["accuracy"]) == (5, 2 / 5, 3 / 5)
    assert [row[name] for name in ("both_right", "both_wrong", "harness_only", "ours_only")] == [1, 1, 1, 2]
    assert (row["num_unscored"], row["num_partial"]) == (1, 1)
    assert disagreement_table(records)["status"].tolist() == [CORRECT, CORRECT, INCORRECT, UNSCORED]


def test_replies_without_a_verdict_of_the_harness_are_not_compared() -> None:
    assert verdict_table([record(CORRECT, "7", 1.0, harness_verdicts={})]).empty
    assert disagreement_table([record(CORRECT, "7", 1.0, harness_verdicts={})]).empty
