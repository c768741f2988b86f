"""Score tables of records whose means and intervals are known."""

from typing import Any

import numpy as np
import pytest
from scipy.stats import t

from eval.statistics.intervals import wilson
from eval.statistics.scores import score_table


def record(number: int, status: str, *, condition: str = "given", sample: int = 0, **changes: Any) -> dict[str, Any]:
    return {
        "key": f"t/{number}/{condition}#{sample}", "task": "t", "id": str(number), "ability": "vision",
        "condition": condition, "sample": sample, "status": status, "well_formed": True, "num_tokens": 4,
        "finish_reason": "stop", **changes,
    }  # fmt: skip


def row_of(records: list[dict[str, Any]]) -> Any:
    table = score_table(records)
    assert len(table) == 1
    return table.iloc[0]


def test_one_answer_a_prompt_has_wilsons_interval_and_what_cannot_be_judged_is_counted_apart() -> None:
    statuses = ["correct"] * 7 + ["incorrect"] * 4 + ["unscored"] * 2
    row = row_of([record(number, status) for number, status in enumerate(statuses)])
    expected = wilson(7, 11)
    assert (row["n"], row["num_unscored"]) == (11, 2)
    assert (row["accuracy"], row["low"], row["high"]) == (expected.estimate, expected.low, expected.high)
    assert row["num_ability"] == 0 and np.isnan(row["ability_score"])


def test_an_ability_is_scored_where_all_that_its_definition_asks_could_be_judged() -> None:
    given = ["correct", "correct", "correct", "incorrect", "unscored", "correct"]
    black = ["incorrect", "correct", "unscored", "incorrect", "incorrect", None]
    records = [record(number, status) for number, status in enumerate(given)]
    records += [record(number, status, condition="black") for number, status in enumerate(black) if status]
    row = row_of(records)
    assert (row["num_ability"], row["ability_score"]) == (3, pytest.approx(1 / 3))
    assert (row["n"], row["accuracy"], row["num_unscored"]) == (5, pytest.approx(0.8), 1)


def test_vision_to_reasoning_needs_both_and_reasoning_is_its_accuracy() -> None:
    records = [
        record(number, status, condition=condition, ability="vision-to-reasoning")
        for number, pair in enumerate([("correct", "correct"), ("correct", "incorrect"), ("incorrect", "correct")])
        for condition, status in zip(("given", "described"), pair, strict=True)
    ]
    assert row_of(records)["ability_score"] == pytest.approx(1 / 3)
    reasoning = row_of([record(0, "correct", ability="reasoning"), record(1, "incorrect", ability="reasoning")])
    assert reasoning["ability_score"] == reasoning["accuracy"] == 0.5


def test_several_samples_are_averaged_by_prompt_and_clustered_by_it() -> None:
    right = [3, 0, 4, 1, 2, 2]
    records = [
        record(number, "correct" if sample < count else "incorrect", sample=sample)
        for number, count in enumerate(right)
        for sample in range(4)
    ]
    row = row_of(records)
    rates = np.array(right) / 4
    error = rates.std(ddof=1) / np.sqrt(len(rates))
    half = t.ppf(0.975, len(rates) - 1) * error
    assert (row["n"], row["num_samples"]) == (6, 4)
    assert row["accuracy"] == pytest.approx(rates.mean()) and row["standard_error"] == pytest.approx(error)
    assert (row["low"], row["high"]) == (pytest.approx(rates.mean() - half), pytest.approx(rates.mean() + half))


def test_prompts_on_one_image_count_as_one_cluster() -> None:
    statuses = ["correct", "correct", "incorrect", "incorrect", "correct", "correct"]
    apart = row_of([record(number, status) for number, status in enumerate(statuses)])
    together = row_of(
        [record(number, status, cluster=f"image {number // 2}") for number, status in enumerate(statuses)]
    )
    assert together["accuracy"] == apart["accuracy"]
    assert together["standard_error"] > 1.3 * apart["standard_error"]


def test_why_replies_ended_is_told_of_those_given_alone() -> None:
    reasons = ["stop", "length", "repetition", "length"]
    records = [record(number, "correct", finish_reason=reason) for number, reason in enumerate(reasons)]
    records += [record(0, "incorrect", condition="black", finish_reason="repetition", num_tokens=100)]
    row = row_of(records)
    assert (row["at_limit_frac"], row["repetition_frac"], row["mean_tokens"]) == (0.5, 0.25, 4)
