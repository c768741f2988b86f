"""The tables of the skip probe: paired drops against closed forms and simulation, and what counts apart."""

from typing import Any

import numpy as np
import pytest

from analyze.skip_plans import make_configurations
from analyze.skip_tables import control_table, paired_interval, rate_table
from models.blocks import make_partition
from models.layout import Layout


def record(configuration: str, number: int, status: str, **changes: Any) -> dict[str, Any]:
    return {
        "key": f"t/{number}/{configuration}", "task": "t", "id": str(number), "ability": "reasoning",
        "configuration": configuration, "status": status, "finish_reason": "stop", "num_tokens": 4, "response": "5",
        "dtype": "float32", **changes,
    }  # fmt: skip


def test_a_paired_interval_is_walds_with_half_an_observation_more_in_each_cell() -> None:
    both, lost, gained, neither = cells = np.array([20, 9, 2, 12]) + 0.5
    weights, difference = cells / cells.sum(), np.array([0, 1, -1, 0])
    mean = float(weights @ difference)
    error = float(weights @ (difference - mean) ** 2 / cells.sum()) ** 0.5
    found = paired_interval(9, 2, 43)
    assert found.estimate == pytest.approx(7 / 43)
    assert (found.low, found.high) == pytest.approx((mean - 1.959964 * error, mean + 1.959964 * error))
    assert both + lost + gained + neither == 45


@pytest.mark.parametrize("shares", [(0.02, 0.01), (0.3, 0.05), (0.6, 0.0)])
@pytest.mark.parametrize("n", [20, 200])
def test_a_paired_interval_holds_the_true_drop_about_as_often_as_it_says(shares: tuple[float, float], n: int) -> None:
    lost, gained = shares
    drawn = np.random.default_rng(0).multinomial(n, [lost, gained, 1 - lost - gained], size=2000)
    intervals = [paired_interval(int(a), int(b), n) for a, b, _ in drawn]
    covered = np.mean([interval.low <= lost - gained <= interval.high for interval in intervals])
    assert 0.92 <= covered <= 1


def test_rates_count_apart_what_is_unscored_cut_or_circling(pocket_layout: Layout) -> None:
    partition = make_partition(6)
    configurations = make_configurations(["llm:3"], pocket_layout, partition)
    right, wrong, unscored = "correct", "incorrect", "unscored"
    before = [right, right, right, right, unscored, wrong]
    after = [right, wrong, wrong, unscored, right, right]
    ends = ["stop", "length", "repetition", "stop", "stop", "repetition"]
    records = [record("none", number, status) for number, status in enumerate(before)]
    records += [
        record("llm:3", number, status, finish_reason=end)
        for number, (status, end) in enumerate(zip(after, ends, strict=True))
    ]
    table = rate_table(records, configurations, partition).set_index("configuration")
    none, skipped = table.loc["none"], table.loc["llm:3"]
    assert (none["n"], none["accuracy"], none["num_unscored"]) == (5, 4 / 5, 1)
    assert (skipped["n"], skipped["accuracy"], skipped["num_unscored"]) == (5, 3 / 5, 1)
    assert (skipped["layer"], skipped["block"]) == (3, "mid")
    assert (skipped["at_limit_frac"], skipped["repetition_frac"]) == (1 / 6, 2 / 6)
    assert (skipped["num_compared"], skipped["num_lost"], skipped["num_gained"]) == (4, 2, 1)  # scored in both
    assert skipped["drop"] == 1 / 4
    assert skipped["p"] == skipped["p_holm"] == 1
    assert np.isnan(none["drop"])


def test_several_layers_are_corrected_for_within_their_kind(pocket_layout: Layout) -> None:
    partition = make_partition(6)
    configurations = make_configurations(["layers", "early"], pocket_layout, partition)
    records = [record("none", number, "correct") for number in range(20)]
    for configuration in configurations[1:]:
        damaged = configuration.name in ("llm:0", "early")
        records += [record(configuration.name, n, "incorrect" if damaged else "correct") for n in range(20)]
    table = rate_table(records, configurations, partition).set_index("configuration")
    assert table.loc["llm:0", "p_holm"] == pytest.approx(6 * table.loc["llm:0", "p"])
    assert table.loc["early", "p_holm"] == pytest.approx(table.loc["early", "p"])
    assert table.loc["llm:1", "drop_low"] < 0 < table.loc["llm:1", "drop_high"]


@pytest.mark.parametrize(
    ("dtype", "num_differing", "num_wrong", "holds"),
    [
        ("float32", 0, 0, True),
        ("float32", 2, 0, True),  # of 200: two ties that fell the other way
        ("float32", 3, 0, False),
        ("bfloat16", 60, 0, True),  # other words, as good
        ("bfloat16", 60, 30, False),
    ],
)
def test_the_control_fails_where_rounding_cannot_explain_it(
    dtype: str, num_differing: int, num_wrong: int, holds: bool
) -> None:
    records = [record("plain", number, "correct", dtype=dtype) for number in range(200)]
    records += [
        record("none", n, "incorrect" if n < num_wrong else "correct", response="6" if n < num_differing else "5")
        for n in range(200)
    ]
    (row,) = control_table(records).to_dict("records")
    assert (row["n"], row["num_equal_replies"], row["holds"]) == (200, 200 - num_differing, holds)


def test_a_reply_that_was_ended_is_the_plain_one_where_that_begins_so() -> None:
    records = [record("plain", n, "incorrect", response=text, finish_reason="length") for n, text in enumerate("ab")]
    records[0]["response"], records[1]["response"] = "2 + 2 + 2 + 2", "3 + 2 + 2 + 2"
    records += [record("none", n, "incorrect", response="2 + 2", finish_reason="repetition") for n in range(2)]
    assert control_table(records)["num_equal_replies"].tolist() == [1]
