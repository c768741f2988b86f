"""When did what change? The tables of trajectories: a row per place and step, and a row per place.

    matrices.csv, layers.csv, blocks.csv    per tensor, decoder layer, block or region (and all of the model), and step
    lines.csv                               per place of every level: how straight its trajectory is

Figures of a layer or block are those of its tensors taken as one vector.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from analyze.trajectory.plan import Series, TrajectoryPlan
from merge.trajectories.line import fit_line, half_step
from models.blocks import ALL_REGIONS, BLOCKS
from tracking.records import Record

if TYPE_CHECKING:
    import pandas as pd

TENSOR, LAYER, BLOCK, ALL = "tensor", "layer", "block", "all"
LEVELS = {TENSOR: "matrices", LAYER: "layers", BLOCK: "blocks"}
"""Level -> table; `all` is a row of the blocks."""
PLACE = ("block", "region", "layer", "tensor")


def places(plan: TrajectoryPlan, records: Iterable[Record]) -> list[tuple[str, dict[str, Any], list[Record]]]:
    """Returns every place of every level with the records of its tensors, as (level, place, records), by depth."""
    found: dict[tuple[str, Any], tuple[str, dict[str, Any], list[Record]]] = {}

    def add(level: str, key: Any, place: Mapping[str, Any], record: Record) -> None:
        whole = {name: place.get(name) for name in PLACE}
        found.setdefault((level, key), (level, whole, []))[2].append(record)

    for record in records:
        place = plan.place(record["tensor"])
        add(TENSOR, record["tensor"], place, record)
        if place["region"] == "llm":
            add(LAYER, place["layer"], {"block": place["block"], "region": "llm", "layer": place["layer"]}, record)
        add(BLOCK, place["block"], {"block": place["block"], "region": place["region"]}, record)
        add(ALL, ALL, {"block": ALL, "region": ALL}, record)
    order = (*BLOCKS, *ALL_REGIONS, ALL)
    return sorted(
        found.values(),
        key=lambda own: (order.index(own[1]["block"]), -1 if own[1]["layer"] is None else own[1]["layer"]),
    )


def step_rows(series: Series, records: Sequence[Record]) -> list[dict[str, Any]]:
    """Returns a place's figures, a row per step."""
    gram = _gram(series, records)
    energies = np.diag(gram)
    line = fit_line(gram, series.steps)
    wide = [record for record in records if "top_squares" in record]
    compared = [record for record in records if "sft_both" in record]
    leading = [record for record in wide if "left_squares" in record]
    wide_energies, leading_energies = (
        _sum(np.diag(np.array(record["gram"])) for record in own) for own in (wide, leading)
    )
    columns: dict[str, Any] = {
        "energy": np.sqrt(energies),
        "relative_energy": np.sqrt(_share(energies, sum(record["start_squares"] for record in records))),
        "changed_frac": _share(_sum(record["num_changed"] for record in records), _count(records)),
        "reached": _share(gram[:, -1], gram[-1, -1]),
        "cosine_final": _share(gram[:, -1], np.sqrt(energies * gram[-1, -1])),
        "coefficient": line.coefficients,
        "rank1_share": _share(_sum(record["top_squares"] for record in wide), wide_energies),
    }
    for side in ("left", "right"):
        inside = _sum(record[f"{side}_squares"] for record in leading)
        random = _sum(record[f"{side}_random"] * np.diag(np.array(record["gram"])) for record in leading)
        columns |= {
            f"{side}_share": _share(inside, leading_energies),
            f"{side}_random": _share(random, leading_energies),
        }
    both = _sum(record["sft_both"] for record in compared)
    squares = sum(record["sft_squares"] for record in compared)
    columns |= {
        "sft_both_frac": _share(both, _count(records) if compared else 0),
        "sft_conflict_frac": _share(_sum(record["sft_opposite"] for record in compared), both),
        "sft_cosine": _share(_sum(record["sft_dots"] for record in compared), np.sqrt(squares * energies)),
    }
    num_steps = len(series.steps)
    filled = {name: np.broadcast_to(np.asarray(values, float), num_steps) for name, values in columns.items()}
    return [
        {"step": step, "num_elements": _count(records), **{name: float(filled[name][row]) for name in filled}}
        for row, step in enumerate(series.steps)
    ]


def line_row(series: Series, records: Sequence[Record]) -> dict[str, Any]:
    """Returns how straight a place's trajectory is."""
    gram = _gram(series, records)
    line = fit_line(gram, series.steps)
    return {
        "num_steps": len(series.steps),
        "last_step": series.steps[-1],
        "final_energy": float(np.sqrt(gram[-1, -1])),
        "trajectory_rank1_share": line.rank1_share,
        "r2": line.r2,
        "slope": line.slope,
        "intercept": line.intercept,
        "half_step": half_step(gram, series.steps),
    }


def make_tables(plan: TrajectoryPlan, records: Sequence[Record]) -> dict[str, "pd.DataFrame"]:
    """Returns the tables by name."""
    import pandas as pd

    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in (*LEVELS.values(), "lines")}
    for series in plan.series:
        own = [record for record in records if record["series"] == series.label]
        labels = {"name": series.name, "seed": series.seed}
        for level, place, members in places(plan, own):
            table = LEVELS[BLOCK if level == ALL else level]
            rows[table] += [{**labels, **place, **row} for row in step_rows(series, members)]
            rows["lines"].append({**labels, "level": level, **place, **line_row(series, members)})
    return {name: pd.DataFrame(own) for name, own in rows.items()}


def _gram(series: Series, records: Sequence[Record]) -> np.ndarray:
    total = np.zeros((len(series.steps),) * 2)
    for record in records:
        if "gram" in record:
            total += np.array(record["gram"])
    return total


def _sum(arrays: Iterable[Any]) -> Any:
    """Returns the sum of arrays over steps, 0 if there are none."""
    return sum((np.asarray(array, float) for array in arrays), start=np.zeros(1))


def _count(records: Sequence[Record]) -> int:
    return sum(record["num_elements"] for record in records)


def _share(part: Any, whole: Any) -> np.ndarray:
    """Returns a ratio, NaN where the whole is zero."""
    part, whole = np.broadcast_arrays(np.asarray(part, float), np.asarray(whole, float))
    ratio: np.ndarray = np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
    return ratio
