"""Paired differences between towers over images, and over seeds for random towers."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from statsmodels.stats.multitest import multipletests

from eval.statistics.intervals import wilson
from eval.statistics.pooled import single_runs
from eval.tower.areas import area_values
from eval.tower.groups import Group
from eval.tower.outcomes import Outcomes, collect_outcomes, write_scores
from eval.tower.tables import CLASS_COLUMNS, DIFFERENCE_COLUMNS, class_rows, correct, difference_rows, score_rows
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


def outcomes(made: list[Record]) -> Outcomes:
    group = Group(
        name=None, classes=list("abcd"), many=False, train=np.arange(100), test=np.arange(N),
        train_labels=np.arange(100) % 4, gold=GOLD,
    )  # fmt: skip
    return collect_outcomes(Path("unused"), group, made)


def compare(made: list[Record], models: list[str], encoders: Sequence[str] = ()) -> pd.DataFrame:
    return correct(difference_rows(outcomes(made), models, encoders), DIFFERENCE_COLUMNS)


def test_scores_carry_wilsons_interval_and_what_the_largest_class_would_give() -> None:
    table = score_rows(outcomes(records())).set_index(["model", "seed"], drop=False)
    assert table["n_test"].tolist() == [N] * 6 and table["largest_class"].tolist() == [0.25] * 6
    base = table[table["model"] == "base"].iloc[0]
    expected = wilson(320, N)
    assert (base["accuracy"], base["low"], base["high"]) == (expected.estimate, expected.low, expected.high)
    assert base["macro_f1"] == pytest.approx(0.8, abs=0.02)


def test_models_are_paired_and_corrected_within_their_family() -> None:
    made = records()
    table = compare(made, ["base", "sft"]).set_index(["model", "against"])
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
    alike = compare(records((0.6, 0.6, 0.6)), ["base", "sft"])
    apart = compare(records((0.2, 0.6, 1.0)), ["base", "sft"])
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
    row = compare(same, ["base"]).set_index("against").loc["random"]
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
    table = compare(made, ["base"], ["same", "worse"])
    rows = table[table["family"] == "linear, encoders"].set_index(["against", "layer"])
    assert len(rows) == 4 and set(rows["against_layer"]) == {"layer.1"}  # layer.0 would be better on the test images
    assert rows.loc[("same", "merger"), "difference"] == 0 and rows.loc[("same", "merger"), "p_holm"] == 1
    worse = rows.loc[("worse", "merger")]
    assert worse["difference"] == pytest.approx(0.3) and worse["low"] > 0.2 and worse["p_holm"] < 0.001
    np.testing.assert_allclose(rows["p_holm"], multipletests(rows["p"], method="holm")[1])
    assert set(table[table["family"] != "linear, encoders"]["against"]) == {"pixels", "random"}


def test_a_class_that_a_model_lost_is_named_and_the_others_are_not() -> None:
    made = records()
    lost = record("lost", 0.9, draw=3)
    lost["predicted"] = np.where(GOLD == 2, 1, lost["predicted"]).tolist()  # images of class c are called b
    table = correct(class_rows(outcomes([*made, lost]), ["base", "sft", "lost"]), CLASS_COLUMNS)
    rows = table[(table["model"] == "lost") & (table["against"] == "sft")].set_index("class")
    assert rows.loc["c", "value"] == 0 and rows.loc["c", "value_against"] == pytest.approx(0.9, abs=0.1)
    assert rows.loc["c", "high"] < -0.7 and rows.loc["c", "p_holm"] < 1e-6 and rows.loc["c", "n"] == N / 4
    assert set(rows.drop("c")["difference"]) == {0} and set(rows.drop("c")["p_holm"]) == {1}
    expected = single_runs(
        np.array(made[-1]["predicted"])[GOLD == 0] == 0, np.array(made[-2]["predicted"])[GOLD == 0] == 0
    )
    row = table[(table["model"] == "sft") & (table["against"] == "base") & (table["class"] == "a")].iloc[0]
    assert (row["difference"], row["p"]) == pytest.approx((expected.estimate[0], expected.p()[0]))


def test_a_class_with_one_test_image_has_no_p_value_and_does_not_disturb_the_correction() -> None:
    made = records()
    gold = np.where(np.arange(N) == 3, 3, GOLD % 3)
    own = outcomes(made)
    group = replace(own.group, gold=gold)
    table = correct(class_rows(collect_outcomes(Path("unused"), group, made), ["base", "sft"]), CLASS_COLUMNS)
    lonely = table[table["class"] == "d"]
    assert set(lonely["n"]) == {1} and lonely["p"].isna().all() and lonely["p_holm"].isna().all()
    assert table[table["class"] != "d"]["p_holm"].notna().all()


def test_areas_under_the_curve_are_delongs(tmp_path: Path) -> None:
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    gold = (rng.random((300, 2)) < (0.3, 0.1)).astype(int)
    scores = {name: gold.T * shift + rng.normal(size=(2, 300)).round(1) for name, shift in (("a", 2.0), ("b", 0.5))}
    for place in range(2):
        values = area_values(scores["a"][place], gold[:, place])
        assert values.mean() == pytest.approx(roc_auc_score(gold[:, place], scores["a"][place]))
        has = gold[:, place] == 1
        pairs = scores["a"][place][has][:, None] - scores["a"][place][~has]
        wins = (pairs > 0) + 0.5 * (pairs == 0)  # [with, without]
        delong = wins.mean(1).var(ddof=1) / has.sum() + wins.mean(0).var(ddof=1) / (~has).sum()
        assert values.var(ddof=1) / 300 == pytest.approx(delong)
    group = Group(
        name=None, classes=["x", "y"], many=True, train=np.arange(9), test=np.arange(300), train_labels=gold[:9],
        gold=gold,
    )  # fmt: skip
    made = []
    for name, seed, own in (("pixels", None, "b"), ("random", 0, "b"), ("random", 1, "b"), ("a", None, "a")):
        bits = ["".join(map(str, row)) for row in (scores[own] > 1).astype(int).tolist()]
        layer = "pixels" if name == "pixels" else "merger"
        made.append(
            record(name, 1, seed=seed, layer=layer) | {"predicted": bits, "key": f"{name}/{seed}", "cv_auc": 0.5}
        )
        write_scores(tmp_path, f"{name}/{seed}", scores[own])
    found = collect_outcomes(tmp_path, group, made)
    row = score_rows(found).iloc[-1]
    areas = [roc_auc_score(gold[:, place], scores["a"][place]) for place in range(2)]
    assert row["auc"] == pytest.approx(np.mean(areas)) and row["auc_low"] < row["auc"] < row["auc_high"] <= 1
    assert row["accuracy"] == pytest.approx(np.mean((scores["a"].T > 1) == gold))
    table = difference_rows(found, ["a"], areas=True).set_index("against")
    assert table.loc["pixels", "difference"] == pytest.approx(table.loc["random", "difference"])
    assert table.loc["pixels", "low"] > 0.05 and table.loc["pixels", "p"] < 1e-4
    by_class = class_rows(found, ["a"])
    rows = by_class[by_class["against"] == "pixels"].set_index("class")
    assert set(rows["metric"]) == {"auc"} and rows["value"].tolist() == pytest.approx(areas)
