"""What does a probe of the towers say when it ends? Each model at its best layer, beside both baselines."""

from pathlib import Path

from eval.display.formatting import format_difference, format_share, probability
from eval.tower.features import PIXELS
from eval.tower.tables import RANDOM
from tracking.tables import format_first, read_table


def summary(output_dir: Path) -> list[str]:
    """Returns the lines about `tower.csv` and `differences.csv`.

    A model's best layer is the one of the best cross-validated accuracy on the training pictures, so that its accuracy
    on the test pictures is not chosen by itself. Random towers stand with their mean at that layer.
    """
    scores, differences = read_table(output_dir / "tower.csv"), read_table(output_dir / "differences.csv")
    rows = [["probe", "model", "best layer", "accuracy", "random", "pixels", "less random, in points", "p, corrected"]]
    for probe, own in scores.groupby("probe", sort=False):
        pixels = own[own["model"] == PIXELS].iloc[0]
        for model, layers in own[~own["model"].isin([RANDOM, PIXELS])].groupby("model", sort=False):
            best = layers.sort_values("cv_accuracy", ascending=False, kind="stable").iloc[0]
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
    lines.append(
        f"test pictures: {first['n_test']:.0f}, training pictures: {first['n_train']:.0f}; always answering the "
        f"largest class gives {format_share(first['largest_class'])}"
    )
    if num_unconverged := int((~scores["converged"]).sum()):
        lines.append(f"{num_unconverged} linear fits did not converge: `converged` in tower.csv")
    return lines
