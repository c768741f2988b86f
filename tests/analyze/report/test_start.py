"""Is a start that is weaker than base recognised, and are base, start and RL drawn with all their seeds?"""

from typing import Any

import pandas as pd
import pytest

from analyze.report.start import draw_levels, weaker_start

BASE = {
    "arm": "base", "against": "sft", "ability": "vision", "label": "vision", "metric": "accuracy", "n": 500,
    "difference": 0.1, "low": 0.05, "high": 0.15, "p_holm": 0.01, "num_tests": 9, "scope": "checkpoints",
    "num_seeds": 1, "num_seeds_against": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    "change", [{"low": -0.01}, {"difference": -0.1, "low": -0.15, "high": -0.05}, {"arm": "full"}, {"n": 0}]
)
def test_a_start_is_weaker_only_where_the_interval_of_base_lies_above_it(change: dict[str, Any]) -> None:
    assert weaker_start(pd.DataFrame([BASE]), "sft", "full").startswith(
        "The start is weaker than base: sft − base in this run is −10"
    )
    assert weaker_start(pd.DataFrame([{**BASE, **change}]), "sft", "full") == ""


def test_rl_is_compared_with_base_where_the_table_has_it() -> None:
    after = {**BASE, "against": "full", "difference": 0.02, "low": -0.03, "high": 0.07, "scope": "training"}
    after["num_seeds_against"] = 4
    said = weaker_start(pd.DataFrame([BASE, after]), "sft", "full")
    assert (
        "vision (n = 500, significant), full − base over 4 training seeds −2.0 points [−7.0, +3.0]. What full" in said
    )


def test_levels_have_a_mark_a_seed_and_the_paper_order_of_abilities() -> None:
    rows = [
        {
            "model": model,
            "seed": seed,
            "task": "test",
            "ability": ability,
            "n": 500,
            "accuracy": 0.5,
            "low": 0.4,
            "high": 0.6,
        }
        for model, seeds in (("sft", [""]), ("full", [0, 1]), ("freeze-mid", [0]))
        for seed in seeds
        for ability in ("reasoning", "vision")
    ]
    figure = draw_levels(pd.DataFrame(rows), ["base", "sft", "full"])
    assert figure is not None and figure.drawing.count("<circle") == 2 * 3
    assert figure.drawing.index(">vision<") < figure.drawing.index(">reasoning<")
    assert "Accuracy of sft and full" in figure.caption and "freeze-mid" not in figure.drawing
    assert draw_levels(pd.DataFrame(rows), ["base"]) is None
