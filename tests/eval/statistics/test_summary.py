"""The last lines of an evaluation."""

from pathlib import Path

import pytest

from eval.statistics.scores import score_table
from eval.statistics.summary import summary
from tracking.run import open_run
from tracking.tables import format_first, write_table


@pytest.mark.parametrize("black", [False, True])
def test_accuracy_stands_with_its_interval_and_the_limit(tmp_path: Path, black: bool) -> None:
    records = [
        {
            "task": "test", "id": str(number), "ability": "vision", "condition": condition, "well_formed": True,
            "status": "correct" if number % 2 else "unscored" if number == 0 else "incorrect", "num_tokens": 8,
            "finish_reason": "length" if number < 4 else "stop",
        }
        for number in range(10)
        for condition in (("given", "black") if black else ("given",))
    ]  # fmt: skip
    with open_run(tmp_path, command="eval.run", settings={"max_new_tokens": 2048}):
        write_table(tmp_path / "scores.csv", score_table(records))
    head, row, apart = summary(tmp_path)
    assert head.endswith("at the limit of 2,048") and ("ability score" in head) == black
    assert row.split()[:6] == ["test", "vision", "9", "55.6", "%", "[26.7,"]
    assert row.split()[-3:] == ["8.0", "40.0", "%"]
    assert apart == "replies that could not be judged, not counted as wrong: 1"


def test_only_the_first_rows_are_shown_and_the_rest_is_counted() -> None:
    rows = [["task", "n"], *([f"t{number}", str(number)] for number in range(5))]
    assert format_first(rows, right=(1,), most=2, table="scores.csv") == [
        "task  n", "t0    0", "t1    1", "… 3 more in scores.csv",
    ]  # fmt: skip
    assert len(format_first(rows, right=(1,), most=5, table="scores.csv")) == 6
