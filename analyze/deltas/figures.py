"""Figures of the tables of `analyze.deltas`, over the model's depth."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from eval.display.axes import RESOLUTION_DPI, plain
from eval.display.colours import model_colour
from models.blocks import BLOCKS
from tracking.product import partial_file

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORWARD_ORDER = ("audio", "vision", "projector", "embed", "ple", "llm", "norm", "head", "mtp")
"""The order of the forward pass for an image."""
SHADES = {"vision": "#eef3f8", "projector": "#f8f0e4", "llm": "#f1f5ee"}
REGION_TITLES = {"vision": "vision", "projector": "proj.", "llm": "decoder"}
NULL_COLOUR = "#9a9a9a"
BLOCK_COLOURS = {"early": "#0072B2", "mid": "#D55E00", "late": "#009E73", "vision": "#8C6BB1", "projector": "#A6761D"}


@dataclass(frozen=True, kw_only=True)
class DeltaTables:
    """The tables for figures; None for measures that were not requested."""

    matrices: "pd.DataFrame"
    layers: "pd.DataFrame"
    decay: "pd.DataFrame | None" = None
    geometry: "pd.DataFrame | None" = None

    @property
    def phases(self) -> list[str]:
        return list(dict.fromkeys(self.layers["phase"]))

    @property
    def has_floor(self) -> bool:
        return "rounding_energy" in self.layers

    @property
    def places(self) -> list[tuple[str, int | None]]:
        """(region, layer) in the order of the forward pass; layer is None outside of layers."""
        found = {
            (region, None if layer != layer else int(layer))
            for region, layer in zip(self.layers["region"], self.layers["layer"], strict=True)
        }
        return sorted(found, key=lambda place: (FORWARD_ORDER.index(place[0]), -1 if place[1] is None else place[1]))


def draw_energy(tables: DeltaTables) -> "Figure":
    """Draws ‖Δ‖/‖W‖ over depth, a line per phase or arm, with the effect of rounding alone dashed."""
    figure, axes = _depth_panels(tables, 1, 3.9)
    axes[0].set_yscale("log")
    axes[0].tick_params(which="minor", labelsize=7.5)
    axes[0].margins(y=0.12)  # room for the blocks' names
    floor = []
    for phase in tables.phases:
        table = tables.layers[tables.layers["phase"] == phase]
        _line(axes[0], tables, table, "relative_energy", phase)
        if tables.has_floor:
            floor.append(table.assign(rounding=table["rounding_energy"] / table["start_norm"]))
    if floor:
        _line(axes[0], tables, floor[0], "rounding", "rounding alone", colour=NULL_COLOUR, linestyle="--", marker="")
    _mark_zeros(axes[0], tables, "relative_energy")
    axes[0].set_ylabel("‖Δ‖ / ‖W‖")
    axes[0].legend(frameon=False, fontsize=8.5, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.06))
    return figure


def draw_changed(tables: DeltaTables) -> "Figure | None":
    """Draws the share of changed elements over depth, one line per phase or arm."""
    if "changed_frac" not in tables.layers:
        return None
    figure, axes = _depth_panels(tables, 1, 3.4)
    for phase in tables.phases:
        table = tables.layers[tables.layers["phase"] == phase]
        _line(axes[0], tables, table.assign(changed=100 * table["changed_frac"]), "changed", phase)
    axes[0].set_ylabel("elements changed, %")
    axes[0].set_ylim(-3, 113)
    axes[0].legend(frameon=False, fontsize=8.5, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.07))
    return figure


def draw_ranks(tables: DeltaTables) -> "Figure | None":
    """Draws effective and stable rank, relative to the full rank, over depth; the matched null dashed.

    Each point is the median over a layer's matrices that changed.
    """
    if "effective_rank" not in tables.matrices:
        return None
    matrices = tables.matrices[tables.matrices["energy"] > 0]
    names = [name for name in ("effective_rank", "stable_rank") if matrices[name].notna().any()]
    if not names:
        return None
    figure, panels = _depth_panels(tables, len(names), 0.4 + 2.6 * len(names))
    full = matrices[["num_rows", "num_columns"]].min(axis=1)
    for axes, name in zip(panels, names, strict=True):
        axes.set_yscale("log")
        axes.margins(y=0.12)
        axes.yaxis.set_major_formatter("{x:g}")
        with_null = f"null_{name}" in matrices
        for phase in tables.phases:
            own = matrices["phase"] == phase
            _line(axes, tables, matrices[own].assign(share=matrices[name] / full), "share", phase)
        if with_null:
            null = matrices.assign(share=matrices[f"null_{name}"] / full).dropna(subset=["share"])
            _line(axes, tables, null, "share", "same changes, shuffled", colour=NULL_COLOUR, linestyle="--", marker="")
        low, high = axes.get_ylim()
        axes.yaxis.set_minor_formatter("{x:g}" if high < 10 * low else "")  # within a decade there is room for more
        axes.tick_params(which="minor", labelsize=7.5)
        axes.set_ylabel(f"{name.replace('_', ' ')} / full rank")
    panels[0].legend(frameon=False, fontsize=8.5, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.09))
    return figure


def draw_decay(tables: DeltaTables) -> "Figure | None":
    """Draws log(σ_i/σ_1) over the first ranks, a panel per phase and a line per block, the matched null dashed."""
    import matplotlib.pyplot as plt

    decay = tables.decay
    if decay is None or decay.empty:
        return None
    phases = [phase for phase in tables.phases if phase in set(decay["phase"])]
    num_rows = -(-len(phases) // 2)
    figure, panels = plt.subplots(
        num_rows, min(2, len(phases)), figsize=(9.2, 0.7 + 2.5 * num_rows), sharex=True, sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for axes, phase in zip(panels.flat, phases, strict=False):
        own = decay[(decay["phase"] == phase) & decay["block"].isin(BLOCK_COLOURS)]
        quartiles = [name for name in own if str(name).endswith(("low", "median", "high"))]
        for block in [block for block in BLOCK_COLOURS if block in set(own["block"])]:
            ranks = own[own["block"] == block]
            # The mean over seeds, for ranks that at least half of the block's matrices have.
            table = ranks[ranks["n"] >= ranks["n"].max() / 2].groupby("rank")[quartiles].mean()
            colour = BLOCK_COLOURS[block]
            axes.fill_between(table.index, table["low"], table["high"], color=colour, alpha=0.13, linewidth=0)
            axes.plot(table.index, table["median"], color=colour, linewidth=1.7, label=block)
            if "null_median" in table:
                axes.plot(table.index, table["null_median"], color=colour, linewidth=1, linestyle="--")
        axes.set_title(phase, fontsize=10, fontweight="bold")
        plain(axes)
    for axes in panels.flat[len(phases) :]:
        axes.set_visible(False)
    lines = {str(line.get_label()): line for axes in panels.flat for line in axes.lines}
    blocks = [block for block in BLOCK_COLOURS if block in lines]
    figure.legend(
        [lines[block] for block in blocks], blocks, frameon=False, fontsize=8.5, ncols=5, loc="outside upper center"
    )
    figure.supxlabel("rank i (dashed: the same changes, shuffled)", fontsize=9.5)
    figure.supylabel("log(σᵢ / σ₁)", fontsize=9.5)
    return figure


def draw_geometry(tables: DeltaTables) -> "Figure | None":
    """Draws the cosine of two phases' deltas and the overlap of their leading subspaces over depth."""
    import pandas as pd

    geometry = tables.geometry
    if geometry is None or geometry.empty:
        return None
    with_subspaces = "left_overlap" in geometry and geometry["left_overlap"].notna().any()
    figure, panels = _depth_panels(tables, 2 if with_subspaces else 1, 5.4 if with_subspaces else 3.4)
    geometry = geometry.assign(pair=geometry["phase_a"] + " · " + geometry["phase_b"])
    pairs = list(dict.fromkeys(geometry["pair"]))
    sums = geometry.groupby(["pair", "region", "layer"], sort=False, dropna=False)
    cosines = sums[["dot_product", "first_squares", "second_squares"]].sum().reset_index()
    cosines["cosine"] = cosines["dot_product"] / (cosines["first_squares"] * cosines["second_squares"]).pow(0.5)
    chances = []
    for pair in pairs:
        first, second = pair.split(" · ")
        colour, linestyle = model_colour(second, tables.phases), "-" if first == tables.phases[0] else ":"
        own = cosines[cosines["pair"] == pair]
        _line(panels[0], tables, own, "cosine", pair, colour=colour, linestyle=linestyle)
        if with_subspaces:
            own = geometry[geometry["pair"] == pair].dropna(subset=["left_overlap"])
            own = own.assign(
                overlap=(own["left_overlap"] + own["right_overlap"]) / 2,
                chance=(own["left_chance"] + own["right_chance"]) / 2,
            )
            _line(panels[1], tables, own, "overlap", pair, colour=colour, linestyle=linestyle)
            chances.append(own)
    if with_subspaces:
        chance = pd.concat(chances)
        _line(panels[1], tables, chance, "chance", "by chance", colour=NULL_COLOUR, linestyle="--", marker="")
    panels[0].axhline(0, color=NULL_COLOUR, linewidth=0.8)
    panels[0].margins(y=0.16)  # room for the blocks' names
    panels[0].set_ylabel("cosine of the deltas")
    if with_subspaces:
        panels[1].set_ylabel("overlap of leading subspaces")
        panels[1].set_ylim(bottom=0)
    panels[0].legend(
        *panels[-1].get_legend_handles_labels(), frameon=False, fontsize=8.5, ncols=4, loc="lower center",
        bbox_to_anchor=(0.5, 1.09),
    )  # fmt: skip
    return figure


FIGURES: dict[str, Callable[[DeltaTables], "Figure | None"]] = {
    "energy": draw_energy,
    "changed": draw_changed,
    "ranks": draw_ranks,
    "decay": draw_decay,
    "geometry": draw_geometry,
}


def draw_all(tables: DeltaTables, directory: Path) -> None:
    """Draws all figures for which there are tables, as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    for name, draw in FIGURES.items():
        figure = draw(tables)
        if figure is None:
            continue
        with partial_file(directory / f"{name}.png") as partial:
            figure.savefig(partial, dpi=RESOLUTION_DPI, format="png", metadata={"Software": None})
        plt.close(figure)


def _depth_panels(tables: DeltaTables, num_rows: int, height: float) -> tuple["Figure", "list[Axes]"]:
    """Returns panels whose horizontal axis is the model's depth, regions shaded and blocks marked."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(num_rows, 1, figsize=(9.2, height), sharex=True, squeeze=False, layout="constrained")
    places = tables.places
    decoder = tables.layers[tables.layers["region"] == "llm"].drop_duplicates("layer").set_index("layer")["block"]
    for row, axes in enumerate(panels[:, 0]):
        for region, shade in SHADES.items():
            own = [position for position, place in enumerate(places) if place[0] == region]
            if own:
                axes.axvspan(own[0] - 0.5, own[-1] + 0.5, color=shade, zorder=0, linewidth=0)
                if row == 0:
                    axes.text(sum(own) / len(own), 1.01, REGION_TITLES[region], ha="center", va="bottom", fontsize=8.5,
                              color="#555555", transform=axes.get_xaxis_transform())  # fmt: skip
        for block in BLOCKS:
            own = [places.index(("llm", int(layer))) for layer in decoder.index[decoder == block]]
            if own and block != BLOCKS[0]:
                axes.axvline(own[0] - 0.5, color="#aaaaaa", linewidth=0.8, linestyle=":")
            if own and row == 0:
                axes.text(sum(own) / len(own), 0.985, block, ha="center", va="top", fontsize=8, color="#777777",
                          transform=axes.get_xaxis_transform())  # fmt: skip
        plain(axes)
        axes.set_xlim(-0.7, len(places) - 0.3)
    step = max(1, round(len(places) / 30))
    shown = [position for position, (_, layer) in enumerate(places) if layer is None or layer % step == 0]
    labels = [_place_label(*places[position]) for position in shown]
    panels[-1, 0].set_xticks(shown, labels, fontsize=8)
    for label, text in zip(panels[-1, 0].get_xticklabels(), labels, strict=True):
        if not text.isdigit():
            label.set(rotation=90, fontsize=7)
    return figure, list(panels[:, 0])


def _place_label(region: str, layer: int | None) -> str:
    if layer is not None:
        return str(layer)
    return {"vision": "patches", "projector": "proj."}.get(region, region)


def _line(
    axes: "Axes", tables: DeltaTables, table: "pd.DataFrame", column: str, label: str, *, colour: str | None = None,
    linestyle: str = "-", marker: str = "o",
) -> None:  # fmt: skip
    """Draws one line over depth: the median over seeds and matrices at each position, without zeros."""
    places = tables.places
    middle = table.groupby(["region", "layer"], dropna=False)[column].median().reset_index()
    values = {
        (region, None if layer != layer else int(layer)): float(value)
        for region, layer, value in middle.itertuples(index=False)
    }
    nothing = float("nan")
    logarithmic = axes.get_yscale() == "log"
    heights = [values.get(place, nothing) for place in places]
    heights = [nothing if logarithmic and height == 0 else height for height in heights]
    colour = colour or model_colour(label, tables.phases)
    for region in FORWARD_ORDER:  # no lines across regions
        own = [position for position, place in enumerate(places) if place[0] == region]
        axes.plot(
            own, [heights[position] for position in own], color=colour, linestyle=linestyle, linewidth=1.5,
            marker=marker if region in SHADES else "D" if marker else "_", markersize=3.2,
            label=label if region == "llm" else None,
        )  # fmt: skip


def _mark_zeros(axes: "Axes", tables: DeltaTables, column: str) -> None:
    """Marks exact zeros, which a logarithmic scale cannot show, at the bottom, arms next to each other."""
    bottom = axes.get_ylim()[0]
    places = tables.places
    for order, phase in enumerate(tables.phases):
        table = tables.layers[(tables.layers["phase"] == phase) & (tables.layers[column] == 0)]
        zeros = {
            places.index((region, None if layer != layer else int(layer)))
            for region, layer in zip(table["region"], table["layer"], strict=True)
        }
        if not zeros:
            continue
        offset = (order - (len(tables.phases) - 1) / 2) * 0.12
        axes.plot(
            [position + offset for position in sorted(zeros)], [bottom] * len(zeros), linestyle="", marker="|",
            markersize=9, markeredgewidth=2, color=model_colour(phase, tables.phases), clip_on=False, zorder=5,
        )  # fmt: skip
    axes.set_ylim(bottom=bottom)
    if (tables.layers[column] == 0).any():
        axes.set_xlabel("coloured ticks on the axis: exactly zero, as frozen layers are", fontsize=8, color="#777777")
