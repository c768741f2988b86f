"""What does the table of `analyze.skip` look like? The drop over depth, drawn from the table alone."""

from pathlib import Path
from typing import TYPE_CHECKING

from analyze.figures import RESOLUTION_DPI, plain
from models.blocks import BLOCKS, Partition
from tracking.product import partial_file

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
            fontsize=10, fontweight="bold", loc="left",
        )  # fmt: skip
        axes.set_ylabel("accuracy lost, points")
    panels[-1, 0].set_xlabel("decoder layer left out")
    step = max(1, round(partition.num_layers / 30))
    panels[-1, 0].set_xticks(range(0, partition.num_layers, step))
    handles = {
        label: handle for axes in panels[:, 0] for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False, fontsize=8.5)
    return figure


def _draw_panel(axes: "Axes", table: "pd.DataFrame", partition: Partition) -> None:
    axes.axhline(0, color="#999999", linewidth=0.8, zorder=0)
    for block in BLOCKS:
        layers = partition.layers(block)
        if block != BLOCKS[0]:
            axes.axvline(layers[0] - 0.5, color="#aaaaaa", linewidth=0.8, linestyle=":")
        axes.text((layers[0] + layers[-1]) / 2, 0.985, block, ha="center", va="top", fontsize=8, color="#777777",
                  transform=axes.get_xaxis_transform())  # fmt: skip
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
    axes.margins(y=0.12)
    plain(axes)


def draw_all(rates: "pd.DataFrame", partition: Partition, directory: Path) -> None:
    """Draws the figure as PNG, where anything but the control was asked for."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    if set(rates["kind"]).isdisjoint((*STYLES, "blocks")):
        return
    figure = draw_drop(rates, partition)
    with partial_file(directory / "drop.png") as partial:
        figure.savefig(partial, dpi=RESOLUTION_DPI, format="png", metadata={"Software": None})
    plt.close(figure)
