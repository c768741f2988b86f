"""pass@k, votes and verdicts against closed forms, enumeration and models whose support is known."""

import itertools
import json
from fractions import Fraction
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from eval.support.command import main
from eval.support.guessing import pass_at_k
from eval.support.samples import MAJORITY, PASS, SOMETIMES, majority_share
from eval.support.tables import NARROWED, NO_CHANGE, SHARPENED, WIDENED
from tracking.run import open_run

SETTINGS: dict[str, Any] = {"tasks": {"t": "f"}, "sampling": {"num_samples": 8}}


def test_pass_at_k_is_the_closed_form() -> None:
    for n in (1, 2, 7, 64):
        right = np.arange(n + 1)
        for k in {1, 2, n // 2, n} - {0}:
            if k > n:
                continue
            expected = [float(1 - Fraction(comb(n - c, k), comb(n, k))) for c in right]
            np.testing.assert_allclose(pass_at_k(np.full(n + 1, n), right, k), expected, rtol=0, atol=1e-12)


def test_pass_at_k_is_the_share_of_all_choices_of_k_samples_that_hold_a_right_one() -> None:
    samples = [1, 0, 0, 1, 0, 0]
    for k in range(1, 7):
        choices = list(itertools.combinations(samples, k))
        expected = sum(map(any, choices)) / len(choices)
        assert pass_at_k(np.array([6]), np.array([2]), k)[0] == pytest.approx(expected, abs=1e-12)


def test_pass_at_k_is_unbiased() -> None:
    rng = np.random.default_rng(0)
    right = rng.binomial(10, 0.2, size=200_000)
    assert pass_at_k(np.full(len(right), 10), right, 4).mean() == pytest.approx(1 - 0.8**4, abs=3e-3)


def test_a_prompt_with_fewer_judged_samples_than_k_does_not_count() -> None:
    found = pass_at_k(np.array([0, 1, 2, 3]), np.array([0, 1, 0, 1]), 2)
    assert np.isnan(found[:2]).all()
    np.testing.assert_allclose(found[2:], [0, 2 / 3])


def votes(*answers: tuple[str | None, str]) -> list[dict[str, Any]]:
    return [{"extracted": extracted, "status": status} for extracted, status in answers]


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        (votes(("5", "correct"), ("5.0", "correct"), ("7", "incorrect"), ("8", "incorrect"), ("9", "incorrect")), 1),
        (votes(("5", "correct"), ("7", "incorrect"), ("7.0", "incorrect")), 0),
        (votes(("5", "correct"), ("7", "incorrect")), 1 / 2),
        (votes(("5", "correct"), ("7", "incorrect"), ("8", "incorrect")), 1 / 3),
        (votes(("red", "incorrect"), (" Red", "incorrect"), ("blue", "correct")), 0),
        (votes((None, "incorrect"), (None, "incorrect"), ("5", "correct")), 1),
        (votes((None, "incorrect"), (None, "incorrect")), 0),
        (votes(("5", "unscored"), ("5", "unscored"), ("6", "correct")), 1),
        (votes(("5", "unscored")), None),
    ],
)
def test_the_most_frequent_answer_wins_and_ties_are_drawn(samples: list[dict[str, Any]], expected: float) -> None:
    assert majority_share(samples) == (None if expected is None else pytest.approx(expected))


def write_samples(directory: Path, rates: np.ndarray, *, num_samples: int = 8, seed: int = 0, **changes: Any) -> Path:
    """Writes an evaluation as eval.run leaves one: each prompt is right with its own rate."""
    rng = np.random.default_rng(seed)
    rows = []
    for number, rate in enumerate(rates):
        for sample in range(num_samples):
            right = bool(rng.random() < rate)
            rows.append(
                {
                    "key": f"t/{number}#{sample}", "task": "t", "id": str(number), "ability": "reasoning",
                    "condition": "given", "sample": sample, "status": "correct" if right else "incorrect",
                    "extracted": "1" if right else f"{rng.integers(2, 9)}", "well_formed": True,
                }
            )  # fmt: skip
    with open_run(directory, command="eval.run", settings={**SETTINGS, "model": str(directory), **changes}):
        (directory / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


NUM_PROMPTS = 150
START = np.full(NUM_PROMPTS, 0.3)
KNOWN = {
    SHARPENED: np.repeat([1.0, 0.0], NUM_PROMPTS // 2),  # what it can do it does always, the rest no more
    WIDENED: np.full(NUM_PROMPTS, 0.75),
    NARROWED: np.repeat([0.3, 0.0], NUM_PROMPTS // 2),
    NO_CHANGE: START,
}


def test_models_of_known_support_are_told_apart(tmp_path: Path) -> None:
    names = [name.replace(" ", "-") for name in KNOWN]
    models = [f"sft={write_samples(tmp_path / 'sft', START)}"]
    for seed, (name, rates) in enumerate(zip(names, KNOWN.values(), strict=True), start=1):
        models.append(f"{name}={write_samples(tmp_path / name, rates, seed=seed)}")
    main([*models, "--output-dir", str(tmp_path / "out")])
    changes = pd.read_csv(tmp_path / "out" / "changes.csv")
    assert dict(zip(changes["model"], changes["verdict"], strict=True)) == dict(zip(names, KNOWN, strict=True))
    support = pd.read_csv(tmp_path / "out" / "support.csv")
    curve = support[(support["model"] == "sft") & (support["metric"] == PASS)].set_index("k")
    for k in (1, 4, 8):
        assert curve.loc[k, "low"] < 1 - 0.7**k < curve.loc[k, "high"]
    assert (support[support["metric"] == PASS].groupby("model")["value"].diff().fillna(0) >= 0).all()
    by_metric = support[support["model"] == SHARPENED].set_index("metric")["value"]
    assert by_metric[MAJORITY] == 0.5 and by_metric[SOMETIMES] == 0
    assert (support["n"] == NUM_PROMPTS).all()
    assert (tmp_path / "out" / "figures" / "support-t.png").stat().st_size > 10_000


def test_a_smaller_k_is_estimated_from_all_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = [f"{name}={write_samples(tmp_path / name, START, seed=seed)}" for seed, name in enumerate(("sft", "full"))]
    main([*models, "--output-dir", str(tmp_path / "all")])
    main([*models, "--k", "4", "--output-dir", str(tmp_path / "four")])
    every, four = (pd.read_csv(tmp_path / name / "support.csv") for name in ("all", "four"))
    kept = every[(every["metric"] != PASS) | (every["k"] <= 4)].reset_index(drop=True)
    pd.testing.assert_frame_equal(four.drop(columns="num_samples"), kept.drop(columns="num_samples"))
    assert (four["num_samples"] == 4).all()
    with pytest.raises(ValueError, match="k is 9; expected at most 8, the samples a prompt of"):
        main([*models, "--k", "9", "--output-dir", str(tmp_path / "nine")])
    with pytest.raises(ValueError, match="k is 1; it must be at least 2"):
        main([*models, "--k", "1", "--output-dir", str(tmp_path / "one")])


def test_accuracy_at_one_is_the_mean_over_samples_and_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = [f"sft={write_samples(tmp_path / 'sft', START)}"]
    for seed in (0, 1):
        models.append(f"full@{seed}={write_samples(tmp_path / f'full{seed}', START + 0.2, seed=seed + 5)}")
    main([*models, "--output-dir", str(tmp_path / "out")])
    statuses = [
        json.loads(line)["status"] for seed in (0, 1) for line in (tmp_path / f"full{seed}" / "records.jsonl").open()
    ]
    support = pd.read_csv(tmp_path / "out" / "support.csv")
    row = support[(support["model"] == "full") & (support["k"] == 1)].iloc[0]
    assert row["value"] == pytest.approx(statuses.count("correct") / len(statuses), abs=1e-5)
    assert row["num_seeds"] == 2
    changes = pd.read_csv(tmp_path / "out" / "changes.csv")
    change = changes[changes["k"] == 1].iloc[0]
    assert change["low"] < 0.2 < change["high"] and change["against"] == "sft"
    printed = capsys.readouterr().out
    assert "less sft, with 95 % intervals over new prompts and new training seeds, not corrected" in printed
    assert "t     reasoning  full   training, 2 seeds  +" in printed


def test_evaluations_that_cannot_be_laid_side_by_side_are_refused(tmp_path: Path) -> None:
    greedy = [write_samples(tmp_path / f"greedy{seed}", START, num_samples=1, seed=seed) for seed in (0, 1)]
    sampled = write_samples(tmp_path / "sampled", START)
    other = write_samples(tmp_path / "other", START, prompt_style="think")
    out = ["--output-dir", str(tmp_path / "out")]
    with pytest.raises(ValueError, match="one reply a prompt; evaluate with --num-samples"):
        main([f"sft={greedy[0]}", f"full={greedy[1]}", *out])
    with pytest.raises(ValueError, match="evaluated with different prompt_style"):
        main([f"sft={sampled}", f"full={other}", *out, "--overwrite"])
    with pytest.raises(ValueError, match="baseline 'base' is not among the models"):
        main([f"sft={sampled}", f"full={sampled}", *out, "--baseline", "base", "--overwrite"])
