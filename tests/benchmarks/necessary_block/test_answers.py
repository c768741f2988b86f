"""Verdicts: the right table passes, and each thing that a broken suite could say does not."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from benchmarks.known_answers.answers import answer_table
from benchmarks.necessary_block.answers import LEVEL, MAX_CLAIMED, MAX_SPLITS, count_replies, judge_gains
from benchmarks.necessary_block.command import main, summarise
from eval.splits import splits_of
from eval.statistics.critical import critical_value

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


def splits_of_sound_studies(num_seeds: int, num_studies: int) -> np.ndarray:
    """Returns the share of splits that the pooled test claims in each of many studies whose seeds differ by chance."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(num_studies, num_seeds))
    splits = splits_of(range(num_seeds), most=MAX_SPLITS)
    halves = np.array([np.isin(np.arange(num_seeds), half) for half, _ in splits])
    first, second = halves.sum(1), (~halves).sum(1)
    means = values @ halves.T / first, values @ (~halves).T / second
    inside = (values**2).sum(1)[:, None] - first * means[0] ** 2 - second * means[1] ** 2
    degrees = num_seeds - 2
    seeds = inside / degrees * (1 / first + 1 / second)
    critical = critical_value(LEVEL, np.zeros(seeds.size), seeds.ravel(), np.full(seeds.size, 300), degrees)
    claimed = np.abs(means[0] - means[1]) > critical.reshape(seeds.shape) * np.sqrt(seeds)
    return np.asarray(claimed.mean(1))


def test_a_sound_test_stays_below_the_limit_with_ten_seeds_and_not_with_four() -> None:
    assert len(splits_of(range(10), most=MAX_SPLITS + 1)) == MAX_SPLITS
    ten, four = splits_of_sound_studies(10, 1000), splits_of_sound_studies(4, 1000)
    assert ten.mean() == pytest.approx(LEVEL, abs=0.002) and np.mean(ten > MAX_CLAIMED) < 0.01
    assert four.mean() == pytest.approx(LEVEL, abs=0.015) and np.mean(four > MAX_CLAIMED) > 0.1
