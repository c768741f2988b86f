"""What does a probe of the towers say when it ends? Each model at its best layer, beside baselines and encoders."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from eval.display.formatting import format_difference, format_share, probability
from eval.tower.features import PIXELS
from eval.tower.tables import RANDOM
from tracking.tables import format_first, read_table

if TYPE_CHECKING:
    import pandas as pd


def summary(output_dir: Path, encoders: Sequence[str] = ()) -> list[str]:
    """Returns the lines about `tower.csv` and `differences.csv`.

    A model's best layer is the one of the best cross-validated accuracy on the training pictures, so that its accuracy
    on the test pictures is not chosen by itself. Random towers stand with their mean at that layer.
    """
    scores, differences = read_table(output_dir / "tower.csv"), read_table(output_dir / "differences.csv")
    rows = [["probe", "model", "best layer", "accuracy", "random", "pixels", "less random, in points", "p, corrected"]]
    for probe, own in scores.groupby("probe", sort=False):
        pixels = own[own["model"] == PIXELS].iloc[0]
        for model, layers in own[~own["model"].isin([RANDOM, PIXELS, *encoders])].groupby("model", sort=False):
            best = _best(layers)
            random = own[(own["model"] == RANDOM) & (own["layer"] == best["layer"])]["accuracy"].mean()
            against = differences[
                (differences["probe"] == probe)
                & (differences["model"] == model)
                & (differences["layer"] == best["layer"])
                & (differences["against"] == RANDOM)
            ].iloc[0]
            rows.append(
                [
                    str(probe),
                    str(model),
                    str(best["layer"]),
                    format_share(best["accuracy"], best["low"], best["high"]),
                    format_share(random),
                    format_share(pixels["accuracy"]),
                    format_difference(against["difference"], against["low"], against["high"]),
                    probability(against["p_holm"]),
                ]
            )
    first = scores.iloc[0]
    lines = format_first(rows, right=(4, 5), table="tower.csv")
    if encoders:
        lines += [
            "",
            *format_first(_beside_encoders(scores, differences, encoders), right=(6, 7), table="differences.csv"),
        ]
        lines.append("best layer: the one of the best cross-validated accuracy on the training pictures")
    lines.append(
        f"test pictures: {first['n_test']:.0f}, training pictures: {first['n_train']:.0f}; always answering the "
        f"largest class gives {format_share(first['largest_class'])}"
    )
    if num_unconverged := int((~scores["converged"]).sum()):
        lines.append(f"{num_unconverged} linear fits did not converge: `converged` in tower.csv")
    return lines


def _best(layers: "pd.DataFrame") -> "pd.Series":
    return layers.sort_values("cv_accuracy", ascending=False, kind="stable").iloc[0]


def _beside_encoders(scores: "pd.DataFrame", differences: "pd.DataFrame", encoders: Sequence[str]) -> list[list[str]]:
    """Returns a row per probe, encoder and model, each at its best layer."""
    rows = [["probe", "encoder", "best layer", "accuracy", "model", "best layer", "model less encoder, in points",
             "p, corrected"]]  # fmt: skip
    for probe, own in scores.groupby("probe", sort=False):
        models = [name for name in dict.fromkeys(own["model"]) if name not in (RANDOM, PIXELS, *encoders)]
        for encoder in encoders:
            its = _best(own[own["model"] == encoder])
            for model in models:
                best = _best(own[own["model"] == model])
                row = differences[
                    (differences["probe"] == probe)
                    & (differences["model"] == model)
                    & (differences["layer"] == best["layer"])
                    & (differences["against"] == encoder)
                ].iloc[0]
                rows.append(
                    [
                        str(probe),
                        encoder,
                        str(its["layer"]),
                        format_share(its["accuracy"], its["low"], its["high"]),
                        model,
                        str(best["layer"]),
                        format_difference(row["difference"], row["low"], row["high"]),
                        probability(row["p_holm"]),
                    ]
                )
    return rows
