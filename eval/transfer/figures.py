"""Figures of transfer: one matrix per method, a row per modality trained on, a column per modality evaluated on."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data_builders.prompt_sets.fields import plain_name
from eval.compare.scope import LEVEL
from eval.display.axes import RESOLUTION_DPI
from eval.display.formatting import interval, points
from tracking.product import partial_file

if TYPE_CHECKING:
    import pandas as pd

CELL_INCHES = (1.45, 0.75)
SMALLEST_SCALE = 5.0
"""Points at which a colour is full, at least."""
DARK = 0.65
"""Share of the scale beyond which numbers are white."""


def draw(transfer: "pd.DataFrame", directory: Path) -> None:
    """Draws `transfer-METHOD.png`; numbers are points with 95 % intervals, bold where significant after correction."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.patches import Rectangle

    for method, own in transfer.groupby("method", sort=False):
        columns, rows = list(own["evaluated_on"].unique()), list(own["trained_on"].unique())
        size = CELL_INCHES[0] * len(columns) + 2.2, CELL_INCHES[1] * len(rows) + 1.2
        figure, axes = plt.subplots(figsize=size, layout="constrained")
        values = np.full((len(rows), len(columns)), np.nan)
        for _, cell in own.iterrows():
            values[rows.index(cell["trained_on"]), columns.index(cell["evaluated_on"])] = 100 * cell["difference"]
        scale = max(SMALLEST_SCALE, float(np.nanmax(np.abs(values))))
        axes.imshow(values, cmap="RdBu", vmin=-scale, vmax=scale, aspect="auto", alpha=0.9)
        for _, cell in own.iterrows():
            row, column = rows.index(cell["trained_on"]), columns.index(cell["evaluated_on"])
            colour = "white" if abs(100 * cell["difference"]) > DARK * scale else "black"
            weight = "bold" if cell["p_holm"] < LEVEL else "normal"
            axes.text(column, row - 0.12, points(cell["difference"]), ha="center", va="center", color=colour,
                      fontweight=weight, fontsize=10.5)  # fmt: skip
            axes.text(column, row + 0.24, interval(cell["low"], cell["high"]), ha="center", va="center",
                      color=colour, fontsize=7.5)  # fmt: skip
            if cell["trained_on"] == cell["evaluated_on"]:
                axes.add_patch(Rectangle((column - 0.49, row - 0.48), 0.98, 0.96, fill=False, linewidth=1.8))
        axes.set_xticks(range(len(columns)), columns)
        axes.set_yticks(range(len(rows)), rows)
        axes.xaxis.tick_top()
        axes.tick_params(length=0, labelsize=9)
        axes.set_ylabel(f"{method} trained on", fontsize=9.5)
        axes.set_title(f"evaluated on (less {own.iloc[0]['against']}, points)", fontsize=9.5)
        for side in axes.spines.values():
            side.set_visible(False)
        with partial_file(directory / f"transfer-{plain_name(str(method))}.png") as partial:
            figure.savefig(partial, dpi=RESOLUTION_DPI, format="png", metadata={"Software": None})
        plt.close(figure)
