"""What does a probe of the towers say when it ends? Each model at its best layer, beside baselines and encoders."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from eval.display.formatting import format_difference, format_share, probability
from eval.statistics.intervals import CONFIDENCE
from eval.tower.features import PIXELS
from eval.tower.groups import MODALITY
from eval.tower.probes import ACCURACY, AUC
from eval.tower.tables import RANDOM
from tracking.tables import format_first, read_table

if TYPE_CHECKING:
    import pandas as pd

LEVEL = 1 - CONFIDENCE


def summary(output_dir: Path, encoders: Sequence[str] = ()) -> list[str]:
    """Returns the lines about `tower.csv` and `differences.csv`.

    A model's best layer is the one of the best cross-validated accuracy on the training pictures, so that its accuracy
    on the test pictures is not chosen by itself. Random towers stand with their mean at that layer.
    """
    scores, differences = read_table(output_dir / "tower.csv"), read_table(output_dir / "differences.csv")
    if MODALITY in scores:
        return [
            line
            for name, own in scores.groupby(MODALITY, sort=False)
            for line in (f"{name}:", *_lines(own, differences[differences[MODALITY] == name], encoders), "")
        ]
    return _lines(scores, differences, encoders)


def _lines(scores: "pd.DataFrame", differences: "pd.DataFrame", encoders: Sequence[str]) -> list[str]:
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
        lines.append(f"best layer: the one of the best cross-validated {_measure(scores)} on the training pictures")
    if AUC in scores:
        for name, own in scores[~scores["model"].isin([RANDOM])].groupby("model", sort=False):
            best = _best(own)
            lines.append(
                f"macro AUC of {name} at {best['layer']} ({best['probe']}): {best['auc']:.3f} "
                f"[{best['auc_low']:.3f}, {best['auc_high']:.3f}]"
            )
    lines.append(
        f"test pictures: {first['n_test']:.0f}, training pictures: {first['n_train']:.0f}; always answering the "
        f"largest class gives {format_share(first['largest_class'])}"
    )
    if num_unconverged := int((~scores["converged"]).sum()):
        lines.append(f"{num_unconverged} linear fits did not converge: `converged` in tower.csv")
    return lines


def _best(layers: "pd.DataFrame") -> "pd.Series":
    return layers.sort_values(f"cv_{_measure(layers)}", ascending=False, kind="stable").iloc[0]


def _measure(scores: "pd.DataFrame") -> str:
    """Returns what chooses a layer: the AUC of findings, otherwise the accuracy."""
    return AUC if f"cv_{AUC}" in scores and scores[f"cv_{AUC}"].notna().all() else ACCURACY


def class_lines(output_dir: Path) -> list[str]:
    """Returns the classes in which linear probes of a model differ from an earlier model's or an encoder's.

    Each class is shown once for each pair of models, at the layer of the largest difference that is significant after
    Holm's correction.
    """
    table = read_table(output_dir / "classes.csv")
    families = table["family"].isin([f"linear, {kind}" for kind in ("models", "encoders")])
    found = table[families & (table["p_holm"] < LEVEL)]
    if found.empty:
        return []
    grouping = [*([MODALITY] if MODALITY in found else []), "model", "against", "class"]
    rows = [[*grouping[:-3], "model", "against", "class", "layer", "layers", "metric", "difference, in points",
             "p, corrected"]]  # fmt: skip
    for names, own in found.groupby(grouping, sort=False):
        row = own.iloc[int(own["difference"].abs().to_numpy().argmax())]
        rows.append(
            [
                *map(str, names), str(row["layer"]), str(len(own)), str(row["metric"]),
                format_difference(row["difference"], row["low"], row["high"]), probability(row["p_holm"]),
            ]
        )  # fmt: skip
    title = "classes that differ, linear probe; layers: how many of the model's differ"
    return [title, *format_first(rows, right=(len(grouping) + 1,), table="classes.csv")]


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
