"""What does an evaluation say when it ends? Accuracy per task and ability, and what was counted apart."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from eval.display.formatting import format_share, percent
from tracking.run import read_run
from tracking.tables import format_first, read_table

if TYPE_CHECKING:
    import pandas as pd

UNKNOWN = "–"
"""Cell of what another harness did not keep."""


def summary(output_dir: Path) -> list[str]:
    """Returns the lines about `scores.csv`; the definition of an ability only where it could be scored apart."""
    scores = read_table(output_dir / "scores.csv")
    defined = bool(((scores["num_ability"] > 0) & (scores["ability_score"] != scores["accuracy"])).any())
    most = read_run(output_dir)["settings"]["max_new_tokens"]
    limit = "at the limit" if most is None else f"at the limit of {most:,}"
    rows = [["task", "ability", "n", "accuracy", *(["ability score"] if defined else []), "tokens", limit]]
    for _, row in scores.iterrows():
        ability = format_share(*(row[f"ability_{name}"] for name in ("score", "low", "high")))
        rows.append(
            [
                str(row["task"]),
                str(row["ability"]),
                f"{row['n']:.0f}",
                format_share(row["accuracy"], row["low"], row["high"]),
                *([ability] if defined else []),
                UNKNOWN if row.isna()["mean_tokens"] else f"{row['mean_tokens']:.1f}",
                UNKNOWN if row.isna()["at_limit_frac"] else f"{percent(row['at_limit_frac'])} %",
            ]
        )
    numbers = (2, len(rows[0]) - 2, len(rows[0]) - 1)
    return [*format_first(rows, right=numbers, table="scores.csv"), *_counted_apart(scores)]


def _counted_apart(scores: "pd.DataFrame") -> Iterator[str]:
    yield f"replies that could not be judged, not counted as wrong: {scores['num_unscored'].sum():.0f}"
    if (looping := scores["repetition_frac"].max()) > 0:
        yield f"ended because they repeated themselves: up to {percent(looping)} % of an ability's replies"
