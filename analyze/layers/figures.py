"""What does a layer sweep look like? Shares of the gain over depth, drawn from the tables alone."""

from pathlib import Path
from typing import TYPE_CHECKING

from analyze.layers.plan import LAYER, NECESSITY, PARTS, SUFFICIENCY
from analyze.probes.figures import LABEL_SIZE, common_legend, mark_depth, save_figures
from models.blocks import BLOCKS, Partition

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLES = {
    LAYER: ("#222222", "o", "whole layer"),
    "attn": ("#0072B2", "s", "attention alone"),
    "mlp": ("#D55E00", "^", "MLP alone"),
}
"""Part -> colour, marker and label."""
TITLES = {SUFFICIENCY: "trains alone: share of the gain", NECESSITY: "is frozen: share of the gain that is lost"}
NO_GAIN = "no share: full has no significant gain"
LOWEST, HIGHEST = -0.75, 1.75
"""Shares that a panel shows at most; longer intervals are cut off."""


def draw_layers(layers: "pd.DataFrame", partition: Partition) -> "Figure":
    """Draws a row of panels per ability and a column per direction, and below the size of full's change."""
    import matplotlib.pyplot as plt

    groups = list(dict.fromkeys(zip(layers["task"], layers["ability"], strict=True)))
    directions = [each for each in TITLES if each in set(layers["direction"])]
    sized = layers["energy_share"].notna().any()
    num_rows = len(groups) + bool(sized)
    figure, panels = plt.subplots(
        num_rows, len(directions), figsize=(4.9 * len(directions) + 0.4, 0.9 + 2.5 * num_rows), sharex=True,
        squeeze=False, layout="constrained",
    )  # fmt: skip
    for row, (task, ability) in enumerate(groups):
        for column, direction in enumerate(directions):
            own = layers[(layers["task"] == task) & (layers["ability"] == ability) & (layers["direction"] == direction)]
            axes = panels[row, column]
            _draw_panel(axes, own, partition)
            axes.set_title(f"{ability}: the layer {TITLES[direction]}", fontsize=LABEL_SIZE)
        panels[row, 0].set_ylabel("percent", fontsize=LABEL_SIZE)
    if sized:
        for column, direction in enumerate(directions):
            own = layers[(layers["direction"] == direction) & (layers["ability"] == groups[0][1])]
            _draw_sizes(panels[-1, column], own[own["task"] == groups[0][0]], partition)
        panels[-1, 0].set_ylabel("percent", fontsize=LABEL_SIZE)
    figure.supxlabel("decoder layer", fontsize=LABEL_SIZE)
    common_legend(figure, list(panels[:-1].flat if sized else panels.flat))
    return figure


def _draw_panel(axes: "Axes", own: "pd.DataFrame", partition: Partition) -> None:
    for level in (0, 100):
        axes.axhline(level, color="#999999", linewidth=0.8, zorder=0)
    if own["share"].isna().all():
        axes.text(
            0.5, 0.5, NO_GAIN, transform=axes.transAxes, ha="center", va="center", color="#777777", style="italic"
        )
    parts = [part for part in PARTS if part in set(own["part"])]
    for order, part in enumerate(parts):
        colour, marker, label = STYLES[part]
        rows = own[own["part"] == part].sort_values("first")
        places = (rows["first"] + rows["last"]) / 2 + (order - (len(parts) - 1) / 2) * 0.18
        share = 100 * rows["share"]
        ends = [100 * rows[name].clip(LOWEST, HIGHEST) for name in ("share_low", "share_high")]
        axes.errorbar(
            places, share, yerr=[(share - ends[0]).clip(lower=0), (ends[1] - share).clip(lower=0)], color=colour,
            marker=marker, markersize=4, linewidth=1.2, elinewidth=0.8, label=label,
        )  # fmt: skip
    axes.set_xlim(-0.7, partition.num_layers - 0.3)
    mark_depth(axes, {block: partition.layers(block) for block in BLOCKS}, num_ticks=30)


def _draw_sizes(axes: "Axes", own: "pd.DataFrame", partition: Partition) -> None:
    parts = [part for part in PARTS if part in set(own["part"])]
    for order, part in enumerate(parts):
        rows = own[own["part"] == part].sort_values("first")
        places = (rows["first"] + rows["last"]) / 2 + (order - (len(parts) - 1) / 2) * 0.26
        axes.bar(places, 100 * rows["energy_share"], width=0.24, color=STYLES[part][0])
    axes.set_title("share of the squared energy of full's change", fontsize=LABEL_SIZE)
    mark_depth(axes, {block: partition.layers(block) for block in BLOCKS}, num_ticks=30)


def draw_all(layers: "pd.DataFrame", partition: Partition, directory: Path) -> None:
    """Draws the figure as PNG, unless no place has a share."""
    if layers["share"].notna().any():
        save_figures(directory, {"layers": lambda: draw_layers(layers, partition)})
