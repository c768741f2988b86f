"""Where along the model's depth does a swap bite? Figures drawn from the tables of `analyze.swap` alone."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from analyze.probes.figures import LABEL_SIZE, blocks_of, common_legend, mark_depth, save_figures
from analyze.swap.scores import PAPER_METRICS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

METRIC_STYLES = {
    "changed": ("changed", "#999999", 3.4),
    "kept_target": ("kept the target's answer", "#0072B2", 1.6),
    "moved_to_source": ("moved to the source's answer", "#D55E00", 1.6),
}
"""Metric -> its words, colour (Okabe and Ito's palette) and width; wide ones first, so that none hides another."""
MODE_WORDS = {"from": "all layers ≥ k", "only": "layer k alone", "window": "a window from k"}
SHIFT_COLOURS = {"from": "#D55E00", "only": "#0072B2", "window": "#009E73"}


def draw_rates(rates: "pd.DataFrame", mode: str) -> "Figure":
    """Draws a mode's rates over k: a panel per set and task, pairs that are right without a swap, all pairs dashed."""
    own = rates[rates["mode"] == mode]
    with _panels(own) as (figure, panels):
        for axes, table in panels:
            for metric, (words, colour, width) in METRIC_STYLES.items():
                for subset in ("right", "all"):
                    line = table[(table["metric"] == metric) & (table["subset"] == subset)].dropna(subset=["rate"])
                    rate = 100 * line["rate"]
                    if subset == "all":
                        axes.plot(line["layer"], rate, color=colour, linewidth=1.0, linestyle="--")
                        continue
                    axes.plot(
                        line["layer"], rate, color=colour, linewidth=width, marker="o", markersize=3.2, label=words
                    )
                    band = 100 * line["low"], 100 * line["high"]
                    axes.fill_between(line["layer"], *band, color=colour, alpha=0.13, linewidth=0)
            paper = table[(table["metric"] == "paper") & (table["subset"] == "all")].dropna(subset=["rate"])
            axes.plot(
                paper["layer"], 100 * paper["rate"], color="#222222", linewidth=1.1, linestyle=":",
                label="the paper's metric (all pairs)",
            )  # fmt: skip
            num_right, num_all = (_num_pairs(table, subset) for subset in ("right", "all"))
            axes.set_title(
                f"{_title(table)}: {num_right} of {num_all} right without a swap\n"
                f"the paper's metric: {PAPER_METRICS[table['task'].iloc[0]]}",
                fontsize=LABEL_SIZE,
            )
            axes.set_ylim(-4, 114)
            axes.set_yticks(range(0, 101, 20))
        where = f"k: the source's picture in {MODE_WORDS[mode]}"
        figure.supxlabel(f"{where} (lines: pairs right without a swap, dotted: all pairs)", fontsize=LABEL_SIZE)
        figure.supylabel("pairs, %", fontsize=LABEL_SIZE)
    return figure


def draw_logprobs(logprobs: "pd.DataFrame") -> "Figure":
    """Draws the shift of log p(source's answer) - log p(target's answer) over k, one line per mode."""
    with _panels(logprobs) as (figure, panels):
        for axes, table in panels:
            for mode in dict.fromkeys(table["mode"]):
                line = table[(table["mode"] == mode) & (table["subset"] == "all")]
                colour = SHIFT_COLOURS[mode]
                axes.plot(line["layer"], line["shift"], color=colour, linewidth=1.7, marker="o", markersize=3.2,
                          label=MODE_WORDS[mode])  # fmt: skip
                axes.fill_between(line["layer"], line["low"], line["high"], color=colour, alpha=0.13, linewidth=0)
            axes.axhline(0, color="#999999", linewidth=0.8)
            axes.set_title(f"{_title(table)}: {table['n'].max()} pairs", fontsize=LABEL_SIZE)
        figure.supxlabel("k: where the source's picture is swapped in", fontsize=LABEL_SIZE)
        figure.supylabel("log-probability moved\nto the source's answer, nats", fontsize=LABEL_SIZE)
    return figure


def draw_all(rates: "pd.DataFrame", logprobs: "pd.DataFrame", directory: Path) -> None:
    """Draws every figure as PNG: the rates of each mode, and the log-probabilities."""
    draws: dict[str, Callable[[], Figure]] = {
        f"rates_{mode}": partial(draw_rates, rates, mode) for mode in dict.fromkeys(rates["mode"])
    }
    save_figures(directory, {**draws, "logprobs": partial(draw_logprobs, logprobs)})


@contextmanager
def _panels(table: "pd.DataFrame") -> Iterator[tuple["Figure", "list[tuple[Axes, pd.DataFrame]]"]]:
    """Yields a figure with a panel per set and task, blocks marked along the depth."""
    import matplotlib.pyplot as plt

    groups = [group for _, group in table.groupby(["set", "task"], sort=False)]
    num_columns = min(2, len(groups))
    num_rows = -(-len(groups) // num_columns)
    figure, grid = plt.subplots(
        num_rows, num_columns, figsize=(9.2 if num_columns == 2 else 6.8, 1.0 + 2.9 * num_rows), sharex=True,
        squeeze=False, layout="constrained",
    )  # fmt: skip
    panels = list(zip(grid.flat, groups, strict=False))
    yield figure, panels
    for axes, group in panels:
        mark_depth(axes, blocks_of(group), end="none")
    common_legend(figure, [axes for axes, _ in panels])
    for axes, _ in panels[-num_columns:]:
        axes.tick_params(labelbottom=True)  # above an empty place too
    for axes in list(grid.flat)[len(groups) :]:
        axes.set_visible(False)


def _title(table: "pd.DataFrame") -> str:
    set_name, task = table["set"].iloc[0], table["task"].iloc[0]
    return str(task if set_name == task else f"{set_name}, {task}")


def _num_pairs(table: "pd.DataFrame", subset: str) -> int:
    own = table[(table["subset"] == subset) & (table["metric"] == "answered")]
    return int((own["n"] + own["num_unscored"]).max())
