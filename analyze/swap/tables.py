"""What do a swap's records say? Rates over depth with their intervals, log-probabilities, left-out pairs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from analyze.swap.records import GROUP_COLUMNS, group_records
from analyze.swap.scores import METRICS
from data_builders.pairs.defects import Defect
from eval.statistics.intervals import mean_interval, wilson
from models.blocks import Partition
from tracking.progress import progress
from tracking.records import Record

if TYPE_CHECKING:
    import pandas as pd

SUBSETS: dict[str, Callable[[Record], bool]] = {
    "all": lambda record: True,
    "right": lambda record: record["right"] is True,
}
"""Pairs that count: all of them, or those whose reply without a swap is right."""
CELL_COLUMNS = (*GROUP_COLUMNS, "layer", "block")
RATE_COLUMNS = ("metric", "subset", "n", "rate", "low", "high", "num_unscored")
LOGPROB_COLUMNS = ("subset", "n", "logprob_target", "logprob_source", "shift", "low", "high")
NO_LAYER = "none"
"""The block of a swap from layer L."""


def rate_table(records: Sequence[Record], partition: Partition) -> "pd.DataFrame":
    """Returns a row per set, task, mode, layer, metric and subset: the share of pairs, and how many are unscored."""
    import pandas as pd

    rows = []
    for labels, subset, layer, group in _cells(records, partition):
        for metric in METRICS:
            scores = [record["variants"][layer]["scores"][metric] for record in group]
            scored = [score for score in scores if score is not None]
            rate = wilson(sum(scored), len(scored))
            rows.append(
                {
                    **labels,
                    "metric": metric,
                    "subset": subset,
                    "n": len(scored),
                    "rate": rate.estimate,
                    "low": rate.low,
                    "high": rate.high,
                    "num_unscored": len(scores) - len(scored),
                }
            )
    return pd.DataFrame(rows, columns=[*CELL_COLUMNS, *RATE_COLUMNS])


def logprob_table(records: Sequence[Record], partition: Partition) -> "pd.DataFrame":
    """Returns a row per set, task, mode, layer and subset: mean log-probabilities of both answers and their shift.

    The shift is log p(source's answer) - log p(target's answer), less what that is without a swap, averaged over pairs
    (t interval).
    """
    import pandas as pd

    rows = []
    cells = list(_cells(records, partition))
    for labels, subset, layer, group in progress(cells, label="intervals of log-probabilities", unit="layer"):
        if not group:
            continue
        target, source = (
            np.array([[variant[f"logprob_{side}"] for variant in record["variants"]] for record in group])
            for side in ("target", "source")
        )  # [pairs, layers + 1]
        lead = source - target
        shift = lead[:, layer] - lead[:, -1]
        interval = mean_interval(shift)
        rows.append(
            {
                **labels,
                "subset": subset,
                "n": len(shift),
                "logprob_target": float(target[:, layer].mean()),
                "logprob_source": float(source[:, layer].mean()),
                "shift": float(interval["mean"]),
                "low": float(interval["low"]),
                "high": float(interval["high"]),
            }
        )
    return pd.DataFrame(rows, columns=[*CELL_COLUMNS, *LOGPROB_COLUMNS])


def defect_table(defects: Mapping[str, Sequence[Defect]]) -> "pd.DataFrame":
    """Returns a row per defect that the preflight found, by set."""
    import pandas as pd

    rows = [{"set": name, **asdict(defect)} for name, own in defects.items() for defect in own]
    return pd.DataFrame(rows, columns=["set", *(entry.name for entry in fields(Defect))])


def skipped_table(defects: Mapping[str, Sequence[Defect]], records: Sequence[Record]) -> "pd.DataFrame":
    """Returns a row per pair that was left out and reason: found by the preflight, or with the model at hand."""
    import pandas as pd

    rows = [
        (name, defect.pair_id, defect.kind, defect.text)
        for name, own in defects.items()
        for defect in own
        if defect.is_fatal
    ]
    for record in records:
        if record["left_out"] is not None:
            kind, _, text = record["left_out"].partition(": ")
            rows.append((record["set"], record["id"], kind, text))
    return pd.DataFrame(rows, columns=["set", "pair_id", "kind", "text"]).drop_duplicates()  # one record per mode


def _cells(records: Sequence[Record], partition: Partition) -> Iterator[tuple[dict[str, Any], str, int, list[Record]]]:
    """Yields (labels, subset, layer, records) for every row of a table over depth."""
    for labels, group in group_records(records):
        for subset, counts in SUBSETS.items():
            own = [record for record in group if counts(record)]
            for layer in range(partition.num_layers + 1):
                block = partition.block_of(layer) if layer < partition.num_layers else NO_LAYER
                yield {**labels, "layer": layer, "block": block}, subset, layer, own
