"""How are prompts balanced? The same number in every cell, a combination of values such as modality and class."""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from data_builders.prompt_sets.fields import check_field, field_value
from data_builders.prompt_sets.prompts import Prompt
from tracking.tables import format_columns

if TYPE_CHECKING:
    import pandas as pd

NO_VALUE = "(none)"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """The prompts of one combination of values."""

    values: tuple[str, ...]
    """In the order of the fields; `(none)` for prompts without a field."""
    num_prompts: int
    num_eligible: int
    num_kept: int


def balance_prompts(
    prompts: Sequence[Prompt],
    eligible: Collection[str],
    fields: Sequence[str],
    *,
    per_cell: int | None,
    seed: int,
    where: str,
) -> tuple[set[str], list[Cell]]:
    """Chooses the same number of eligible prompts in every cell that has any.

    Which ones depends only on the seed and their ids.

    Args:
        prompts: all prompts; they determine the cells.
        eligible: ids of the prompts that may be chosen.
        per_cell: number per cell, or all of a cell that has fewer; None: as many as the rarest cell has.
        where: the prompts, named at the beginning of an error.

    Returns:
        The ids of the chosen prompts, and every cell, in the order of its values; cells without an eligible prompt too.

    Raises:
        ValueError: for a field that no prompt has.
    """
    for name in fields:
        check_field(prompts, name, where=where)
    members: dict[tuple[str, ...], list[str]] = {}
    for prompt in prompts:
        values = tuple(field_value(prompt, name) or NO_VALUE for name in fields)
        members.setdefault(values, []).append(prompt.id)
    able = {values: [name for name in ids if name in eligible] for values, ids in members.items()}
    number = min((len(ids) for ids in able.values() if ids), default=0) if per_cell is None else per_cell
    chosen = {values: sorted(ids, key=lambda name: _draw(seed, name))[:number] for values, ids in able.items()}
    cells = [
        Cell(
            values=values,
            num_prompts=len(members[values]),
            num_eligible=len(able[values]),
            num_kept=len(chosen[values]),
        )
        for values in sorted(members)
    ]
    return {name for ids in chosen.values() for name in ids}, cells


def cell_table(cells: Sequence[Cell], fields: Sequence[str]) -> "pd.DataFrame":
    """Returns a row per cell: its values, its prompts, and what the band and balancing drop."""
    import pandas as pd

    return pd.DataFrame(
        {
            **dict(zip(fields, cell.values, strict=True)),
            "n": cell.num_prompts,
            "num_in_band": cell.num_eligible,
            "num_kept": cell.num_kept,
            "num_dropped_by_band": cell.num_prompts - cell.num_eligible,
            "num_dropped_by_balancing": cell.num_eligible - cell.num_kept,
        }
        for cell in cells
    )


def cell_lines(cells: Sequence[Cell], fields: Sequence[str], *, per_cell: int | None) -> list[str]:
    """Formats the cells, what balancing costs, and the cells that are empty or too small."""
    counts = [(cell.num_prompts, cell.num_eligible, cell.num_kept) for cell in cells]
    rows = [[*cell.values, *map(str, numbers)] for cell, numbers in zip(cells, counts, strict=True)]
    header = [*fields, "n", "num_in_band", "num_kept"]
    total, able, kept = (sum(column) for column in zip(*counts, strict=True))
    lines = format_columns([header, *rows], right=range(len(fields), len(header)))
    lines.append(
        f"balanced by {', '.join(fields)}: {kept} of {total} prompts kept; the band drops {total - able}, balancing "
        f"{able - kept} of the {able} in the band"
    )
    empty = [cell for cell in cells if not cell.num_eligible]
    short = [cell for cell in cells if per_cell is not None and 0 < cell.num_kept < per_cell]
    for few, words in ((empty, "without a prompt"), (short, f"with fewer than {per_cell} prompts")):
        if few:
            lines.append(f"cells {words} in the band: {'; '.join(', '.join(cell.values) for cell in few)}")
    return lines


def _draw(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}/{name}".encode()).digest()
