"""Where in a tower are classes separable? Plots accuracy over depth, with both baselines, from `tower.csv`."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from eval.tower.features import PIXELS
from eval.tower.groups import MODALITY
from eval.tower.tables import RANDOM
from tracking.product import partial_file

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's colour-blind-safe palette."""
BASELINE_COLOUR = "#777777"
TITLES = {"linear": "linear probe", "knn": "nearest neighbours"}
MAX_TICKS = 10
RESOLUTION_DPI = 160


def draw_all(table: "pd.DataFrame", directory: Path, encoders: Sequence[str] = ()) -> None:
    """Draws `tower.png`, or a figure for each modality: `tower-MODALITY.png`."""
    if MODALITY not in table:
        draw(table, directory / "tower.png", encoders)
        return
    for name, own in table.groupby(MODALITY, sort=False):
        draw(own, directory / f"tower-{file_name(str(name))}.png", encoders, title=str(name))


def file_name(modality: str) -> str:
    """Returns a modality's name in lower case, with hyphens for all but letters and digits."""
    return re.sub(r"[^a-z0-9]+", "-", modality.lower()).strip("-")


def draw(table: "pd.DataFrame", path: Path, encoders: Sequence[str] = (), title: str = "") -> None:
    """Draws one panel per probe: a line per model with its 95 % interval; the baselines and encoders as levels.

    The level of an encoder is that of its layer of the best cross-validated accuracy on the training pictures.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    tuned = "cv_auc" if "cv_auc" in table and table["cv_auc"].notna().all() else "cv_accuracy"
    probes = list(dict.fromkeys(table["probe"]))
    models = [name for name in dict.fromkeys(table["model"]) if name not in (RANDOM, PIXELS, *encoders)]
    layers = list(dict.fromkeys(table["layer"][table["model"] == RANDOM]))
    figure, panels = plt.subplots(
        1, len(probes), figsize=(9.2, 3.7), sharey=True, squeeze=False, layout="constrained"
    )  # fmt: skip
    for axes, kind in zip(panels[0], probes, strict=True):
        shown = table[table["probe"] == kind]
        _level(axes, shown[shown["model"] == PIXELS])
        axes.axhline(100 * shown["largest_class"].iloc[0], color="#bbbbbb", linewidth=1, linestyle=":",
                     label="largest class")  # fmt: skip
        for place, name in enumerate(encoders):
            own = shown[shown["model"] == name].sort_values(tuned, ascending=False, kind="stable").iloc[0]
            axes.axhline(100 * own["accuracy"], color=COLOURS[-1 - place % len(COLOURS)], linewidth=1.4,
                         linestyle="-.", label=f"{name}, best layer")  # fmt: skip
        for seed, rows in shown[shown["model"] == RANDOM].groupby("seed"):
            label = None if seed else "random weights, a line a seed"
            _curve(axes, rows, layers, BASELINE_COLOUR, label=label, width=0.9)
        for place, name in enumerate(models):
            # Offset within a layer, so that equal models do not hide each other
            shift = 0.08 * (place - (len(models) - 1) / 2)
            colour = COLOURS[place % len(COLOURS)]
            _curve(axes, shown[shown["model"] == name], layers, colour, label=name, width=1.6, shift=shift)
        _mark_layers(axes, layers)
        axes.set_title(f"{title}, {TITLES[kind]}" if title else TITLES[kind], fontsize=10.5, fontweight="bold")
    n = int(table["n_test"].iloc[0])
    panels[0, 0].set_ylabel(f"test pictures right, % (n = {n:,})", fontsize=9.5)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(len(labels), 6), frameon=False, fontsize=8.5)
    with partial_file(path) as partial:
        figure.savefig(partial, dpi=RESOLUTION_DPI, format="png", metadata={"Software": None})
    plt.close(figure)


def _level(axes: "Axes", row: "pd.DataFrame") -> None:
    (accuracy, low, high) = (float(row[name].iloc[0]) * 100 for name in ("accuracy", "low", "high"))
    axes.axhspan(low, high, color="#B8860B", alpha=0.13, linewidth=0)
    axes.axhline(accuracy, color="#B8860B", linewidth=1.4, linestyle="--", label="raw pixels")


def _curve(
    axes: "Axes",
    rows: "pd.DataFrame",
    layers: Sequence[str],
    colour: str,
    *,
    label: str | None,
    width: float,
    shift: float = 0.0,
) -> None:
    """Draws the blocks as a line, and the tower's outputs as points, since those features are in another space."""
    ordered = rows.set_index("layer").loc[list(layers)]
    middle, low, high = (100 * ordered[name].to_numpy() for name in ("accuracy", "low", "high"))
    places = [place + shift for place in range(len(layers))]
    num_blocks = sum(layer.startswith("block.") for layer in layers)
    axes.vlines(places, low, high, color=colour, linewidth=0.7 * width, alpha=0.75)
    axes.plot(places[:num_blocks], middle[:num_blocks], color=colour, linewidth=width, marker="o",
              markersize=2.5 * width, label=label)  # fmt: skip
    axes.plot(places[num_blocks:], middle[num_blocks:], color=colour, linestyle="none", marker="D",
              markersize=3 * width)  # fmt: skip


def _mark_layers(axes: "Axes", layers: Sequence[str]) -> None:
    """Numbers the blocks and names the mergers."""
    blocks = [layer for layer in layers if layer.startswith("block.")]
    step = -(-len(blocks) // MAX_TICKS)
    ticks = {place: str(place) for place in range(0, len(blocks), step)}
    ticks |= {place: layers[place].replace("deepstack.", "ds.") for place in range(len(blocks), len(layers))}
    axes.set_xticks(list(ticks), list(ticks.values()), rotation=0 if len(layers) - len(blocks) < 3 else 60)
    axes.set_xlabel("vision block, then what leaves the tower", fontsize=9.5)
    axes.axvline(len(blocks) - 0.5, color="#aaaaaa", linewidth=0.9, linestyle=":")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(labelsize=8.5)
    axes.grid(axis="y", color="#eeeeee", zorder=-1)
    axes.set_axisbelow(True)
