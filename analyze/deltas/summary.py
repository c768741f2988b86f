"""What does a measurement of weight changes say when it ends? Relative change and changed share by block, verdicts."""

from pathlib import Path

from analyze.deltas.tables import LABELS
from eval.display.formatting import NOTHING
from models.blocks import ALL_REGIONS, BLOCKS
from tracking.tables import format_first, read_table

NUM_ROWS = 4
COLUMNS = {
    "relative_energy": "relative change ‖Δ‖/‖W‖, %",
    "changed_frac": "changed elements, %",
    "merged_changed_frac": "adapters: changed by merging, %",
    "merged_cosine": "adapters: cosine of merged and exact change, %",
}
VERDICTS = {"num_identical": "identical", "num_at_floor": "at the floor of rounding", "num_above_floor": "above it"}


def summary(output_dir: Path) -> list[str]:
    """Returns the lines about `blocks.csv`: of each phase or arm ‖Δ‖/‖W‖ and the share of changed elements."""
    table = read_table(output_dir / "blocks.csv")
    table["seed"] = table["seed"].astype(object).where(table["seed"].notna(), "")
    blocks = [block for block in (*BLOCKS, *ALL_REGIONS) if (table["block"] == block).any()]
    lines = []
    for column, title in COLUMNS.items():
        if column not in table:
            continue
        rows = [[title, *blocks]]
        shown = table[table.groupby(LABELS)[column].transform("count") > 0]
        for labels, own in shown.groupby(LABELS, sort=False):
            values = own.set_index("block")[column]
            rows.append([_name(*labels), *(_percent(values.get(block)) for block in blocks)])
        lines += format_first(rows, right=range(1, len(rows[0])), most=NUM_ROWS, table="blocks.csv")
    for labels, own in table.groupby(LABELS, sort=False) if "num_identical" in table else ():
        counts = ", ".join(f"{own[column].sum():.0f} {words}" for column, words in VERDICTS.items())
        lines.append(f"tensors of {_name(*labels)}: {counts}")
    return lines


def _name(phase: object, seed: object) -> str:
    number = f"{seed:.0f}" if isinstance(seed, float) else str(seed)
    return f"{phase}@{number}" if number else str(phase)


def _percent(value: float | None) -> str:
    return NOTHING if value is None or value != value else f"{100 * value:.3g}"
