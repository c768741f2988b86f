"""What does the table of `analyze.skip` look like? The drop over depth, drawn from the table alone."""

from pathlib import Path
from typing import TYPE_CHECKING

from analyze.probes.figures import LABEL_SIZE, common_legend, mark_depth, save_figures
from models.blocks import BLOCKS, Partition

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLES = {
    "layers": ("#222222", "o", "whole layer"),
    "attn": ("#0072B2", "s", "attention alone"),
    "mlp": ("#D55E00", "^", "MLP alone"),
}
"""Kind of configuration -> colour, marker and label."""
BLOCK_COLOUR = "#009E73"


def draw_drop(rates: "pd.DataFrame", partition: Partition) -> "Figure":
    """Draws the drop in accuracy, in points with 95 % intervals, a panel per task and ability."""
    import matplotlib.pyplot as plt

    groups = list(rates.groupby(["task", "ability"], sort=False))
    figure, panels = plt.subplots(
        len(groups), 1, figsize=(9.2, 0.7 + 2.9 * len(groups)), sharex=True, squeeze=False, layout="constrained"
    )
    for axes, ((task, ability), table) in zip(panels[:, 0], groups, strict=True):
        _draw_panel(axes, table, partition)
        whole = table[table["kind"] == "none"].iloc[0]
        axes.set_title(
            f"{task}: {ability} (nothing left out: {100 * whole['accuracy']:.1f} % of {whole['n']})",
            fontsize=LABEL_SIZE,
        )  # fmt: skip
    figure.supylabel("accuracy lost, points", fontsize=LABEL_SIZE)
    figure.supxlabel("decoder layer left out", fontsize=LABEL_SIZE)
    common_legend(figure, list(panels[:, 0]))
    return figure


def _draw_panel(axes: "Axes", table: "pd.DataFrame", partition: Partition) -> None:
    axes.axhline(0, color="#999999", linewidth=0.8, zorder=0)
    for block in BLOCKS:
        layers = partition.layers(block)
        for _, row in table[(table["kind"] == "blocks") & (table["configuration"] == block)].iterrows():
            ends = (layers[0] - 0.45, layers[-1] + 0.45)
            axes.fill_between(ends, 100 * row["drop_low"], 100 * row["drop_high"], color=BLOCK_COLOUR, alpha=0.13,
                              linewidth=0)  # fmt: skip
            axes.plot(ends, [100 * row["drop"]] * 2, color=BLOCK_COLOUR, linewidth=2, label="whole block")
    kinds = [kind for kind in STYLES if kind in set(table["kind"])]
    for order, kind in enumerate(kinds):
        colour, marker, label = STYLES[kind]
        own = table[table["kind"] == kind].sort_values("layer")
        places = own["layer"].astype(float) + (order - (len(kinds) - 1) / 2) * 0.16
        drop = 100 * own["drop"]
        axes.errorbar(
            places, drop, yerr=[drop - 100 * own["drop_low"], 100 * own["drop_high"] - drop], color=colour,
            marker=marker, markersize=4, linewidth=1.3, elinewidth=0.8, label=label,
        )  # fmt: skip
    axes.set_xlim(-0.7, partition.num_layers - 0.3)
    mark_depth(axes, {block: partition.layers(block) for block in BLOCKS}, num_ticks=30)


def draw_all(rates: "pd.DataFrame", partition: Partition, directory: Path) -> None:
    """Draws the figure as PNG, where anything but the control was asked for."""
    if set(rates["kind"]).isdisjoint((*STYLES, "blocks")):
        return
    save_figures(directory, {"drop": lambda: draw_drop(rates, partition)})
