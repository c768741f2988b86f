"""The last lines of a comparison give every model's difference, in accuracy and by the paper's definition."""

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
                    row |= {"high": difference + 0.05, "p": 0.001 if difference < -0.1 else 0.6}
                    row |= {"p_holm": 0.003 if difference < -0.1 else 1.0, "scope": "training", "num_seeds": 4}
                    row |= {"num_seeds_against": 1, "family": f"{metric}, {seed}"}
                    if metric == "ability" and ability == "vision" and arm == "freeze-mid":
                        row |= {"gain_kept": 1.05, "gain_kept_low": 0.95, "gain_kept_high": 1.18}
                    if metric == "accuracy":
                        row["difference"] = 0.5
                    rows.append(row)
    pd.DataFrame(rows).reindex(columns=list(COLUMNS)).to_csv(tmp_path / "comparison.csv", index=False)
    return tmp_path


def test_accuracy_and_ability_are_both_given_where_they_differ(output_dir: Path) -> None:
    assert summary(output_dir, baseline="sft") == [
        "accuracy less sft, in points, with 95 % intervals over new prompts and new training seeds",
        "*: significant, p < 0.05 after Holm's correction for 4 tests",
        "model       about              vision              reasoning",
        "full        training, 4 seeds  +50.0 [−3.8, +6.2]  +50.0 [−33.2, −23.2] *",
        "freeze-mid  training, 4 seeds  +50.0 [−3.8, +6.2]  +50.0 [−33.2, −23.2] *",
        "ability by the paper's definition less sft, in points, with 95 % intervals over new prompts and new training "
        "seeds",
        "*: significant, p < 0.05 after Holm's correction for 4 tests",
        "model       about              vision             reasoning",
        "full        training, 4 seeds  +1.2 [−3.8, +6.2]  −28.2 [−33.2, −23.2] *",
        "freeze-mid  training, 4 seeds  +1.2 [−3.8, +6.2]  −28.2 [−33.2, −23.2] *",
        "gain kept, test vision: freeze-mid 105.0 % [95.0, 118.0]",
    ]


def test_abilities_with_the_same_numbers_are_given_once(output_dir: Path) -> None:
    table = pd.read_csv(output_dir / "comparison.csv")
    table.loc[table["metric"] == "accuracy", "difference"] = list(table[table["metric"] == "ability"]["difference"])
    table.to_csv(output_dir / "comparison.csv", index=False)
    assert sum("less sft" in line for line in summary(output_dir, baseline="sft")) == 1


def test_models_of_one_run_are_about_checkpoints(output_dir: Path) -> None:
    table = pd.read_csv(output_dir / "comparison.csv").assign(scope="checkpoints", num_seeds=1)
    table.to_csv(output_dir / "comparison.csv", index=False)
    lines = summary(output_dir, baseline="sft")
    assert lines[0].endswith("over new prompts only") and lines[3].startswith("full        checkpoints  +50.0 ")
