"""What does a swap say when it ends? Per task and mode, in which layers answers move to the other picture's."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from analyze.swap.tables import NO_LAYER
from eval.display.formatting import format_share
from models.blocks import format_layers
from tracking.tables import format_first, read_table

if TYPE_CHECKING:
    import pandas as pd

METRIC, SUBSET = "moved_to_source", "right"
"""Of pairs that the model answers correctly without a swap: does the answer become the other picture's?"""
FROM = "from"
EDGE = 0.1
"""Answers move between the layers at which 90 % and 10 % of the largest share are left."""
HALF = 0.5


def summary(output_dir: Path) -> list[str]:
    """Returns the lines about `rates.csv` and `controls.csv`.

    In the mode `from` answers move in the layers over which the share falls from 90 % to 10 % of its largest; in the
    others, in the layers whose share is at least half the largest.
    """
    rates = read_table(output_dir / "rates.csv")
    chosen = rates[(rates["metric"] == METRIC) & (rates["subset"] == SUBSET) & (rates["block"] != NO_LAYER)]
    rows = [["set", "task", "mode", "pairs", "answers move in layers", "most", "last layer"]]
    for labels, own in chosen.groupby(["set", "task", "mode"], sort=False):
        name, task, mode = map(str, labels)
        ordered = own.sort_values("layer")
        known = ordered[ordered["n"] > 0]
        if known.empty:
            rows.append([name, task, mode, "0", "no pair is answered correctly", "", ""])
            continue
        moving = moving_layers(known["rate"].tolist(), known["layer"].tolist(), falls=mode == FROM)
        most = known.iloc[int(known["rate"].to_numpy().argmax())]
        rows.append(
            [
                name,
                task,
                mode,
                f"{known['n'].max():.0f}",
                format_layers(moving) or "none",
                f"{_share(most)} at layer {most['layer']}",
                _share(known.iloc[-1]),
            ]
        )
    return [
        "share of correctly answered pairs whose answer moves to the other picture's, with 95 % intervals",
        *format_first(rows, right=(3,), table="rates.csv"),
        *control_lines(read_table(output_dir / "controls.csv")),
    ]


def _share(row: "pd.Series") -> str:
    return format_share(row["rate"], row["low"], row["high"])


def moving_layers(rates: Sequence[float], layers: Sequence[int], *, falls: bool) -> list[int]:
    """Returns the layers in which answers move.

    Args:
        rates: the share that moves, by layer.
        layers: their numbers.
        falls: each rate is that of a swap from its layer on, and not in its layer alone.
    """
    most = max(rates)
    if not most:
        return []
    if not falls:
        return [layer for layer, rate in zip(layers, rates, strict=True) if rate >= HALF * most]
    # A swap from layer k on still moves the answer where layers >= k read the picture. So the answer is read from the
    # last layer at which nearly all move, to the one before the first from which on nearly none does.
    values = np.array([*rates, 0.0])
    first = int(np.flatnonzero(values >= (1 - EDGE) * most)[-1])
    last = int(np.flatnonzero(values > EDGE * most)[-1])
    return list(layers[first : last + 1])


def control_lines(controls: "pd.DataFrame") -> list[str]:
    """Returns a line about the controls of all sets and modes."""
    found = []
    for name, own in controls.groupby("control", sort=False):
        num_failed = int(own["num_differs"].sum())
        ties = f", {own['num_tie'].sum():.0f} of them as ties" if own["num_tie"].sum() else ""
        passed = "failed" if num_failed else "passed"
        found.append(f"{name} {passed} ({own['n'].sum() - num_failed:.0f} of {own['n'].sum():.0f}{ties})")
    return [f"controls: {', '.join(found)}"]
