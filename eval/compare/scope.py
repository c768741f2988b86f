"""What is a row of a comparison about, and is its difference significant? One wording for all pages and summaries.

A statement about training needs an interval over several training runs (`scope` is `training`). Every other statement
is about the checkpoints that were evaluated, and says "in this run".
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.statistics.pooled import CHECKPOINTS, TRAINING
from tracking.tables import read_table

if TYPE_CHECKING:
    import pandas as pd

LEVEL = 0.05
"""Of a corrected p; below it a difference is called significant."""
MARGIN = 0.05
"""Two models are called equal if two one-sided tests show that they differ by less than five points."""
IN_THIS_RUN = "in this run"
ABOUT = {TRAINING: "About training", CHECKPOINTS: "About these checkpoints"}
"""Scope -> the label of a section."""
NEEDED = ("scope", "family", "seed_degrees", "equivalent_within")


def read_comparison(path: Path) -> "pd.DataFrame":
    """Reads a `comparison.csv` and adds `num_tests`, the number of tests that each row's p-value is corrected for.

    Raises:
        ValueError: if an older version wrote it, without scopes.
    """
    return with_num_tests(read_current(path, "eval.compare", NEEDED))


def read_current(path: Path, command: str, needed: Sequence[str]) -> "pd.DataFrame":
    """Reads a table of a command.

    Raises:
        ValueError: if it is no CSV table, or an older version wrote it, without these columns.
    """
    from pandas.errors import EmptyDataError, ParserError

    try:
        table = read_table(path)
    except (EmptyDataError, ParserError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a CSV table; expected one that {command} wrote") from error
    missing = [column for column in needed if column not in table.columns]
    if missing:
        raise ValueError(
            f"{path} has no column {missing[0]!r}: an older {command} wrote it; run that command again with "
            f"--overwrite, or name a table of {command}"
        )
    return table


def with_num_tests(table: "pd.DataFrame") -> "pd.DataFrame":
    """Returns the rows with `num_tests`, the number of tests in the row's family."""
    sizes = table.loc[table["p"].notna(), "family"].value_counts()
    return table.assign(num_tests=table["family"].map(sizes).fillna(0).astype(int))


def is_significant(row: Any) -> bool:
    return bool(row["p_holm"] < LEVEL)


def excludes_zero(low: float, high: float) -> bool:
    return bool(low > 0 or high < 0)


def verdict(row: Any) -> str:
    """Says whether a difference is significant, so that it agrees with the interval that is shown beside it."""
    return verdict_of(row["p_holm"], row["low"], row["high"], row["num_tests"])


def verdict_of(p_holm: float, low: float, high: float, num_tests: float) -> str:
    """Says whether a corrected p-value is significant; names the correction if the 95 % interval excludes zero."""
    if p_holm < LEVEL:
        return "significant"
    if excludes_zero(low, high):
        return f"not significant after correction for {counted_tests(num_tests)}"
    return "not significant"


def counted_tests(number: float) -> str:
    return f"{int(number)} test{'' if number == 1 else 's'}"


def corrections(rows: "pd.DataFrame") -> str:
    """Says for how many tests p-values are corrected: `9 tests`, or `15 tests against sft and 12 against full`."""
    sizes = rows.groupby("against", sort=False)["num_tests"].max().astype(int)
    if len(sizes) < 2:
        return counted_tests(sizes.max() if len(sizes) else 0)
    first, *others = sizes.items()
    return " and ".join(
        [f"{counted_tests(first[1])} against {first[0]}", *(f"{n} against {name}" for name, n in others)]
    )


def equality(row: Any) -> str:
    """Says whether two models are equal within the margin; otherwise that this is undecided, never that they differ."""
    within, margin = 100 * row["equivalent_within"], f"{100 * MARGIN:.0f} points"
    if within <= 100 * MARGIN:
        return f"equal within {margin}"
    shown = math.ceil(round(10 * within, 6)) / 10  # rounded up: less was not shown
    return f"undecided whether equal within {margin} (shown: within {shown:.1f})"


def num_seeds(row: Any) -> str:
    """Formats the number of training seeds: `4`, or `4 and 3` if the two models differ in it."""
    own, other = int(row["num_seeds"]), int(row["num_seeds_against"])
    return f"{own} and {other}" if own != other and min(own, other) > 1 else str(max(own, other))


def runs(row: Any) -> str:
    """Returns what a row's interval covers besides prompts: `over 4 training seeds`, or `in this run`."""
    return f"over {num_seeds(row)} training seeds" if row["scope"] == TRAINING else IN_THIS_RUN


def row_about(row: Any) -> str:
    """Returns the cell of a table that says what a row is about: `training, 4 seeds`, or `checkpoints`."""
    return f"training, {num_seeds(row)} seeds" if row["scope"] == TRAINING else "checkpoints"


def about(scopes: Iterable[Any]) -> str:
    """Returns the label of a section: whether its statements are about training, about these checkpoints, or both."""
    found = {TRAINING if scope == TRAINING else CHECKPOINTS for scope in scopes}
    if len(found) < 2:
        return ABOUT[found.pop()] if found else ""
    return f"{ABOUT[TRAINING]} if seeds are named, otherwise about these checkpoints"


def covers(scopes: Iterable[Any]) -> str:
    """Returns what 95 % intervals cover: `new prompts and new training seeds`, or `new prompts only`."""
    found = {scope == TRAINING for scope in scopes}
    if found == {True}:
        return "new prompts and new training seeds"
    return "new prompts only" if True not in found else "new prompts and, for models with several seeds, new seeds"


def in_this_run(sentence: str) -> str:
    """Returns a sentence as one about these checkpoints; a verdict in front of a colon stays in front."""
    head, colon, rest = sentence.partition(": ")
    if colon and head in ("Undecided", "Yes", "No", "In part", "Not shown"):
        return f"{head}, {IN_THIS_RUN}: {rest}"
    return f"I{IN_THIS_RUN[1:]}, {sentence[0].lower()}{sentence[1:]}"
