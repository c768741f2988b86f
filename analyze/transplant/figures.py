"""What does a sweep of transplants look like? Accuracy over depth, and transplants against trained arms."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from analyze.layers.plan import NECESSITY, PARTS, SUFFICIENCY
from analyze.probes.figures import LABEL_SIZE, common_legend, mark_depth, save_figures
from analyze.transplant.plan import BLOCK, DIRECTIONS, REGION, START
from analyze.transplant.summary import sentence_alpha
from eval.display.axes import plain
from models.blocks import BLOCKS, Partition

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WORDS = {"layer": "layer", "attn": "layer's attention", "mlp": "layer's MLP"}
ALL_WORDS = {"layer": "the layers", "attn": "the attention of the layers", "mlp": "the MLPs of the layers"}
TITLES = {
    SUFFICIENCY: "START with the {} of END",
    NECESSITY: "END with the {} of START",
}
PART_STYLES = {
    "layer": ("#222222", "o"), "attn": ("#0072B2", "s"), "mlp": ("#D55E00", "^"), "block": ("#009E73", "D"),
    "region": ("#CC79A7", "v"),
}  # fmt: skip
END_COLOUR, START_COLOUR = "#009E73", "#888888"
PLACES = 0.12
"""Horizontal distance of the curves of two factors, in layers."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One panel of a figure: an ability in a direction."""

    axes: "Axes"
    task: str
    ability: str
    direction: str
    rows: "pd.DataFrame"


def _panels(rows: "pd.DataFrame", size: tuple[float, float], *, shared: bool) -> tuple["Figure", list[Panel]]:
    """Returns a figure with a row of panels per ability and a column per direction.

    Args:
        size: width and height of a panel, in inches.
        shared: the panels have one horizontal axis, and those of a row one vertical axis.
    """
    import matplotlib.pyplot as plt

    groups = list(dict.fromkeys(zip(rows["task"], rows["ability"], strict=True)))
    directions = [each for each in DIRECTIONS if each in set(rows["direction"])]
    figure, axes = plt.subplots(
        len(groups), len(directions), figsize=(size[0] * len(directions) + 0.4, 0.9 + size[1] * len(groups)),
        sharex=shared, sharey="row" if shared else False, squeeze=False, layout="constrained",
    )  # fmt: skip
    panels = []
    for row, (task, ability) in enumerate(groups):
        for column, direction in enumerate(directions):
            chosen = (rows["task"] == task) & (rows["ability"] == ability) & (rows["direction"] == direction)
            place = axes[row, column]
            panels.append(Panel(axes=place, task=task, ability=ability, direction=direction, rows=rows[chosen]))
    return figure, panels


def _labelled(figure: "Figure", panels: Sequence[Panel], *, x: str, y: str) -> "Figure":
    """Labels the axes of a figure, the vertical ones of its first column, and adds the legend."""
    for panel in panels:
        if panel.axes.get_subplotspec().is_first_col():  # type: ignore[union-attr]
            panel.axes.set_ylabel(y, fontsize=LABEL_SIZE)
    figure.supxlabel(x, fontsize=LABEL_SIZE)
    common_legend(figure, [panel.axes for panel in panels])
    return figure


def draw_depth(table: "pd.DataFrame", scores: "pd.DataFrame", arm: str, part: str, partition: Partition) -> "Figure":
    """Draws a row of panels per ability and a column per direction, with a curve per factor."""

    rows = table[(table["arm"] == arm) & (table["part"] == part)]
    figure, panels = _panels(rows, (4.9, 2.5), shared=True)
    for panel in panels:
        _draw_levels(panel, scores, arm)
        _draw_curves(panel.axes, panel.rows, partition)
        title = TITLES[panel.direction].format(WORDS[part]).replace("END", arm).replace("START", "the start")
        panel.axes.set_title(f"{panel.ability}: {title}", fontsize=LABEL_SIZE)
    return _labelled(figure, panels, x="decoder layer", y="accuracy, percent")


def _draw_levels(panel: Panel, scores: "pd.DataFrame", arm: str) -> None:
    """Draws the accuracies of START and END as lines; END's is the mean of its seeds."""
    axes, scores = panel.axes, scores[(scores["task"] == panel.task) & (scores["ability"] == panel.ability)]
    ends = scores[scores["model"].str.partition("@")[0] == arm]
    axes.axhline(100 * float(ends["accuracy"].mean()), color=END_COLOUR, linestyle="--", label=arm)
    start = scores[scores["model"] == START]
    axes.axhline(100 * float(start["accuracy"].mean()), color=START_COLOUR, linestyle="--", label="start")


def _draw_curves(axes: "Axes", own: "pd.DataFrame", partition: Partition) -> None:
    import matplotlib.pyplot as plt

    alphas = sorted(set(own["alpha"]))
    for order, alpha in enumerate(alphas):
        rows = own[own["alpha"] == alpha].sort_values("first")
        middle = (rows["first"].astype(float) + rows["last"].astype(float)) / 2
        accuracy = 100 * rows["accuracy"]
        colour = plt.get_cmap("viridis")(0.85 * (1 - order / max(1, len(alphas) - 1)))
        axes.errorbar(
            middle + (order - (len(alphas) - 1) / 2) * PLACES, accuracy, yerr=_bars(rows, ""), color=colour, marker="o",
            markersize=3.5, linewidth=1.2, elinewidth=0.7, label=f"α = {alpha:g}",
        )  # fmt: skip
    axes.set_xlim(-0.7, partition.num_layers - 0.3)
    mark_depth(axes, {block: partition.layers(block) for block in BLOCKS}, num_ticks=30)


def draw_factors(table: "pd.DataFrame", scores: "pd.DataFrame", arm: str) -> "Figure":
    """Draws accuracy against the factor, a curve per block or region; they begin at START or END, with factor 0."""
    import matplotlib.pyplot as plt

    rows = table[(table["arm"] == arm) & table["part"].isin([BLOCK, REGION])]
    figure, panels = _panels(rows, (4.9, 2.7), shared=True)
    for panel in panels:
        axes = panel.axes
        _draw_levels(panel, scores, arm)
        for order, (unit, own) in enumerate(panel.rows.groupby("unit", sort=False)):
            points = own.sort_values("alpha")
            axes.plot(
                [0, *points["alpha"]], [100 * points["accuracy_against"].iloc[0], *(100 * points["accuracy"])],
                color=plt.get_cmap("tab10")(order % 10), marker="o", markersize=3.5, linewidth=1.1, label=str(unit),
            )  # fmt: skip
        title = "START + α · change" if panel.direction == SUFFICIENCY else "END − α · change"
        title = title.replace("END", arm).replace("START", "the start")
        axes.set_title(f"{panel.ability}: {title}", fontsize=LABEL_SIZE)
        plain(axes)
        axes.tick_params(labelsize=8)
    return _labelled(figure, panels, x="α", y="accuracy, percent")


def draw_prediction(prediction: "pd.DataFrame", arm: str) -> "Figure":
    """Draws transplants against trained arms: a row of panels per ability, a column per direction."""

    rows = prediction[(prediction["arm"] == arm) & (prediction["alpha"] == sentence_alpha(prediction))]
    figure, panels = _panels(rows, (4.2, 3.2), shared=False)
    for panel in panels:
        _draw_points(panel.axes, panel.rows)
        against = "the start" if panel.direction == SUFFICIENCY else arm
        panel.axes.set_title(f"{panel.ability}: {panel.direction}, points to {against}", fontsize=LABEL_SIZE)
    return _labelled(figure, panels, x="transplant", y="trained arm")


def _draw_points(axes: "Axes", own: "pd.DataFrame") -> None:
    axes.axline((0, 0), slope=1, color="#bbbbbb", linewidth=0.9, zorder=0)
    for part, (colour, marker) in PART_STYLES.items():
        rows = own[own["part"] == part]
        if rows.empty:
            continue
        axes.errorbar(
            100 * rows["difference"], 100 * rows["trained_difference"], xerr=_bars(rows, ""),
            yerr=_bars(rows, "trained_"), color=colour, marker=marker, linestyle="", markersize=4, elinewidth=0.6,
            alpha=0.8, label=part,
        )  # fmt: skip
        for _, row in rows.iterrows():
            place = str(row["unit"]).removeprefix("llm:").partition(".")[0]
            axes.annotate(
                place, (100 * row["difference"], 100 * row["trained_difference"]), xytext=(4, 3),
                textcoords="offset points", fontsize=7.5, color=colour,
            )  # fmt: skip
    plain(axes)
    axes.tick_params(labelsize=8)


def _bars(rows: "pd.DataFrame", prefix: str) -> list["pd.Series[float]"]:
    """Returns the lengths of the two halves of the intervals, in points; rounded tables may have tiny negative ones."""
    value, low, high = (100 * rows[f"{prefix}{name}"] for name in ("difference", "low", "high"))
    return [(value - low).clip(lower=0), (high - value).clip(lower=0)]


def draw_all(
    table: "pd.DataFrame",
    scores: "pd.DataFrame",
    prediction: "pd.DataFrame | None",
    partition: Partition,
    directory: Path,
) -> dict[str, Path]:
    """Draws the figures as PNG; returns their captions and files.

    Layers, attention and MLP have a figure each, for every END.
    """
    drawings: dict[str, Callable[[], Figure]] = {}
    captions: dict[str, str] = {}
    for arm in dict.fromkeys(table["arm"]):
        for part in PARTS:
            if ((table["arm"] == arm) & (table["part"] == part) & (table["n"] > 0)).any():
                name = f"{arm}_{part}"
                captions[name] = (
                    f"Accuracy over depth: {ALL_WORDS[part]} of {arm}, one at a time. Bars are 95 % intervals of the "
                    "paired difference to the start (left) or to END (right), not corrected for the number of places."
                )
                drawings[name] = partial(draw_depth, table, scores, arm, part, partition)
        if ((table["arm"] == arm) & table["part"].isin([BLOCK, REGION]) & (table["n"] > 0)).any():
            name = f"{arm}_factors"
            captions[name] = (
                f"Accuracy against the factor α: blocks and regions of {arm}. With α = 0 every curve begins at the "
                f"start (left) or at {arm} (right)."
            )
            drawings[name] = partial(draw_factors, table, scores, arm)
        if prediction is not None and (prediction["arm"] == arm).any():
            name = f"{arm}_prediction"
            captions[name] = (
                f"Transplants from {arm} against the trained arms of the same places, as differences in accuracy with "
                "95 % intervals. On the grey line the transplant predicts the arm exactly."
            )
            drawings[name] = partial(draw_prediction, prediction, arm)
    save_figures(directory, drawings)
    return {captions[name]: directory / f"{name}.png" for name in drawings}
