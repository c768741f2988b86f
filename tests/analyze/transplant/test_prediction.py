"""Transplants beside trained arms: which rows belong together, and the rank correlation with its interval."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import rankdata, spearmanr

from analyze.layers.plan import NECESSITY, SUFFICIENCY
from analyze.transplant.prediction import agreement_table, bootstrap_interval, prediction_table, read_trained
from analyze.transplant.summary import predictions
from tracking.tables import write_table

NUM_LAYERS = 8
HEAD = {"task": "test", "ability": "vision"}


def transplants(effects: np.ndarray) -> pd.DataFrame:
    """Sufficiency and necessity of every layer, alpha 0.5 with half of the effect."""
    return pd.DataFrame(
        [
            {
                **HEAD, "arm": "full", "direction": direction, "unit": f"llm:{layer}", "part": "layer", "first": layer,
                "last": layer, "alpha": alpha, "n": 100, "num_seeds": 1, "difference": sign * alpha * effects[layer],
                "low": -1.0, "high": 1.0,
            }
            for direction, sign in ((SUFFICIENCY, 1), (NECESSITY, -1))
            for layer in range(NUM_LAYERS)
            for alpha in (0.5, 1.0)
        ]
    )  # fmt: skip


def write_layers(folder: Path, only: np.ndarray, freeze: np.ndarray) -> Path:
    rows = [
        {
            **HEAD, "arm": f"{kind}-llm{layer}", "against": against, "difference": values[layer], "low": -1.0,
            "high": 1.0, "num_seeds": 4,
        }
        for kind, against, values in (("only", "sft", only), ("freeze", "full", freeze))
        for layer in range(NUM_LAYERS)
    ]  # fmt: skip
    folder.mkdir()
    write_table(folder / "layers.csv", pd.DataFrame(rows))
    return folder


def test_layers_that_transplants_rank_as_training_does_are_said_to_be_predicted(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    effects = generator.random(NUM_LAYERS)
    noise = generator.random(NUM_LAYERS)
    trained = read_trained([write_layers(tmp_path / "layers", effects**2, -noise)])
    prediction = prediction_table(transplants(effects), trained)
    assert len(prediction) == 4 * NUM_LAYERS
    row = prediction[(prediction["unit"] == "llm:3") & (prediction["alpha"] == 1.0)].iloc[0]
    assert (row["trained_arm"], row["trained_seeds"]) == ("only-llm3", 4)
    assert row["trained_difference"] == pytest.approx(effects[3] ** 2, rel=1e-5)
    agreement = agreement_table(prediction).set_index(["direction", "alpha"])
    same = agreement.loc[(SUFFICIENCY, 1.0)]
    assert same["rho"] == pytest.approx(1) and same["p"] == pytest.approx(2 / 40320) and same["low"] == 1
    assert same["mean_error"] == pytest.approx(np.abs(effects - effects**2).mean(), rel=1e-4)
    other = agreement.loc[(NECESSITY, 1.0)]
    assert other["rho"] == pytest.approx(spearmanr(effects, noise).statistic)
    said = predictions(agreement.reset_index())
    assert len(said) == 2  # of alpha 1 alone
    assert "the transplant predicts the order of the trained arms (ρ = 1.00 [1.00, 1.00], 8 places" in said[0]
    assert "the transplant is not shown to predict the order" in said[1]


def test_the_interval_is_that_of_resampled_places() -> None:
    x, y = np.array([1.0, 2, 3, 4, 5, 6, 7]), np.array([2.0, 1, 4, 3, 7, 5, 6])
    low, high = bootstrap_interval(x, y)
    generator = np.random.default_rng(1)
    found = [
        np.corrcoef(rankdata(x[chosen]), rankdata(y[chosen]))[0, 1]
        for chosen in generator.integers(len(x), size=(4000, len(x)))
        if np.ptp(chosen) > 0
    ]
    assert low == pytest.approx(np.quantile(found, 0.025), abs=0.1)
    assert high == pytest.approx(np.quantile(found, 0.975), abs=0.03)
    assert np.isnan(bootstrap_interval(x, np.zeros(7))).all()


def test_pooled_accuracies_of_a_comparison_are_taken(tmp_path: Path) -> None:
    head = {**HEAD, "low": -0.1, "high": 0.1, "num_seeds": 2}
    rows = [
        {**head, "arm": "freeze-mid", "against": against, "metric": metric, "seed": seed, "difference": difference}
        for against, metric, seed, difference in (
            ("full", "accuracy", "pooled", -0.3),
            ("full", "accuracy", "0", -0.4),
            ("full", "ability", "pooled", -0.5),
            ("sft", "accuracy", "pooled", 0.2),
        )
    ]
    write_table(tmp_path / "comparison.csv", pd.DataFrame(rows))
    (row,) = read_trained([tmp_path]).to_dict("records")
    assert (row["arm"], row["difference"], row["direction"], row["place"]) == ("freeze-mid", -0.3, NECESSITY, "mid")


def test_a_folder_without_arms_of_one_place_is_refused(tmp_path: Path) -> None:
    row = {**HEAD, "arm": "full", "against": "sft", "difference": 0.1, "low": 0.0, "high": 0.2, "num_seeds": 2}
    write_table(tmp_path / "layers.csv", pd.DataFrame([row]))
    with pytest.raises(ValueError, match=r"layers\.csv has no arm that trains or freezes one place"):
        read_trained([tmp_path])
