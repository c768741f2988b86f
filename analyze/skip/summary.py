"""What does a skip say when it ends? The layers that matter most, every block, and whether the control held."""

from pathlib import Path
from typing import TYPE_CHECKING

from analyze.skip.plan import KINDS, NONE
from eval.display.formatting import format_difference, format_share, percent
from eval.statistics.power import ALPHA
from tracking.tables import format_first, read_table

if TYPE_CHECKING:
    import pandas as pd

NUM_LAYERS = 2
"""The layers named of a task and ability, by their drop."""
LAYERS, BLOCKS = KINDS[:2]


def summary(output_dir: Path) -> list[str]:
    """Returns the lines about `rates.csv` and `controls.csv`: a row per task and ability, with its largest drops."""
    rates = read_table(output_dir / "rates.csv")
    kinds = [kind for kind in dict.fromkeys(rates["kind"]) if kind != NONE]
    shown = [kind for kind in (LAYERS, BLOCKS) if kind in kinds] or kinds[:1]
    rows = [["task", "ability", "n", "nothing left out", *(f"largest drops, {kind}" for kind in shown)]]
    for (task, ability), own in rates.groupby(["task", "ability"], sort=False):
        whole = own[own["kind"] == NONE].iloc[0]
        accuracy = format_share(whole["accuracy"], whole["low"], whole["high"])
        drops = [_drops(own[own["kind"] == kind], NUM_LAYERS if kind == LAYERS else 1) for kind in shown]
        rows.append([str(task), str(ability), f"{whole['n']:.0f}", accuracy, *drops])
    return [
        f"accuracy, and drops in points, with 95 % intervals; *: p < {ALPHA:g}, Holm-corrected",
        *format_first(rows, right=(2,), table="rates.csv"),
        *closing_lines(read_table(output_dir / "controls.csv"), rates),
    ]


def _drops(own: "pd.DataFrame", number: int) -> str:
    """Returns the largest drops of one kind of configuration, largest first."""
    largest = own.sort_values("drop", ascending=False, kind="stable").head(number)
    return ", ".join(
        f"{row['configuration']} {format_difference(row['drop'], row['drop_low'], row['drop_high'])}"
        + (" *" if row["p_holm"] < ALPHA else "")
        for _, row in largest.iterrows()
    )


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
