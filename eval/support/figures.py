"""Figures of the support tables: pass@k over k, and below it the difference of each model to the baseline."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from eval.display.colours import model_style
from tracking.product import partial_file

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

PASS = "pass@k"
RESOLUTION_DPI = 160
PANEL_INCHES = (3.4, 2.7)
BAND_ALPHA = 0.13


def draw(support: "pd.DataFrame", changes: "pd.DataFrame", baseline: str, directory: Path) -> None:
    """Draws one figure per task, `support-TASK.png`, with one column per ability."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    for task in support["task"].unique():
        own = support[(support["task"] == task) & (support["metric"] == PASS)]
        changed = changes[(changes["task"] == task) & (changes["metric"] == PASS)] if len(changes) else own.iloc[:0]
        abilities = list(own["ability"].unique())
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
            _curves(above, own[own["ability"] == ability], styles)
            if len(changed):
                _curves(below, changed[changed["ability"] == ability], styles)
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
