"""What was planted, and what was found, as figures of the answers."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from analyze.probes.figures import LABEL_SIZE, common_legend
from benchmarks.known_answers.answers import WRONG
from eval.display.axes import plain

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

PLANTED_COLOUR, FOUND_COLOUR, WRONG_COLOUR = "#cfd6de", "#1c1e21", "#b3372f"
WIDTH = 9.2
LEAST_RATIO = 30
"""Between the ends of a logarithmic axis; below it, an axis is linear."""
MOST_COLUMNS = 3
MOST_LETTERS = 30
"""Of all labels below a panel; longer ones stand upright."""

Draw = Callable[["pd.DataFrame"], "Figure"]
"""Draws the answers of one instrument."""


def _panels(titles: Sequence[str], height: float, *, share_y: bool) -> "tuple[Figure, list[Axes]]":
    import matplotlib.pyplot as plt

    num_columns = min(MOST_COLUMNS, len(titles))
    num_rows = -(-len(titles) // num_columns)
    figure, grid = plt.subplots(
        num_rows, num_columns, figsize=(WIDTH, 0.5 + height * num_rows), squeeze=False, sharey=share_y,
        layout="constrained",
    )  # fmt: skip
    for axes, title in zip(grid.flat, titles, strict=False):
        axes.set_title(title, fontsize=LABEL_SIZE)
        plain(axes)
        axes.tick_params(labelsize=8)
    for axes in list(grid.flat)[len(titles) :]:
        axes.set_visible(False)
    return figure, list(grid.flat)[: len(titles)]


def draw_swaps(answers: "pd.DataFrame") -> "Figure":
    """Draws a panel per mode: a row per model, shaded where a swap must move the answer, with a dot where it does."""
    points = answers[answers["place"] != ""]
    quantities = list(dict.fromkeys(points["quantity"]))
    figure, panels = _panels(quantities, 2.6, share_y=True)
    for axes, quantity in zip(panels, quantities, strict=True):
        own = points[points["quantity"] == quantity]
        cases = list(dict.fromkeys(own["case"]))
        rows = own["case"].map(cases.index)
        layers = own["place"].str.extract(r"(\d+)$", expand=False).astype(int)
        axes.grid(visible=False)
        for x, y, truth in zip(layers, rows, own["truth"], strict=True):
            if truth:
                axes.add_patch(_cell(x, y))
        for is_wrong, colour in ((False, FOUND_COLOUR), (True, WRONG_COLOUR)):
            chosen = (own["verdict"] == WRONG) == is_wrong
            size = 8 + 62 * own["estimate"].fillna(0)
            axes.scatter(layers[chosen], rows[chosen], s=size[chosen], color=colour, zorder=3, linewidths=0)
        last = int(layers.max())
        axes.set_xticks(range(last + 1), [*map(str, range(last)), "none"])
        axes.set_yticks(range(len(cases)), cases)
        axes.set_ylim(len(cases) - 0.5, -0.5)
        axes.set_xlim(-0.5, last + 0.5)
    figure.supxlabel("layer of the swap", fontsize=LABEL_SIZE)
    return figure


def _cell(x: int, y: int) -> "Patch":
    from matplotlib.patches import Rectangle

    return Rectangle((x - 0.5, y - 0.5), 1, 1, color=PLANTED_COLOUR, linewidth=0)


def draw_bars(answers: "pd.DataFrame") -> "Figure":
    """Draws a panel per case and quantity: a bar for what was planted, a dot with its interval for what was found."""
    groups = list(answers.groupby(["case", "quantity"], sort=False))
    same_case = answers["case"].nunique() == 1
    titles = [str(key[1] if same_case else f"{key[0]}: {key[1]}") for key, _ in groups]
    figure, panels = _panels(titles, 2.5, share_y=False)
    for axes, (_, own) in zip(panels, groups, strict=True):
        places = range(len(own))
        axes.bar(places, own["truth"], width=0.8, color=PLANTED_COLOUR, label="planted")
        for is_wrong, colour, label in ((False, FOUND_COLOUR, "found"), (True, WRONG_COLOUR, "found, wrong")):
            chosen = [number for number, verdict in enumerate(own["verdict"]) if (verdict == WRONG) == is_wrong]
            if chosen:
                _dots(axes, chosen, own.iloc[chosen], colour, label)
        is_long = own["place"].str.len().sum() > MOST_LETTERS
        axes.set_xticks(places, own["place"], rotation=90 if is_long else 0, fontsize=8)
    common_legend(figure, panels)
    return figure


def _dots(axes: "Axes", places: Sequence[int], own: "pd.DataFrame", colour: str, label: str) -> None:
    errors = [
        (own["estimate"] - own["low"]).clip(lower=0).fillna(0),
        (own["high"] - own["estimate"]).clip(lower=0).fillna(0),
    ]
    axes.errorbar(
        places, own["estimate"], yerr=errors, fmt="o", markersize=4, capsize=2, linewidth=1.2, color=colour, label=label
    )


def draw_diagonals(answers: "pd.DataFrame", *, log: bool = False) -> "Figure":
    """Draws a panel per quantity: what was found against what was planted, on the diagonal where they agree."""
    quantities = list(dict.fromkeys(answers["quantity"]))
    figure, panels = _panels(quantities, 2.7 if len(quantities) <= MOST_COLUMNS else 2.1, share_y=False)
    for axes, quantity in zip(panels, quantities, strict=True):
        own = answers[answers["quantity"] == quantity]
        low, high = float(own["truth"].min()), float(own["truth"].max())
        scale = log and low > 0 and high / low > LEAST_RATIO
        room = 0.05 * (high - low)
        ends = [low, high] if scale else [low - room, high + room]
        axes.plot(ends, ends, color=PLANTED_COLOUR, linewidth=4, zorder=1, solid_capstyle="round")
        colours = [WRONG_COLOUR if verdict == WRONG else FOUND_COLOUR for verdict in own["verdict"]]
        axes.scatter(own["truth"], own["estimate"], s=12, color=colours, zorder=3, linewidths=0)
        if scale:
            axes.set_xscale("log")
            axes.set_yscale("log")
    figure.supxlabel("planted", fontsize=LABEL_SIZE)
    figure.supylabel("found", fontsize=LABEL_SIZE)
    return figure


def draw_log_diagonals(answers: "pd.DataFrame") -> "Figure":
    """Draws `draw_diagonals`, with logarithmic axes for quantities over more than a decade."""
    return draw_diagonals(answers, log=True)


def draw_gains_kept(answers: "pd.DataFrame") -> "Figure":
    """Draws `draw_bars` of the shares of the gain that arms keep."""
    return draw_bars(answers[answers["quantity"] == "gain kept"])
