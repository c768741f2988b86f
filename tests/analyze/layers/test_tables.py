"""The numbers of a layer sweep's tables, and the places that arms' names give."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from analyze.layers.plan import LAYER, NECESSITY, SUFFICIENCY, Place, read_place
from analyze.layers.tables import agreement_table, energy_shares
from models.layout import layout_of

NUM_LAYERS = 6


def test_rank_correlations_are_scipys_and_their_tests_are_exact() -> None:
    generator = np.random.default_rng(0)
    curves = {name: generator.random(NUM_LAYERS) for name in ("only", "freeze", "size")}
    curves["freeze"] = curves["only"] ** 3
    rows = [
        {
            "task": "t", "ability": "a", "direction": direction, "part": LAYER, "first": layer, "last": layer,
            "share": curves[name][layer], "energy_share": curves["size"][layer],
        }
        for name, direction in (("only", SUFFICIENCY), ("freeze", NECESSITY))
        for layer in range(NUM_LAYERS)
    ]  # fmt: skip
    table = agreement_table(pd.DataFrame(rows)).set_index(["first", "second"])
    same = table.loc[("sufficiency, a", "necessity, a")]
    assert same["rho"] == pytest.approx(1) and same["p"] == pytest.approx(2 / 720)
    with_size = table.loc[("sufficiency, a", "energy")]
    assert with_size["rho"] == pytest.approx(spearmanr(curves["only"], curves["size"]).statistic)
    assert len(table) == 3 and (table["p_holm"] >= table["p"]).all()


def test_the_size_of_the_change_is_divided_over_layers_and_parts(pocket_checkpoint: Path) -> None:
    layout = layout_of(pocket_checkpoint)
    own = [parameter for parameter in layout if parameter.region == "llm"]
    rows = [
        {"phase": "full", "seed": seed, "region": "llm", "layer": each.index, "tensor": each.name,
         "energy": float((each.index or 0) + 1 + seed)}
        for each in own
        for seed in (0, 1)
    ]  # fmt: skip
    found = energy_shares(pd.DataFrame(rows), layout)
    assert found is not None
    assert found[LAYER].sum() == pytest.approx(1)
    assert np.allclose(found["attn"] + found["mlp"], found[LAYER])
    squares = np.array([[(layer + 1 + seed) ** 2 for layer in range(NUM_LAYERS)] for seed in (0, 1)], float)
    assert np.allclose(found[LAYER], (squares / squares.sum(1, keepdims=True)).mean(0))


@pytest.mark.parametrize(
    ("arm", "place"),
    [
        ("only-llm3", Place(direction=SUFFICIENCY, part=LAYER, first=3, last=3)),
        ("freeze-llm0-2.mlp", Place(direction=NECESSITY, part="mlp", first=0, last=2)),
        ("freeze-mid", None),
        ("only-llm", None),
        ("full", None),
    ],
)
def test_a_place_is_read_from_an_arms_name(arm: str, place: Place | None) -> None:
    assert read_place(arm) == place
