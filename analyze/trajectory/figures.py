"""What does a trajectory look like over steps and depth? Drawn from the tables alone."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from analyze.probes.figures import LABEL_SIZE, common_legend, mark_depth, save_figures
from models.blocks import BLOCKS, Partition

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAPS = {
    "reached": ("share of the final change reached", 1.0),
    "cosine_final": ("cosine to the final change", 1.0),
    "changed_frac": ("share of elements changed", None),
    "rank1_share": ("rank-1 share of the change", None),
}
"""Column of `layers.csv` -> title and upper end of the colours (None: the largest value)."""
CURVES = {
    "half_step": "step of half the final change",
    "r2": "linearity in steps, R²",
    "trajectory_rank1_share": "share along one direction",
}
"""Column of `lines.csv` -> title."""
COLOURS = ("#222222", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")
MOST_MAPPED = 6
"""Runs that get a row of maps."""
NUM_TICKS = 8


def labels(table: "pd.DataFrame") -> list[tuple[Any, Any]]:
    """Returns the name and seed of every run, in the tables' order."""
    own = table[["name", "seed"]].fillna("").drop_duplicates()
    return list(own.itertuples(index=False, name=None))


def rows_of(table: "pd.DataFrame", run: tuple[Any, Any]) -> "pd.DataFrame":
    """Returns the rows of one run."""
    own: pd.DataFrame = table[(table["name"] == run[0]) & (table["seed"].fillna("") == run[1])]
    return own


def run_words(run: tuple[Any, Any]) -> str:
    """Returns `full@0`, or `full` without a seed."""
    return f"{run[0]}@{run[1]}" if run[1] != "" else str(run[0])


def draw_maps(layers: "pd.DataFrame") -> "Figure | None":
    """Draws a row of maps per run: steps from left to right, decoder layers from bottom to top."""
    import matplotlib.pyplot as plt

    runs = labels(layers)[:MOST_MAPPED]
    if not runs:
        return None
    height = 0.7 + len(runs) * max(1.7, min(3.2, 0.14 * layers["layer"].nunique() + 0.9))
    figure, panels = plt.subplots(
        len(runs), len(MAPS), figsize=(3.3 * len(MAPS), height), squeeze=False, layout="constrained"
    )
    for row, run in enumerate(runs):
        own = rows_of(layers, run)
        for column, (name, (title, top)) in enumerate(MAPS.items()):
            axes = panels[row, column]
            grid = own.pivot(index="layer", columns="step", values=name).sort_index()
            largest = grid.max().max() if top is None else top
            image = axes.imshow(
                grid.to_numpy(float), origin="lower", aspect="auto", cmap="viridis", vmin=0,
                vmax=largest if largest > 0 else 1, interpolation="nearest",
            )  # fmt: skip
            figure.colorbar(image, ax=axes, pad=0.02).ax.tick_params(labelsize=7)
            every = max(1, -(-grid.shape[1] // NUM_TICKS))
            axes.set_xticks(range(0, grid.shape[1], every), [str(step) for step in grid.columns[::every]])
            every = max(1, -(-grid.shape[0] // NUM_TICKS))
            axes.set_yticks(range(0, grid.shape[0], every), [str(int(layer)) for layer in grid.index[::every]])
            axes.tick_params(labelsize=8)
            if not row:
                axes.set_title(title, fontsize=LABEL_SIZE)
        panels[row, 0].set_ylabel(f"{run_words(run)}\ndecoder layer", fontsize=LABEL_SIZE)
    figure.supxlabel("step", fontsize=LABEL_SIZE)
    return figure


def draw_depth(lines: "pd.DataFrame", partition: Partition) -> "Figure | None":
    """Draws when and how straight the layers moved, over depth, a line per run."""
    import matplotlib.pyplot as plt

    own = lines[lines["level"] == "layer"]
    if own[list(CURVES)].isna().all(axis=None):
        return None
    figure, panels = plt.subplots(1, len(CURVES), figsize=(3.9 * len(CURVES), 3.3), layout="constrained")
    for axes, (name, title) in zip(panels, CURVES.items(), strict=True):
        for number, run in enumerate(labels(own)):
            rows = rows_of(own, run).sort_values("layer")
            colour = COLOURS[number % len(COLOURS)]
            axes.plot(
                rows["layer"], rows[name], color=colour, marker="o", markersize=3.5, linewidth=1.2,
                label=run_words(run),
            )  # fmt: skip
        axes.set_title(title, fontsize=LABEL_SIZE)
        _mark(axes, partition)
    figure.supxlabel("decoder layer", fontsize=LABEL_SIZE)
    common_legend(figure, list(panels))
    return figure


def draw_blocks(blocks: "pd.DataFrame") -> "Figure | None":
    """Draws the norm of every block's and region's change over the steps, a panel per run."""
    import matplotlib.pyplot as plt

    runs = labels(blocks)[:MOST_MAPPED]
    if not runs:
        return None
    figure, panels = plt.subplots(
        1, len(runs), figsize=(max(11.7, 3.6 * len(runs)), 3.3), squeeze=False, sharey=True, layout="constrained"
    )
    names = [name for name in dict.fromkeys(blocks["block"]) if name != "all"]
    for axes, run in zip(panels[0], runs, strict=True):
        own = rows_of(blocks, run)
        for number, block in enumerate(names):
            rows = own[own["block"] == block].sort_values("step")
            if (rows["energy"] > 0).any():
                steps, energy = [0, *rows["step"]], [0.0, *rows["energy"]]
                axes.plot(steps, energy, color=COLOURS[number % len(COLOURS)], label=block, linewidth=1.3)
        axes.set_title(run_words(run), fontsize=LABEL_SIZE)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    panels[0, 0].set_ylabel("norm of the change", fontsize=LABEL_SIZE)
    figure.supxlabel("step", fontsize=LABEL_SIZE)
    common_legend(figure, list(panels[0]))
    return figure


def _mark(axes: "Axes", partition: Partition) -> None:
    axes.set_xlim(-0.7, partition.num_layers - 0.3)
    mark_depth(axes, {block: partition.layers(block) for block in BLOCKS}, num_ticks=12)


def draw_all(tables: "dict[str, pd.DataFrame]", partition: Partition, directory: Path) -> None:
    """Draws all figures as PNG, except those without data."""
    save_figures(
        directory,
        {
            "maps": lambda: draw_maps(tables["layers"]),
            "depth": lambda: draw_depth(tables["lines"], partition),
            "blocks": lambda: draw_blocks(tables["blocks"]),
        },
    )
