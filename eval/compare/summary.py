"""What does a comparison say when it ends? Every model's difference to the baseline, ability by ability."""

from pathlib import Path
from typing import TYPE_CHECKING

from eval.compare.scope import LEVEL, counted_tests, covers, is_significant, read_comparison, row_about
from eval.compare.sentences import with_labels
from eval.display.formatting import NOTHING, format_difference, format_share
from eval.statistics.differences import POOLED
from eval.statistics.pairing import ABILITY, ACCURACY
from tracking.tables import format_first

if TYPE_CHECKING:
    import pandas as pd

NUM_ABILITIES = 3
"""As many fit beside each other."""
NAMES = {ACCURACY: "accuracy", ABILITY: "ability by the paper's definition"}


def summary(output_dir: Path, *, baseline: str) -> list[str]:
    """Returns the lines about `comparison.csv`: pooled differences in points, and the share of the gain that is kept.

    Accuracy first; then the paper's abilities, if their conditions were asked, where they have other numbers.
    """
    pooled = read_comparison(output_dir / "comparison.csv")
    pooled = pooled[pooled["seed"].astype(str) == POOLED]
    own = with_labels(pooled[pooled["against"] == baseline])
    lines: list[str] = []
    for metric in (ACCURACY, ABILITY):
        rows = own[own["metric"] == metric]
        if not rows.empty:
            lines += [*_table(rows, metric, baseline), *_kept(rows)]
    return lines


def _table(own: "pd.DataFrame", metric: str, baseline: str) -> list[str]:
    groups = list(dict.fromkeys(zip(own["task"], own["ability"], strict=True)))
    several = len({task for task, _ in groups}) > 1
    lines = [
        f"{NAMES[metric]} less {baseline}, in points, with 95 % intervals over {covers(own['scope'])}",
        f"*: significant, p < {LEVEL:g} after Holm's correction for {counted_tests(own['num_tests'].max())}",
    ]
    for first in range(0, len(groups), NUM_ABILITIES):
        shown = groups[first : first + NUM_ABILITIES]
        rows = [["model", "about", *(f"{task} {ability}" if several else ability for task, ability in shown)]]
        for model in dict.fromkeys(own["arm"]):
            about = row_about(own[own["arm"] == model].iloc[0])
            rows.append([model, about, *(_cell(own, model, *group) for group in shown)])
        lines += format_first(rows, right=(), table="comparison.csv")
    return lines


def _cell(table: "pd.DataFrame", model: str, task: str, ability: str) -> str:
    found = table[(table["arm"] == model) & (table["task"] == task) & (table["ability"] == ability)]
    if found.empty:
        return NOTHING
    row = found.iloc[0]
    return format_difference(row["difference"], row["low"], row["high"]) + (" *" if is_significant(row) else "")


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
