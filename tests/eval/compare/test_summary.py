"""The last lines of a comparison give every model's difference, and the ability rather than the accuracy."""

from pathlib import Path

import pandas as pd
import pytest

from eval.compare.command import COLUMNS
from eval.compare.summary import summary


@pytest.fixture
def output_dir(tmp_path: Path) -> Path:
    """A comparison of two models with sft under two metrics, pooled and of one seed."""
    rows = []
    for metric in ("accuracy", "ability"):
        for ability, difference in (("vision", 0.012), ("reasoning", -0.282)):
            for arm in ("full", "freeze-mid"):
                for seed in ("pooled", "0"):
                    row = {"task": "test", "ability": ability, "metric": metric, "arm": arm, "seed": seed}
                    row |= {"against": "sft", "difference": difference, "low": difference - 0.05, "n": 100}
                    row |= {"high": difference + 0.05, "p_holm": 0.003 if difference < -0.1 else 1.0}
                    if metric == "ability" and ability == "vision" and arm == "freeze-mid":
                        row |= {"gain_kept": 1.05, "gain_kept_low": 0.95, "gain_kept_high": 1.18}
                    if metric == "accuracy":
                        row["difference"] = 0.5
                    rows.append(row)
    pd.DataFrame(rows).reindex(columns=list(COLUMNS)).to_csv(tmp_path / "comparison.csv", index=False)
    return tmp_path


def test_a_row_a_model_and_a_column_an_ability(output_dir: Path) -> None:
    assert summary(output_dir, baseline="sft") == [
        "ability, less sft, in points with 95 % intervals; *: p < 0.05, Holm-corrected",
        "model       vision             reasoning",
        "full        +1.2 [−3.8, +6.2]  −28.2 [−33.2, −23.2] *",
        "freeze-mid  +1.2 [−3.8, +6.2]  −28.2 [−33.2, −23.2] *",
        "gain kept, test vision: freeze-mid 105.0 % [95.0, 118.0]",
    ]


def test_without_conditions_the_accuracy_is_given(output_dir: Path) -> None:
    table = pd.read_csv(output_dir / "comparison.csv")
    table[table["metric"] == "accuracy"].to_csv(output_dir / "comparison.csv", index=False)
    lines = summary(output_dir, baseline="sft")
    assert lines[0].startswith("accuracy, less sft") and lines[2].startswith("full        +50.0 ")
