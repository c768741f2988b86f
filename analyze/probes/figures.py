"""Figures of probes over the decoder's depth, with the same blocks, axis and files for all probes."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.display.axes import RESOLUTION_DPI, plain
from models.blocks import BLOCKS
from tracking.product import partial_file

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LABEL_SIZE = 9.5
"""Font size of titles and axes, in points."""
LEGEND: dict[str, Any] = {"frameon": False, "fontsize": 8.5}
LETTER_INCHES, HANDLE_INCHES = 0.066, 0.55
"""Widths in a legend: of an average letter, and of a line sample with its spacing."""


def blocks_of(table: "pd.DataFrame") -> dict[str, list[int]]:
    """Returns the layers of early, mid and late in a table with the columns `layer` and `block`, where it has any."""
    places = table[["layer", "block"]].drop_duplicates()
    found = {block: sorted(map(int, places["layer"][places["block"] == block])) for block in BLOCKS}
    return {block: layers for block, layers in found.items() if layers}


def mark_depth(
    axes: "Axes", blocks: Mapping[str, Sequence[int]], *, num_ticks: int = 14, end: str | None = None
) -> None:
    """Styles an axis of decoder layers, with block names above and dotted lines between blocks.

    Args:
        axes: axes whose x is the decoder layer; its margin keeps the data clear of the names.
        blocks: the layers of each block.
        num_ticks: approximate number of tick labels.
        end: label of the position after the last layer, if any.
    """
    num_layers = max(max(layers) for layers in blocks.values()) + 1
    axes.margins(y=0.13)
    for block, layers in blocks.items():
        axes.text(
            (layers[0] + layers[-1]) / 2, 0.985, block, ha="center", va="top", fontsize=8, color="#777777",
            transform=axes.get_xaxis_transform(),
        )  # fmt: skip
    mark_boundaries(axes, blocks)
    step = max(1, round(num_layers / num_ticks))
    shown = list(range(0, num_layers, step))
    labels = list(map(str, shown))
    if end is not None:
        shown = [layer for layer in shown if layer <= num_layers - step] + [num_layers]
        labels = [*map(str, shown[:-1]), end]
        axes.axvline(num_layers - 0.5, color="#aaaaaa", linewidth=0.9, linestyle=":")
    axes.set_xticks(shown, labels)
    plain(axes)
    axes.tick_params(labelsize=8)


def mark_boundaries(axes: "Axes", blocks: Mapping[str, Sequence[int]], colour: str = "#aaaaaa") -> None:
    """Draws dotted lines between the blocks."""
    for before, after in pairwise(blocks.values()):
        axes.axvline((before[-1] + after[0]) / 2, color=colour, linewidth=0.9, linestyle=":")


def common_legend(figure: "Figure", panels: Sequence["Axes"]) -> None:
    """Draws one legend for all panels above them."""
    found: dict[str, Artist] = {}
    for axes in panels:
        handles, labels = axes.get_legend_handles_labels()
        found |= dict(zip(map(str, labels), handles, strict=True))
    widths = [len(label) * LETTER_INCHES + HANDLE_INCHES for label in found]
    room = figure.get_figwidth()
    num_columns = len(found) if sum(widths) < room else max(1, int(room // max(widths)))
    figure.legend(found.values(), found.keys(), loc="outside upper center", ncols=num_columns, **LEGEND)


def save_figures(directory: Path, draws: Mapping[str, Callable[[], "Figure | None"]]) -> None:
    """Draws figures and writes each as `NAME.png`, without a display; None for a figure without data."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    for name, draw in draws.items():
        figure = draw()
        if figure is None:
            continue
        with partial_file(directory / f"{name}.png") as partial:
            figure.savefig(partial, dpi=RESOLUTION_DPI, format="png", metadata={"Software": None})
        plt.close(figure)
