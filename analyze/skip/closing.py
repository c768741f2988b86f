"""What does a skip say when it ends? The layers that matter most, every block, and whether the control held."""

from pathlib import Path
from typing import TYPE_CHECKING

from analyze.skip.plan import KINDS, NONE
from eval.display.formatting import format_difference, format_share, percent, probability
from tracking.tables import format_columns, read_table

if TYPE_CHECKING:
    import pandas as pd

NUM_LAYERS = 3
"""The layers named of a task and ability, by their drop."""
LAYERS, BLOCKS = KINDS[:2]


def summary(output_dir: Path) -> list[str]:
    """Returns the lines about `rates.csv` and `controls.csv`."""
    rates = read_table(output_dir / "rates.csv")
    rows = [["task", "ability", "left out", "n", "accuracy", "drop, in points", "p, corrected"]]
    for _, own in rates.groupby(["task", "ability"], sort=False):
        rows += [_row(row) for _, row in _chosen(own).iterrows()]
    lines = format_columns(rows, right=(3,))
    further = closing_lines(read_table(output_dir / "controls.csv"), rates)
    return [*lines, *further]


def _chosen(own: "pd.DataFrame") -> "pd.DataFrame":
    """Returns the model as it is, its layers of the largest drops, the blocks, and the worst of any other kind."""
    import pandas as pd

    ordered = own.sort_values("drop", ascending=False, kind="stable")
    parts = [own[own["kind"] == NONE], ordered[ordered["kind"] == LAYERS].head(NUM_LAYERS), own[own["kind"] == BLOCKS]]
    others = ordered[~ordered["kind"].isin([NONE, LAYERS, BLOCKS])]
    parts.append(others.groupby("kind", sort=False).head(1))
    return pd.concat(parts)


def _row(row: "pd.Series") -> list[str]:
    nothing_left_out = row["kind"] == NONE
    return [
        row["task"],
        row["ability"],
        "nothing" if nothing_left_out else row["configuration"],
        f"{row['n']:.0f}",
        format_share(row["accuracy"], row["low"], row["high"]),
        "" if nothing_left_out else format_difference(row["drop"], row["drop_low"], row["drop_high"]),
        "" if nothing_left_out else probability(row["p_holm"]),
    ]


def closing_lines(controls: "pd.DataFrame", rates: "pd.DataFrame") -> list[str]:
    """Returns the lines about the control, and about how the replies with parts left out ended."""
    lines = [
        f"control {'passed' if row['holds'] else 'failed'}: {row['task']}: with nothing left out "
        f"{row['num_equal_replies']} of {row['n']} replies are the plain model's"
        for _, row in controls.iterrows()
    ]
    own = rates[rates["configuration"] != NONE]
    if own.empty:
        return lines
    return [
        *lines,
        f"replies with parts left out: {percent(own['at_limit_frac'].mean())} % ran to the limit, "
        f"{percent(own['repetition_frac'].mean())} % repeated themselves and were ended, "
        f"{own['num_unscored'].sum():.0f} could not be judged",
    ]
