"""How do several models compare over the decoder's depth? A figure of the tables of several runs."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from analyze.probes.figures import LABEL_SIZE, blocks_of, common_legend, mark_depth
from eval.display.colours import model_colour

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

MOST_NARROW_LAYERS = 14
"""Of a decoder that fits into a third of the page's width."""
BAND_ALPHA = 0.15
"""Of the intervals of deeper decoders, where bars would hide each other."""
SHIFT = 0.09
"""Between the models' points of one layer, so that none hides another."""
MARKERS = ("o", "s", "^", "D", "v")
"""Of the models in turn, so that they differ on paper too."""


def draw_depth(panels: Mapping[str, Mapping[str, "pd.DataFrame"]], label: str, below: str) -> "Figure":
    """Draws a value over the decoder's layers: one panel per name, one line per model.

    Args:
        panels: title -> model -> table with the columns layer, block, value, low and high, in points.
        label: of the values.
        below: of the layers.
    """
    import matplotlib.pyplot as plt

    deepest = max(table["layer"].astype(int).max() for own in panels.values() for table in own.values())
    num_columns = min(3 if len(panels) == 3 and deepest < MOST_NARROW_LAYERS else 2, len(panels))
    num_rows = -(-len(panels) // num_columns)
    figure, grid = plt.subplots(
        num_rows, num_columns, figsize=(9.2, 0.9 + 2.7 * num_rows), squeeze=False, sharex=True, layout="constrained"
    )
    models = list(dict.fromkeys(model for own in panels.values() for model in own))
    arms = [model.partition(" (seed")[0] for model in models]
    used = []
    for axes, (title, own) in zip(grid.flat, panels.items(), strict=False):
        for model, table in own.items():
            number = models.index(model)
            colour, marker = model_colour(arms[number], arms), MARKERS[number % len(MARKERS)]
            if deepest < MOST_NARROW_LAYERS:
                places = table["layer"].astype(float) + (number - (len(models) - 1) / 2) * SHIFT
                errors = [table["value"] - table["low"], table["high"] - table["value"]]
                axes.errorbar(
                    places, table["value"], yerr=errors, color=colour, marker=marker, markersize=4, linewidth=1.4,
                    capsize=2, label=model,
                )  # fmt: skip
            else:
                places = table["layer"].astype(float)
                axes.plot(places, table["value"], color=colour, marker=marker, markersize=3, linewidth=1.3, label=model)
                bounds = (table[end].to_numpy(float) for end in ("low", "high"))
                axes.fill_between(places.to_numpy(), *bounds, color=colour, alpha=BAND_ALPHA, linewidth=0)
        axes.axhline(0, color="#999999", linewidth=0.8, zorder=0)
        axes.set_title(title, fontsize=LABEL_SIZE)
        named = next(iter(own.values()))
        mark_depth(axes, blocks_of(named[named["block"] != "none"]))
        used.append(axes)
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_visible(False)
    for axes in used[-num_columns:]:
        axes.tick_params(labelbottom=True)
    figure.supylabel(label, fontsize=LABEL_SIZE)
    figure.supxlabel(below, fontsize=LABEL_SIZE)
    common_legend(figure, used)
    return figure
