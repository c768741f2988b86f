"""Paired differences between towers over images, and over seeds for random towers."""

import numpy as np
import pytest
from statsmodels.stats.multitest import multipletests

from eval.statistics.intervals import wilson
from eval.statistics.pooled import single_runs
from eval.tower.tables import difference_rows, score_rows
from tracking.records import Record

N = 400
GOLD = np.arange(N) % 4


def record(model: str, accuracy: float, *, seed: int | None = None, layer: str = "merger", draw: int = 0) -> Record:
    """What a probe of this accuracy predicts; `draw` decides on which pictures it errs."""
    rng = np.random.default_rng(draw)
    predicted = np.where(rng.permutation(N) < accuracy * N, GOLD, (GOLD + 1) % 4)
    return {
        "model": model, "seed": seed, "layer": layer, "width": 8, "probe": "linear", "setting": 1.0,
        "cv_accuracy": 0.5, "converged": True, "predicted": predicted.tolist(),
    }  # fmt: skip


def records(random: tuple[float, ...] = (0.6, 0.62, 0.64)) -> list[Record]:
    return [
        record("pixels", 0.5, layer="pixels", draw=1),
        *(record("random", accuracy, seed=seed, draw=10 + seed) for seed, accuracy in enumerate(random)),
        record("base", 0.8, draw=2),
        record("sft", 0.9, draw=3),
    ]


def test_scores_carry_wilsons_interval_and_what_the_largest_class_would_give() -> None:
    table = score_rows(records(), GOLD, num_train=100).set_index(["model", "seed"], drop=False)
    assert table["n_test"].tolist() == [N] * 6 and table["largest_class"].tolist() == [0.25] * 6
    base = table[table["model"] == "base"].iloc[0]
    expected = wilson(320, N)
    assert (base["accuracy"], base["low"], base["high"]) == (expected.estimate, expected.low, expected.high)
    assert base["macro_f1"] == pytest.approx(0.8, abs=0.02)


def test_models_are_paired_and_corrected_within_their_family() -> None:
    made = records()
    table = difference_rows(made, GOLD, ["base", "sft"]).set_index(["model", "against"])
    assert set(table.index) == {
        ("base", "pixels"), ("base", "random"), ("sft", "pixels"), ("sft", "random"), ("sft", "base"),
    }  # fmt: skip
    base, sft = (np.array(made[place]["predicted"]) == GOLD for place in (-2, -1))
    row, p = table.loc[("sft", "base")], single_runs(sft, base).p()[0]
    assert row["difference"] == pytest.approx(0.1) and row["low"] < 0.1 < row["high"]
    assert (row["num_gained"], row["num_lost"], row["p"]) == ((sft & ~base).sum(), (base & ~sft).sum(), p)
    for _, group in table.groupby("family"):
        np.testing.assert_allclose(group["p_holm"], multipletests(group["p"], method="holm")[1])


def test_the_random_towers_count_by_their_mean_and_their_spread() -> None:
    alike = difference_rows(records((0.6, 0.6, 0.6)), GOLD, ["base", "sft"])
    apart = difference_rows(records((0.2, 0.6, 1.0)), GOLD, ["base", "sft"])
    for table in (alike, apart):
        against = table[table["against"] == "random"].set_index("model")
        assert against.loc["base", "difference"] == pytest.approx(0.2)
        assert against.loc["sft", "difference"] == pytest.approx(0.3)
    narrow, wide = (
        table[(table["against"] == "random") & (table["model"] == "base")].iloc[0] for table in (alike, apart)
    )
    assert narrow["low"] > 0.1 and narrow["p"] < 0.001
    assert wide["low"] < 0 and wide["p"] > 0.05  # one of the random towers is better


def test_a_model_equal_to_the_random_tower_differs_by_nothing() -> None:
    same = [record("pixels", 0.5, layer="pixels"), record("random", 0.7, seed=0), record("base", 0.7)]
    row = difference_rows(same, GOLD, ["base"]).set_index("against").loc["random"]
    width = 1.97 / (len(GOLD) + 2)  # of half a gained and half a lost image
    assert (row["difference"], row["p"]) == (0, 1)
    assert (row["low"], row["high"]) == pytest.approx((-width, width), rel=0.02)


def test_every_layer_is_paired_with_the_layer_of_an_encoder_that_cross_validation_chose() -> None:
    made = [*records(), record("base", 0.7, layer="block.0", draw=4)]
    made += [record("random", 0.5, seed=seed, layer="block.0", draw=20 + seed) for seed in range(3)]
    for name, accuracies in (("same", (0.95, 0.8)), ("worse", (0.4, 0.5))):
        made += [
            record(name, accuracy, layer=f"layer.{place}", draw=2) | {"cv_accuracy": 0.5 + place / 10}
            for place, accuracy in enumerate(accuracies)
        ]
    table = difference_rows(made, GOLD, ["base"], ["same", "worse"])
    rows = table[table["family"] == "linear, encoders"].set_index(["against", "layer"])
    assert len(rows) == 4 and set(rows["against_layer"]) == {"layer.1"}  # layer.0 would be better on the test images
    assert rows.loc[("same", "merger"), "difference"] == 0 and rows.loc[("same", "merger"), "p_holm"] == 1
    worse = rows.loc[("worse", "merger")]
    assert worse["difference"] == pytest.approx(0.3) and worse["low"] > 0.2 and worse["p_holm"] < 0.001
    np.testing.assert_allclose(rows["p_holm"], multipletests(rows["p"], method="holm")[1])
    assert set(table[table["family"] != "linear, encoders"]["against"]) == {"pixels", "random"}
