"""How is a table written? Tidy CSV with pandas: one row per unit, stable column order, written atomically."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tracking.product import partial_file

if TYPE_CHECKING:
    import pandas as pd

DECIMALS = 6
"""Significant digits in tables: enough for every rate and interval, few enough that equal runs give equal bytes."""


def write_table(path: Path, table: "pd.DataFrame") -> None:
    """Writes a table as CSV."""
    with partial_file(path) as partial:
        table.to_csv(partial, index=False, float_format=f"%.{DECIMALS}g")


def format_columns(rows: Sequence[Sequence[str]], *, right: Sequence[int]) -> list[str]:
    """Formats rows of text as aligned columns; the given ones are right-aligned."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def format_first(rows: Sequence[Sequence[str]], *, right: Sequence[int], table: str, most: int = 6) -> list[str]:
    """Returns a head and the first so many rows lined up, and how many more the table holds."""
    more = len(rows) - 1 - most
    lines = format_columns(rows[: 1 + most], right=right)
    return [*lines, f"… {more} more in {table}"] if more > 0 else lines


def read_table(path: Path) -> "pd.DataFrame":
    """Reads a table; a missing one is an error that names it."""
    import pandas as pd

    if not path.is_file():
        raise ValueError(f"{path} does not exist; run the command that writes it first")
    return pd.read_csv(path)
