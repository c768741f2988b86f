"""Figures of the tables of `analyze.attention`, over the decoder's depth."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from analyze.attention.records import ALL, SEGMENTS
from analyze.attention.tables import POOLED
from analyze.probes.figures import LABEL_SIZE, blocks_of, common_legend, mark_boundaries, mark_depth, save_figures
from eval.display.colours import model_colour

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SEGMENT_COLOURS = {
    "vision": "#0072B2", "question": "#E69F00", "template": "#B8B8B8", "sink": "#6E6E6E", "earlier": "#7BCFA9",
    "self": "#009E73",
}  # fmt: skip
SHIFTS = {
    "vision": "image's share of attention, points",
    "vision_over_uniform": "image's attention, % of an equal share",
}
"""The measures whose shift is drawn; the second is independent of the reply's length."""
SEGMENT_LABELS = {"vision": "image", "earlier": "earlier reply", "self": "itself", "sink": "first token"}


@dataclass(frozen=True, kw_only=True)
class AttentionTables:
    """The tables the figures are drawn from."""

    attention: "pd.DataFrame"
    shift: "pd.DataFrame"

    @property
    def models(self) -> list[str]:
        return list(dict.fromkeys(self.attention["model"]))

    @property
    def modes(self) -> list[str]:
        return list(dict.fromkeys(self.attention["mode"]))

    @property
    def blocks(self) -> dict[str, list[int]]:
        return blocks_of(self.attention)

    @property
    def num_layers(self) -> int:
        return int(self.attention["layer"].max()) + 1

    @property
    def abilities(self) -> list[tuple[str, str]]:
        """(task, ability) with images; the pooled ability only if there is no other."""
        seeing = self.attention[self.attention["measure"] == "vision"]
        found = list(dict.fromkeys(zip(seeing["task"], seeing["ability"], strict=True)))
        return [place for place in found if place[1] != ALL] or found

    def means(self, measure: str, **where: str) -> "pd.DataFrame":
        """Rows of the whole reply's means over heads of one measure."""
        table = self.attention
        chosen = (table["measure"] == measure) & (table["part"] == "reply") & (table["head"] == "mean")
        for column, value in where.items():
            chosen &= table[column] == value
        return table[chosen]


def draw_shift(tables: AttentionTables, against: str, measure: str) -> "Figure | None":
    """Draws each model's change of attention to the image over depth with its interval; dots are significant."""
    shift = tables.shift
    chosen = (shift["measure"] == measure) & (shift["part"] == "reply") & (shift["against"] == against)
    table = shift[chosen]
    if table.empty:
        return None
    pooled = table["model"].isin(set(table["model"][table["seed"] == POOLED]))  # otherwise there is one seed
    table = table[(table["seed"] == POOLED) | ~pooled]
    figure, panels = _grid(tables, sharey=False)  # differences are much smaller on the same text
    for (task, ability), row in zip(tables.abilities, panels, strict=True):
        for mode, axes in zip(tables.modes, row, strict=True):
            own = table[(table["task"] == task) & (table["ability"] == ability) & (table["mode"] == mode)]
            for model, curve in own.groupby("model", sort=False):
                colour = model_colour(str(model), tables.models)
                layers = curve["layer"]
                axes.fill_between(
                    layers, 100 * curve["low"], 100 * curve["high"], color=colour, alpha=0.15, linewidth=0
                )
                axes.plot(layers, 100 * curve["difference"], color=colour, linewidth=1.5, label=str(model))
                sure = curve[curve["p_holm"] < 0.05]
                axes.plot(sure["layer"], 100 * sure["difference"], "o", color=colour, markersize=4)
            axes.axhline(0, color="#999999", linewidth=0.8)
    figure.supxlabel("decoder layer (dots: p < 0.05, corrected over the layers)", fontsize=LABEL_SIZE)
    figure.supylabel(f"{SHIFTS[measure]}, change from {against}", fontsize=LABEL_SIZE)
    common_legend(figure, [axes for row in panels for axes in row])
    return figure


def draw_vision(tables: AttentionTables) -> "Figure | None":
    """Draws the attention to the image over depth, summed over its tokens, one line per model with its interval."""
    table = tables.means("vision")
    if table.empty:
        return None
    figure, panels = _grid(tables, sharey="row")
    for (task, ability), row in zip(tables.abilities, panels, strict=True):
        for mode, axes in zip(tables.modes, row, strict=True):
            own = table[(table["task"] == task) & (table["ability"] == ability) & (table["mode"] == mode)]
            for model, curves in own.groupby("model", sort=False):
                colour = model_colour(str(model), tables.models)
                for _, curve in curves.groupby("seed", dropna=False):
                    low, high = 100 * curve["low"], 100 * curve["high"]
                    axes.fill_between(curve["layer"], low, high, color=colour, alpha=0.13, linewidth=0)
                mean = 100 * curves.groupby("layer")["mean"].mean()
                axes.plot(mean.index, mean, color=colour, linewidth=1.5, marker="o", markersize=3, label=str(model))
            axes.set_ylim(bottom=0)
    figure.supxlabel("decoder layer", fontsize=LABEL_SIZE)
    figure.supylabel("image's share of attention, %", fontsize=LABEL_SIZE)
    common_legend(figure, [axes for row in panels for axes in row])
    return figure


def draw_segments(tables: AttentionTables) -> "Figure | None":
    """Draws the distribution of attention over depth, one panel per model and ability, on the first mode's replies."""
    import matplotlib.pyplot as plt

    if not tables.abilities:
        return None
    figure, panels = plt.subplots(
        len(tables.abilities), len(tables.models), sharex=True, sharey=True, squeeze=False, layout="constrained",
        figsize=(max(5.0, 2.3 * len(tables.models) + 0.6), 0.9 + 2.1 * len(tables.abilities)),
    )  # fmt: skip
    for (task, ability), row in zip(tables.abilities, panels, strict=True):
        for model, axes in zip(tables.models, row, strict=True):
            where = {"task": task, "ability": ability, "model": model, "mode": tables.modes[0]}
            heights = [100 * tables.means(name, **where).groupby("layer")["mean"].mean() for name in SEGMENTS]
            axes.stackplot(
                heights[0].index, *heights, colors=list(SEGMENT_COLOURS.values()), linewidth=0,
                labels=[SEGMENT_LABELS.get(name, name) for name in SEGMENTS],
            )  # fmt: skip
            axes.set_title(f"{model}: {ability}", fontsize=LABEL_SIZE)
            axes.set_ylim(0, 100)
            axes.set_xlim(0, tables.num_layers - 1)
            mark_boundaries(axes, tables.blocks, "#ffffff")
    figure.supylabel(f"share of attention, % ({tables.modes[0]})", fontsize=LABEL_SIZE)
    figure.supxlabel("decoder layer", fontsize=LABEL_SIZE)
    common_legend(figure, [panels[0, 0]])
    return figure


def draw_heads(tables: AttentionTables) -> "Figure | None":
    """Draws the attention to the image per layer and head: the first model's, and the others' difference to it."""
    import matplotlib.pyplot as plt
    import pandas as pd

    table = tables.attention
    table = table[(table["head"] != "mean") & (table["measure"] == "vision") & (table["mode"] == tables.modes[0])]
    chosen = set(tables.abilities)
    table = table[[place in chosen for place in zip(table["task"], table["ability"], strict=True)]]
    if table.empty:
        return None
    table = table.assign(head=table["head"].astype(int), total=100 * table["mean"] * table["n"])
    maps: dict[str, np.ndarray] = {}  # [heads, layers], percent
    for model in tables.models:
        sums = table[table["model"] == model].pivot_table(
            index="head", columns="layer", values=["total", "n"], aggfunc="sum"
        )
        shares = pd.DataFrame(sums["total"] / sums["n"])  # a layer without attention weights stays empty
        maps[model] = shares.reindex(columns=range(tables.num_layers)).to_numpy(float)
    first = tables.models[0]
    others = [model for model in tables.models if model != first]
    num_rows = -(-len(maps) // 3)
    figure, panels = plt.subplots(
        num_rows, min(3, len(maps)), squeeze=False, sharex=True, sharey=True, layout="constrained",
        figsize=(3.3 * min(3, len(maps)) + 0.4, 0.9 + 2.4 * num_rows),
    )  # fmt: skip
    extreme = max((float(np.nanmax(np.abs(maps[model] - maps[first]))) for model in others), default=0.0) or 1.0
    for axes, model in zip(panels.flat, [first, *others], strict=False):
        if model == first:
            image = axes.imshow(maps[first], aspect="auto", origin="lower", cmap="viridis", vmin=0)
        else:
            change = maps[model] - maps[first]
            image = axes.imshow(change, aspect="auto", origin="lower", cmap="RdBu_r", vmin=-extreme, vmax=extreme)
        axes.set_title(model if model == first else f"{model} − {first}", fontsize=LABEL_SIZE)
        figure.colorbar(image, ax=axes, shrink=0.9).ax.tick_params(labelsize=7.5)
        axes.tick_params(labelsize=8)
        mark_boundaries(axes, tables.blocks, "#888888")
    for axes in panels.flat[len(maps) :]:
        axes.set_visible(False)
    figure.supxlabel("decoder layer", fontsize=LABEL_SIZE)
    figure.supylabel("head", fontsize=LABEL_SIZE)
    figure.suptitle(f"image's share of attention, % and points ({tables.modes[0]})", fontsize=LABEL_SIZE)
    return figure


FIGURES: dict[str, Callable[[AttentionTables], "Figure | None"]] = {
    "vision": draw_vision,
    "segments": draw_segments,
    "heads": draw_heads,
}


def draw_all(tables: AttentionTables, directory: Path) -> None:
    """Draws all figures for which there are tables, and the shift from each baseline, as PNG."""
    draws: dict[str, Callable[[], Figure | None]] = {
        name: functools.partial(draw, tables) for name, draw in FIGURES.items()
    }
    for measure in SHIFTS:
        for name in dict.fromkeys(tables.shift["against"]):
            draws[f"{measure}-shift-from-{name}"] = functools.partial(draw_shift, tables, name, measure)
    save_figures(directory, draws)


def _grid(tables: AttentionTables, *, sharey: Literal["row", False]) -> tuple["Figure", "list[list[Axes]]"]:
    """Returns panels over depth: one row per ability, one column per mode."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(
        len(tables.abilities), len(tables.modes), sharex=True, sharey=sharey, squeeze=False, layout="constrained",
        figsize=(4.6 * len(tables.modes), 1.0 + 2.3 * len(tables.abilities)),
    )  # fmt: skip
    several = len({name for name, _ in tables.abilities}) > 1
    for (task, ability), row in zip(tables.abilities, panels, strict=True):
        for mode, axes in zip(tables.modes, row, strict=True):
            axes.set_title(f"{f'{task}, ' if several else ''}{ability}: {mode}", fontsize=LABEL_SIZE)
            mark_depth(axes, tables.blocks)
    return figure, panels.tolist()
