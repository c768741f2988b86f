"""Where along the model's depth does a swap bite? Figures drawn from the tables of `analyze.swap` alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from analyze.figures import RESOLUTION_DPI, plain
from analyze.swap_scores import PAPER_METRICS
from models.blocks import BLOCKS
from tracking.product import partial_file

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

METRIC_STYLES = {
    "moved_to_source": ("moved to the source's answer", "#D55E00"),
    "kept_target": ("kept the target's answer", "#0072B2"),
    "changed": ("changed", "#999999"),
}
"""Metric -> its words and colour; Okabe and Ito's palette."""
MODE_WORDS = {"from": "all layers ≥ k", "only": "layer k alone", "window": "a window from k"}
SHIFT_COLOURS = {"from": "#D55E00", "only": "#0072B2", "window": "#009E73"}


def draw_rates(rates: "pd.DataFrame", mode: str) -> "Figure":
    """Draws a mode's rates over k: a panel per set and task, pairs that are right without a swap, all pairs dashed."""
    own = rates[rates["mode"] == mode]
    with _panels(own) as (figure, panels):
        for axes, table in panels:
            for metric, (words, colour) in METRIC_STYLES.items():
                for subset in ("right", "all"):
                    line = table[(table["metric"] == metric) & (table["subset"] == subset)].dropna(subset=["rate"])
                    if not line.empty:
                        label = words if subset == "right" else None
                        _rate_line(axes, line, colour, label, is_main=subset == "right")
            paper = table[(table["metric"] == "paper") & (table["subset"] == "all")].dropna(subset=["rate"])
            label = f"paper: {PAPER_METRICS[table['task'].iloc[0]]} (all pairs)"
            axes.plot(paper["layer"], 100 * paper["rate"], color="#222222", linewidth=1.1, linestyle=":", label=label)
            num_right, num_all = (_num_pairs(table, subset) for subset in ("right", "all"))
            axes.set_title(f"{_title(table)}: {num_right} of {num_all} right without a swap", fontsize=9.5)
            axes.set_ylim(-4, 112)
            axes.legend(frameon=False, fontsize=7.5)
        figure.supxlabel(f"k: the source's picture in {MODE_WORDS[mode]} (dashed: all pairs)", fontsize=9.5)
        figure.supylabel("pairs, %", fontsize=9.5)
    return figure


def _rate_line(axes: "Axes", line: "pd.DataFrame", colour: str, label: str | None, *, is_main: bool) -> None:
    axes.plot(
        line["layer"], 100 * line["rate"], color=colour, label=label, linestyle="-" if is_main else "--",
        linewidth=1.7 if is_main else 1.0, marker="o" if is_main else "", markersize=3.2,
    )  # fmt: skip
    if is_main:
        axes.fill_between(line["layer"], 100 * line["low"], 100 * line["high"], color=colour, alpha=0.13, linewidth=0)


def draw_logprobs(logprobs: "pd.DataFrame") -> "Figure":
    """Draws the shift of log p(source's answer) - log p(target's answer) over k, a line a mode."""
    with _panels(logprobs) as (figure, panels):
        for axes, table in panels:
            for mode in dict.fromkeys(table["mode"]):
                line = table[(table["mode"] == mode) & (table["subset"] == "all")]
                colour = SHIFT_COLOURS[mode]
                axes.plot(line["layer"], line["shift"], color=colour, linewidth=1.7, marker="o", markersize=3.2,
                          label=MODE_WORDS[mode])  # fmt: skip
                axes.fill_between(line["layer"], line["low"], line["high"], color=colour, alpha=0.13, linewidth=0)
            axes.axhline(0, color="#999999", linewidth=0.8)
            axes.set_title(f"{_title(table)}: {table['n'].max()} pairs", fontsize=9.5)
            axes.legend(frameon=False, fontsize=7.5)
        figure.supxlabel("k: where the source's picture is swapped in", fontsize=9.5)
        figure.supylabel("shift from the target's answer to the source's, nats", fontsize=9.5)
    return figure


def draw_all(rates: "pd.DataFrame", logprobs: "pd.DataFrame", directory: Path) -> None:
    """Draws every figure as PNG: the rates of each mode, and the log-probabilities."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figures = {f"rates_{mode}": draw_rates(rates, mode) for mode in dict.fromkeys(rates["mode"])}
    figures["logprobs"] = draw_logprobs(logprobs)
    for name, figure in figures.items():
        with partial_file(directory / f"{name}.png") as partial:
            figure.savefig(partial, dpi=RESOLUTION_DPI, format="png", metadata={"Software": None})
        plt.close(figure)


@contextmanager
def _panels(table: "pd.DataFrame") -> Iterator[tuple["Figure", "list[tuple[Axes, pd.DataFrame]]"]]:
    """Yields a figure with a panel per set and task, blocks marked along the depth."""
    import matplotlib.pyplot as plt

    groups = [group for _, group in table.groupby(["set", "task"], sort=False)]
    num_columns = min(2, len(groups))
    num_rows = -(-len(groups) // num_columns)
    figure, grid = plt.subplots(
        num_rows, num_columns, figsize=(9.2 if num_columns == 2 else 6.4, 0.7 + 2.8 * num_rows), sharex=True,
        squeeze=False, layout="constrained",
    )  # fmt: skip
    panels = list(zip(grid.flat, groups, strict=False))
    yield figure, panels
    for axes, group in panels:
        layers = group.drop_duplicates("layer").set_index("layer")["block"]
        for block in BLOCKS:
            own = list(layers.index[layers == block])
            axes.text(sum(own) / len(own), 0.985, block, ha="center", va="top", fontsize=8, color="#777777",
                      transform=axes.get_xaxis_transform())  # fmt: skip
            if block != BLOCKS[0]:
                axes.axvline(own[0] - 0.5, color="#aaaaaa", linewidth=0.8, linestyle=":")
        last = int(layers.index.max())
        step = max(1, last // 14)
        shown = [layer for layer in range(0, last, step) if layer <= last - step] + [last]
        axes.set_xticks(shown, [*map(str, shown[:-1]), "none"], fontsize=8)
        plain(axes)
    for axes in list(grid.flat)[len(groups) :]:
        axes.set_visible(False)


def _title(table: "pd.DataFrame") -> str:
    set_name, task = table["set"].iloc[0], table["task"].iloc[0]
    return str(task if set_name == task else f"{set_name}, {task}")


def _num_pairs(table: "pd.DataFrame", subset: str) -> int:
    own = table[(table["subset"] == subset) & (table["metric"] == "answered")]
    return int((own["n"] + own["num_unscored"]).max())
