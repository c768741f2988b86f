"""The tables of the skip probe: paired drops, what counts apart, and when the control fails."""

from typing import Any

import numpy as np
import pytest

from analyze.skip.controls import control_table
from analyze.skip.plan import make_configurations
from analyze.skip.tables import rate_table
from models.blocks import make_partition
from models.layout import Layout


def record(configuration: str, number: int, status: str, **changes: Any) -> dict[str, Any]:
    return {
        "key": f"t/{number}/{configuration}", "task": "t", "id": str(number), "ability": "reasoning",
        "configuration": configuration, "status": status, "finish_reason": "stop", "num_tokens": 4, "response": "5",
        "dtype": "float32", **changes,
    }  # fmt: skip


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
    assert skipped["p"] == skipped["p_holm"] > 0.5 and skipped["drop_low"] < 0 < skipped["drop_high"]
    assert np.isnan(none["drop"])


def test_the_control_alone_has_a_table_too(pocket_layout: Layout) -> None:
    table = rate_table(
        [record("none", 0, "correct")],
        make_configurations(["none"], pocket_layout, make_partition(6)),
        make_partition(6),
    )
    assert table["accuracy"].tolist() == [1.0] and table[["drop", "p", "p_holm"]].isna().all(axis=None)


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
