"""The last lines of a probe of towers: the layer is chosen by the training pictures alone."""

from pathlib import Path

import pandas as pd

from eval.tower.summary import summary


def test_the_best_layer_is_chosen_on_training_pictures_and_stands_beside_the_baselines(tmp_path: Path) -> None:
    rows = []
    for model, layer, accuracy, tuned in (
        ("pixels", "pixels", 0.4, 0.4), ("random", "block.0", 0.5, 0.9), ("random", "block.1", 0.6, 0.9),
        ("random", "block.1", 0.7, 0.9), ("sft", "block.0", 0.95, 0.7), ("sft", "block.1", 0.8, 0.8),
    ):  # fmt: skip
        row = {"model": model, "layer": layer, "probe": "linear", "accuracy": accuracy, "low": accuracy - 0.1}
        row |= {"high": accuracy + 0.04, "cv_accuracy": tuned, "n_test": 60, "n_train": 140, "largest_class": 0.35}
        rows.append(row | {"converged": layer != "block.0"})
    pd.DataFrame(rows).to_csv(tmp_path / "tower.csv", index=False)
    differences = [
        {
            "probe": "linear", "layer": layer, "model": "sft", "against": against, "difference": 0.15, "low": 0.05,
            "high": 0.25, "p_holm": 0.02,
        }
        for layer in ("block.0", "block.1")
        for against in ("random", "pixels")
    ]  # fmt: skip
    pd.DataFrame(differences).to_csv(tmp_path / "differences.csv", index=False)
    _, row, sizes, unconverged = summary(tmp_path)
    assert " ".join(row.split()) == ("linear sft block.1 80.0 % [70.0, 84.0] 65.0 % 40.0 % +15.0 [+5.0, +25.0] 0.020")
    assert "test pictures: 60, training pictures: 140" in sizes and "35.0 %" in sizes
    assert unconverged.startswith("2 linear fits did not converge")
