"""Halves of one arm compared with each other: every division once, and what counts as a false alarm."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from eval.splits import main, splits_of
from tracking.run import open_run

NUM_PROMPTS = 80


def write_evaluation(directory: Path, right: dict[str, Sequence[bool]]) -> str:
    """Writes a finished evaluation with these answers per ability, and returns its folder."""
    settings = {"tasks": {"test": "abc"}, "model": str(directory), "model_fingerprint": str(directory)}
    with open_run(directory, command="eval.run", settings=settings):
        records = [
            {"key": f"test/{ability}-{number}", "task": "test", "id": f"{ability}-{number}", "ability": ability,
             "status": "correct" if value else "incorrect", "well_formed": True, "num_tokens": 1,
             "finish_reason": "stop"}
            for ability, values in right.items()
            for number, value in enumerate(values)
        ]  # fmt: skip
        (directory / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(directory)


def draw(rate: float, seed: int) -> list[bool]:
    return list(np.random.default_rng(seed).random(NUM_PROMPTS) < rate)


def arm(tmp_path: Path, name: str, rates: Sequence[float]) -> list[str]:
    """Writes one evaluation per seed; vision is answered at these rates, reasoning always alike."""
    return [
        f"{name}@{seed}=" + write_evaluation(
            tmp_path / f"{name}-seed{seed}", {"vision": draw(rate, seed), "reasoning": draw(0.5, 99)}
        )
        for seed, rate in enumerate(rates)
    ]  # fmt: skip


@pytest.mark.parametrize(("num_seeds", "number"), [(4, 3), (5, 10), (6, 15 + 10), (8, 28 + 56 + 35)])
def test_every_division_occurs_once(num_seeds: int, number: int) -> None:
    seeds = list(range(10, 10 + num_seeds))
    splits = splits_of(seeds, most=1000)
    assert len({frozenset(map(frozenset, split)) for split in splits}) == len(splits) == number
    for first, second in splits:
        assert sorted((*first, *second)) == seeds and 2 <= len(first) <= len(second)


def test_of_many_divisions_so_many_are_drawn_and_always_the_same() -> None:
    drawn = splits_of(range(12), most=50)
    assert len(set(drawn)) == 50 and drawn == splits_of(range(12), most=50)
    assert {len(first) for first, _ in drawn} > {4, 5, 6}
    assert all(0 in first for first, second in drawn if len(first) == len(second))


def test_alike_seeds_raise_no_alarm_and_unlike_ones_raise_it_in_the_split_that_parts_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = [*arm(tmp_path, "alike", [0.5] * 4), *arm(tmp_path, "torn", [0.9, 0.9, 0.2, 0.2])]
    main([*models, "--output-dir", str(tmp_path / "out")])
    said = capsys.readouterr().out
    table, summary = (pd.read_csv(tmp_path / "out" / f"{name}.csv") for name in ("splits", "summary"))
    assert len(table) == 2 * 3 * 2
    claimed = table[table["claimed"]]
    assert claimed[["arm", "first", "second", "ability"]].to_numpy().tolist() == [["torn", "0 1", "2 3", "vision"]]
    means = [
        np.mean([draw(rate, seed) for seed, rate in pairs]) for pairs in ([(0, 0.9), (1, 0.9)], [(2, 0.2), (3, 0.2)])
    ]
    assert claimed["difference"].item() == pytest.approx(means[0] - means[1], abs=1e-6)
    assert (table["p_holm"] >= table["p"]).all()
    assert summary["num_splits"].tolist() == [3, 3, 6] and summary["num_claimed"].tolist() == [0, 1, 1]
    assert "claimed in 1 of 6 splits (16.7 %)" in said


def test_models_without_seeds_and_arms_with_too_few_are_left_out(tmp_path: Path) -> None:
    base = "base=" + write_evaluation(tmp_path / "base", {"vision": draw(0.5, 0), "reasoning": draw(0.5, 99)})
    models = [base, *arm(tmp_path, "few", [0.5] * 3), *arm(tmp_path, "enough", [0.5] * 4)]
    main([*models, "--output-dir", str(tmp_path / "out")])
    assert set(pd.read_csv(tmp_path / "out" / "splits.csv")["arm"]) == {"enough"}
    with pytest.raises(ValueError, match=r"no arm has 4 seeds \(few: 3\)"):
        main([*models[:4], "--output-dir", str(tmp_path / "other")])
    assert not (tmp_path / "other").exists()


def test_evaluations_that_are_not_alike_are_refused(tmp_path: Path) -> None:
    models = arm(tmp_path, "full", [0.5] * 4)
    run = tmp_path / "full-seed3" / "run.json"
    run.write_text(run.read_text().replace('"test": "abc"', '"test": "abd"'))
    with pytest.raises(ValueError, match=r"were evaluated with different tasks\.test"):
        main([*models, "--output-dir", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
