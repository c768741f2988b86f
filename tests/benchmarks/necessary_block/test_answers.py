"""Verdicts: the right table passes, and each thing that a broken suite could say does not."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from benchmarks.known_answers.answers import answer_table
from benchmarks.necessary_block.answers import count_replies, judge_gains
from benchmarks.necessary_block.command import main, summarise

NOTHING, ALL = (0.0, -0.1, 0.1), (1.0, 0.97, 1.03)


def table(**kept: tuple[float, float, float]) -> pd.DataFrame:
    """Returns pooled rows against the start, with the share of the gain that each arm keeps."""
    rows: list[dict[str, Any]] = [
        {"arm": "base", "difference": 0.75, "low": 0.7, "high": 0.8, "gain_kept": 1.0, "gain_kept_low": 0.9,
         "gain_kept_high": 1.1},
        {"arm": "full", "difference": 0.74, "low": 0.6, "high": 0.8, "gain_kept": 1.0, "gain_kept_low": 1.0,
         "gain_kept_high": 1.0},
    ]  # fmt: skip
    for arm, (estimate, low, high) in kept.items():
        values = {"gain_kept": estimate, "gain_kept_low": low, "gain_kept_high": high}
        rows.append({"arm": arm.replace("_", "-"), "difference": 0.74 * estimate, "low": low, "high": high, **values})
    return pd.DataFrame(rows)


def verdicts(rows: pd.DataFrame) -> dict[str, str]:
    return dict(answer_table(judge_gains(rows, "mid"))[["place", "verdict"]].to_numpy().tolist())


RIGHT = {"freeze_early": ALL, "freeze_mid": NOTHING, "freeze_late": ALL, "only_mid": ALL}


def test_a_necessary_block_that_is_found_and_no_other() -> None:
    found = judge_gains(table(**RIGHT), "mid")
    assert [answer.place for answer in found] == ["full", "freeze-early", "freeze-mid", "freeze-late", "only-mid"]
    assert set(verdicts(table(**RIGHT)).values()) == {"found"}
    assert summarise(found) == "all 5 known answers were found"


@pytest.mark.parametrize(
    ("arm", "kept"),
    [
        ("freeze_mid", ALL),  # the block trained although it was frozen
        ("freeze_mid", (0.3, -0.1, 0.7)),  # undecided
        ("freeze_mid", (float("nan"),) * 3),  # not given
        ("freeze_late", NOTHING),  # another block is called necessary
        ("freeze_late", (0.9, 0.7, 1.1)),
        ("only_mid", (float("nan"),) * 3),
    ],
)
def test_anything_else_is_wrong_and_said(arm: str, kept: tuple[float, float, float]) -> None:
    rows = table(**{**RIGHT, arm: kept})
    wrong = [place for place, verdict in verdicts(rows).items() if verdict == "wrong"]
    assert wrong == [arm.replace("_", "-")]
    with pytest.raises(RuntimeError, match="1 of 5 known answers were not found") as error:
        summarise(judge_gains(rows, "mid"))
    assert f"necessity, mid: gain kept, {wrong[0]}: true" in str(error.value)


def test_a_study_that_gains_nothing_is_wrong() -> None:
    rows = table(**RIGHT)
    rows.loc[rows["arm"] == "full", ["difference", "low", "high"]] = (0.1, 0.05, 0.15)
    assert verdicts(rows)["full"] == "wrong"


@pytest.mark.parametrize(("replies", "is_right"), [(["red", "red"], True), (["red", "blue"], False)])
def test_a_model_that_answers_differently_is_not_blind(tmp_path: Path, replies: list[str], is_right: bool) -> None:
    directory = tmp_path / "eval" / "freeze-mid-seed0"
    directory.mkdir(parents=True)
    records = [json.dumps({"key": f"test/{number}", "response": reply}) for number, reply in enumerate(replies)]
    (directory / "records.jsonl").write_text("\n".join(records) + "\n")
    assert count_replies(tmp_path, "mid", "freeze-mid-seed0").is_right == is_right


def test_blocks_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"blocks are \['middle'\]; expected some of early, mid, late"):
        main(["--blocks", "middle", "--output-dir", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
