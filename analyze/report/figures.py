"""How are tables drawn? Models over the decoder's depth, and one function a figure of a necessity study."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from analyze.probes.figures import LABEL_SIZE, blocks_of, common_legend, mark_depth
from analyze.report.study import NecessityStudy
from eval.compare.scope import LEVEL
from eval.display.axes import REGION_LABELS, plain
from eval.display.colours import LINES, model_colour

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
REWARD = "rewards/accuracy/mean"
"""Column of metrics.csv."""


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


def draw_gains(study: NecessityStudy) -> "Figure":
    """Draws the pooled difference to SFT in points, per ability and arm, with 95 % intervals."""

    def values(ability: str) -> "pd.DataFrame":
        rows = study.pooled(ability, "accuracy", "sft").set_index("arm").reindex(study.arms)
        return (rows[["difference", "low", "high"]] * 100).assign(filled=rows["p_holm"] < LEVEL)

    figure = _forest(study, study.arms, values, "change from SFT, points")
    for axes, ability in zip(figure.axes, study.abilities, strict=True):
        axes.axvline(0, color="#666666", linewidth=1.0, zorder=1)
        full = values(ability)["difference"].get("full", float("nan"))
        if full == full:
            axes.axvline(full, color="#666666", linewidth=1.0, linestyle=(0, (4, 3)), zorder=1)
    return figure


def draw_gain_kept(study: NecessityStudy) -> "Figure":
    """Draws the share of full training's gain that each arm keeps, where the interval of that gain lies above zero."""
    arms = [arm for arm in study.arms if arm != "full"]

    def values(ability: str) -> "pd.DataFrame":
        rows = study.pooled(ability, "accuracy", "sft").set_index("arm").reindex(arms)
        return (rows[["gain_kept", "gain_kept_low", "gain_kept_high"]] * 100).assign(filled=True)

    figure = _forest(study, arms, values, "gain kept, % of full's")
    for axes in figure.axes:
        for mark, line in ((0, ":"), (50, "--"), (100, "-")):
            axes.axvline(mark, color="#999999", linewidth=0.8, linestyle=line, zorder=0)
    return figure


def _forest(study: NecessityStudy, arms: list[str], values: Callable[[str], "pd.DataFrame"], label: str) -> "Figure":
    """Draws one panel an ability: a point and an interval a row."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(
        1,
        len(study.abilities),
        figsize=(9.2, 0.9 + 0.36 * len(arms)),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axes, ability in zip(panels[0], study.abilities, strict=True):
        table = values(ability)
        for position, (arm, row) in enumerate(zip(arms, table.itertuples(index=False), strict=True)):
            middle, low, high, filled = row
            if middle != middle:
                axes.text(0.5, position, "not given: no certain gain", transform=axes.get_yaxis_transform(),
                          ha="center", va="center", fontsize=7.5, color="#777777", style="italic")  # fmt: skip
                continue
            colour = model_colour(arm, study.arms)
            axes.plot([low, high], [position, position], color=colour, linewidth=2.2, solid_capstyle="round")
            face = colour if filled else "white"
            axes.plot(middle, position, "o", color=colour, markerfacecolor=face, markersize=6.5)
        axes.set_title(ability, fontsize=10.5, fontweight="bold")
        axes.set_xlabel(label)
        axes.set_yticks(range(len(arms)), arms)
        axes.set_ylim(len(arms) - 0.5, -0.5)
        axes.margins(x=0.12)
        plain(axes)
    return figure


def draw_rewards(study: NecessityStudy) -> "Figure":
    """Draws the accuracy reward over the steps: the mean over seeds, and the band from the lowest to the highest.

    Runs of supervised training have no rewards and are left out.
    """
    import matplotlib.pyplot as plt
    import pandas as pd

    figure, axes = plt.subplots(figsize=(9.2, 3.3), layout="constrained")
    rewarded = [run for run in study.runs if REWARD in run.metrics]
    for number, arm in enumerate(dict.fromkeys(run.arm for run in rewarded)):
        curves = pd.concat(
            [run.metrics.set_index("step")[REWARD].dropna() for run in rewarded if run.arm == arm], axis=1
        )
        smooth = curves.rolling(3, min_periods=1, center=True).mean()
        colour = model_colour(arm, study.arms)
        axes.fill_between(smooth.index, smooth.min(axis=1), smooth.max(axis=1), color=colour, alpha=0.15, linewidth=0)
        axes.plot(smooth.index, smooth.mean(axis=1), LINES[number % len(LINES)], color=colour, linewidth=1.8, label=arm)
    axes.set_xlabel("GRPO step")
    axes.set_ylabel("share of sampled answers right")
    axes.legend(frameon=False, ncols=2, fontsize=9, loc="lower right")
    plain(axes)
    return figure


def draw_deltas(study: NecessityStudy) -> "Figure":
    """Draws the relative size of RL's change per region and decoder layer, a panel an arm; frozen is exactly zero."""
    import matplotlib.pyplot as plt

    grouped = study.layers.groupby(["phase", "region", "layer"], dropna=False, sort=False)
    table = grouped["relative_energy"].mean().reset_index()
    num_layers = sum(len(layers) for layers in study.partition.values())
    outside = [region for region in REGION_LABELS if region in set(table["region"])]
    places = [*outside, *range(num_layers)]
    labels = [*(REGION_LABELS[region] for region in outside), *map(str, range(num_layers))]
    num_rows = -(-len(study.arms) // 2)
    figure, panels = plt.subplots(
        num_rows, min(2, len(study.arms)), figsize=(9.2, 0.6 + 1.75 * num_rows), sharex=True, sharey=True,
        squeeze=False, layout="constrained",
    )  # fmt: skip
    for axes, arm in zip(panels.flat, study.arms, strict=False):
        own = table[table["phase"] == arm]
        tower = own[own["region"].isin(["vision"])]["relative_energy"]
        heights = []
        for place in places:
            if isinstance(place, int):
                heights.append(
                    float(own[(own["region"] == "llm") & (own["layer"] == place)]["relative_energy"].iloc[0])
                )
            elif place == "vision":
                heights.append(float((tower**2).mean() ** 0.5))
            else:
                heights.append(float(own[own["region"] == place]["relative_energy"].iloc[0]))
        positions = list(range(len(places)))
        axes.bar(positions, [100 * height for height in heights], color=model_colour(arm, study.arms), width=0.72)
        for position, height in zip(positions, heights, strict=True):
            if height == 0:
                axes.axvspan(position - 0.5, position + 0.5, color="#e6e6e6", zorder=0, linewidth=0)
                axes.text(position, 0, "0", ha="center", va="bottom", fontsize=8, color="#555555")
        for block, layers in study.partition.items():
            axes.axvline(len(outside) + layers[0] - 0.5, color="#aaaaaa", linewidth=0.7, linestyle=":")
            axes.text(len(outside) + sum(layers) / len(layers), 0.985, block, ha="center", va="top", fontsize=7.5,
                      color="#777777", transform=axes.get_xaxis_transform())  # fmt: skip
        axes.set_title(arm, fontsize=10, fontweight="bold")
        step = 1 if num_layers <= 14 else 4
        shown = [i for i, place in enumerate(places) if not isinstance(place, int) or place % step == 0]
        axes.set_xticks(shown, [labels[i] for i in shown], fontsize=8)
        axes.margins(x=0.01, y=0.18)
        plain(axes)
    for axes in panels.flat[len(study.arms) :]:
        axes.set_visible(False)
    figure.supylabel("‖RL − SFT‖ / ‖SFT‖, %", fontsize=9.5)
    return figure


FIGURES: dict[str, Callable[[NecessityStudy], "Figure"]] = {
    "gains": draw_gains,
    "gain_kept": draw_gain_kept,
    "rewards": draw_rewards,
    "deltas": draw_deltas,
}
