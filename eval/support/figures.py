"""Figures of the support tables: pass@k over k, the difference to the baseline, and what is gained by modality."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from eval.display.axes import RESOLUTION_DPI, plain
from eval.display.colours import model_style
from eval.support.samples import PASS
from eval.support.tables import ALL
from tracking.product import partial_file

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

PANEL_INCHES = (3.4, 2.7)
BAND_ALPHA = 0.13
START_COLOUR, GUESS_COLOUR = "#cccccc", "#b22222"


def draw(support: "pd.DataFrame", changes: "pd.DataFrame", baseline: str, directory: Path) -> None:
    """Draws one figure per task, `support-TASK.png`, with one column per ability, or ability and modality."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    support, changes = (_with_titles(table) for table in (support, changes))
    for task in support["task"].unique():
        own = support[(support["task"] == task) & (support["metric"] == PASS)]
        changed = changes[(changes["task"] == task) & (changes["metric"] == PASS)] if len(changes) else own.iloc[:0]
        abilities = list(own["title"].unique())
        width, height = PANEL_INCHES
        figure, panels = plt.subplots(
            2, len(abilities), figsize=(width * len(abilities) + 0.6, 2 * height + 0.6), sharex=True, squeeze=False,
            layout="constrained",
        )  # fmt: skip
        models = list(own["model"].unique())
        styles = {model: model_style(model, models) for model in models}
        for column, ability in enumerate(abilities):
            above, below = panels[0][column], panels[1][column]
            above.set_title(ability, fontsize=10)
            _curves(above, own[own["title"] == ability], styles)
            if len(changed):
                _curves(below, changed[changed["title"] == ability], styles)
            below.axhline(0, color="#bbbbbb", linewidth=1.2)
            _log_axis(below, sorted(map(int, own["k"].unique())))
        panels[0][0].set_ylabel("pass@k, %", fontsize=9.5)
        panels[1][0].set_ylabel(f"less {baseline}, points", fontsize=9.5)
        handles, labels = panels[0][0].get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside upper center", ncols=min(len(labels), 6), frameon=False, fontsize=8.5
        )
        with partial_file(directory / f"support-{task.replace('/', '-')}.png") as partial:
            figure.savefig(partial, dpi=RESOLUTION_DPI, format="png", metadata={"Software": None})
        plt.close(figure)


def _with_titles(table: "pd.DataFrame") -> "pd.DataFrame":
    """Returns the rows with the title of their column of panels; without those of all modalities together."""
    if not len(table) or "modality" not in table:
        return table.assign(title=table["ability"]) if len(table) else table
    table = table[table["task"] != ALL]
    several = table["ability"].nunique() > 1
    return table.assign(title=table["modality"] + (", " + table["ability"] if several else ""))


def draw_gaps(gaps: "pd.DataFrame", bins: "pd.DataFrame", support: "pd.DataFrame", directory: Path) -> None:
    """Draws `gaps.png`: the start's gap and every model's pass@1 by modality, and the gain by the start's pass rate."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    models = list(gaps["model"].unique())
    colours = {model: model_style(model, models)[0] for model in models}
    num_rows = len(gaps[gaps["task"] != ALL])
    size = (10, 1.6 + 0.17 * num_rows / len(models) * (len(models) + 2))
    figure, (left, right) = plt.subplots(1, 2, figsize=size, layout="constrained")
    _gaps(left, gaps[gaps["task"] != ALL], support, colours)
    _gains(right, bins[bins["task"] == ALL] if (bins["task"] == ALL).any() else bins, colours)
    for axes in (left, right):
        plain(axes)
        axes.invert_yaxis()
    figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=8.5)
    with partial_file(directory / "gaps.png") as partial:
        figure.savefig(partial, dpi=RESOLUTION_DPI, format="png", metadata={"Software": None})
    plt.close(figure)


def _gaps(axes: "Axes", gaps: "pd.DataFrame", support: "pd.DataFrame", colours: dict[str, str]) -> None:
    """Draws per modality the start's gap, its guessing control, and the pass@1 of every model."""
    several = len(gaps[["task", "ability"]].drop_duplicates()) > 1
    gaps = gaps.assign(place=gaps["modality"] + (" (" + gaps["ability"] + ", " + gaps["task"] + ")" if several else ""))
    levels = support[(support["metric"] == PASS) & (support["k"] == 1)]
    step = 0.8 / (len(colours) + 1)
    places = list(gaps["place"].unique())
    for row, place in enumerate(places):
        start, top = gaps[gaps["place"] == place].iloc[0], row - step * len(colours) / 2
        k = int(start["num_samples"])
        labels = [f"start, pass@1 to pass@{k}", f"guessing, pass@{k}", *(f"{model}, pass@1" for model in colours)]
        labels = labels if row == 0 else [""] * len(labels)
        ends = [100 * start["start_pass_at_1"], 100 * start["start_pass_at_k"]]
        axes.plot(ends, [top, top], color=START_COLOUR, linewidth=4, solid_capstyle="butt", label=labels[0] or None)
        axes.plot(
            [100 * start["start_guessing"]], [top], "x", color=GUESS_COLOUR, markersize=6, label=labels[1] or None
        )
        same = levels[["task", "ability", "modality"]].eq(start[["task", "ability", "modality"]]).all(axis=1)
        for number, (model, colour) in enumerate(colours.items(), start=1):
            found = levels[same & (levels["model"] == model)].iloc[0]
            ends = [found[name] for name in ("value", "low", "high")]
            _mark(axes, *ends, height=top + number * step, colour=colour, label=labels[1 + number])
    axes.set_yticks(range(len(places)), places)
    axes.set_xlabel("percent of prompts", fontsize=9.5)


def _gains(axes: "Axes", bins: "pd.DataFrame", colours: dict[str, str]) -> None:
    """Draws the gain of every model in each bin of the start's pass rate."""
    bins = bins[bins["rate"].notna()]
    labels = list(bins["bin"].unique())
    step = 0.6 / len(colours)
    for number, (model, colour) in enumerate(colours.items()):
        shift = (number - (len(colours) - 1) / 2) * step
        for _, found in bins[bins["model"] == model].iterrows():
            ends = [found[name] for name in ("gain", "low", "high")]
            _mark(axes, *ends, height=labels.index(found["bin"]) + shift, colour=colour)
    axes.set_yticks(range(len(labels)), labels)
    axes.axvline(0, color="#bbbbbb", linewidth=1.2, zorder=0)
    axes.set_ylabel("start's pass rate on a prompt", fontsize=9.5)
    axes.set_xlabel("gain at k = 1, points", fontsize=9.5)


def _mark(axes: "Axes", value: float, low: float, high: float, *, height: float, colour: str, label: str = "") -> None:
    axes.plot([100 * low, 100 * high], [height, height], color=colour, linewidth=1.3)
    axes.plot([100 * value], [height], "o", color=colour, markersize=4.5, label=label or None)


def _curves(axes: "Axes", rows: "pd.DataFrame", styles: dict[str, tuple[str, str]]) -> None:
    for model in rows["model"].unique():
        own = rows[rows["model"] == model].sort_values("k")
        colour, line = styles[model]
        axes.plot(own["k"], 100 * own["value"], line, color=colour, linewidth=1.5, label=model)
        axes.fill_between(
            own["k"].to_numpy(float), 100 * own["low"], 100 * own["high"], color=colour, alpha=BAND_ALPHA, linewidth=0
        )
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(labelsize=8)


def _log_axis(axes: "Axes", ks: Sequence[int]) -> None:
    from matplotlib.ticker import NullFormatter, NullLocator

    axes.set_xscale("log", base=2)
    ticks = [k for k in ks if k & (k - 1) == 0 or k == ks[-1]]
    axes.set_xticks(ticks, [str(k) for k in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("samples k", fontsize=9.5)
