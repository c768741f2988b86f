"""What does a comparison say when it ends? Every model's difference to the baseline, ability by ability."""

from pathlib import Path
from typing import TYPE_CHECKING

from eval.display.formatting import NOTHING, format_difference, format_share
from eval.statistics.differences import POOLED
from eval.statistics.pairing import ABILITY, ACCURACY
from eval.statistics.power import ALPHA
from tracking.tables import format_first, read_table

if TYPE_CHECKING:
    import pandas as pd

NUM_ABILITIES = 3
"""As many fit beside each other."""


def summary(output_dir: Path, *, baseline: str) -> list[str]:
    """Returns the lines about `comparison.csv`: pooled differences in points, and the share of the gain that is kept.

    Differences of the paper's abilities where their conditions were asked, else of the accuracy.
    """
    table = read_table(output_dir / "comparison.csv")
    pooled = table[table["seed"].astype(str) == POOLED]
    metric = ABILITY if (pooled["metric"] == ABILITY).any() else ACCURACY
    own = pooled[(pooled["against"] == baseline) & (pooled["metric"] == metric)]
    groups = list(dict.fromkeys(zip(own["task"], own["ability"], strict=True)))
    several = len({task for task, _ in groups}) > 1
    lines = [f"{metric}, less {baseline}, in points with 95 % intervals; *: p < {ALPHA:g}, Holm-corrected"]
    for first in range(0, len(groups), NUM_ABILITIES):
        shown = groups[first : first + NUM_ABILITIES]
        rows = [["model", *(f"{task} {ability}" if several else ability for task, ability in shown)]]
        for model in dict.fromkeys(own["arm"]):
            rows.append([model, *(_cell(own, model, *group) for group in shown)])
        lines += format_first(rows, right=(), table="comparison.csv")
    return [*lines, *_kept(own)]


def _cell(table: "pd.DataFrame", model: str, task: str, ability: str) -> str:
    found = table[(table["arm"] == model) & (table["task"] == task) & (table["ability"] == ability)]
    if found.empty:
        return NOTHING
    row = found.iloc[0]
    return format_difference(row["difference"], row["low"], row["high"]) + (" *" if row["p_holm"] < ALPHA else "")


def _kept(table: "pd.DataFrame") -> list[str]:
    known = table[table["gain_kept"].notna()]
    lines = []
    for (task, ability), own in known.groupby(["task", "ability"], sort=False):
        shares = [
            f"{row['arm']} {format_share(row['gain_kept'], row['gain_kept_low'], row['gain_kept_high'])}"
            for _, row in own[own["gain_kept"] != 1].iterrows()
        ]
        if shares:
            lines.append(f"gain kept, {task} {ability}: {', '.join(shares)}")
    return lines
