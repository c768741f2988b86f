"""How much does each part matter? Accuracy with parts left out, against the same problems with nothing left out.

A drop is a difference of paired proportions with its interval (`eval/statistics/pooled.py`): a part whose absence
changes no answer of sixty has one too. P-values are corrected (Holm) over the configurations of one kind. Rows are
about this checkpoint.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from analyze.skip.plan import NONE, Configuration
from eval.grading import CORRECT, UNSCORED
from eval.replies.decoding import REPETITION
from eval.statistics.intervals import holm, wilson
from eval.statistics.pooled import single_runs
from models.blocks import Partition
from tracking.records import Record

if TYPE_CHECKING:
    import pandas as pd

DROP_COLUMNS = ("num_compared", "num_lost", "num_gained", "drop", "drop_low", "drop_high", "p")


def rate_table(
    records: Sequence[Record], configurations: Sequence[Configuration], partition: Partition
) -> "pd.DataFrame":
    """Returns a row per task, ability and configuration."""
    import pandas as pd

    grouped: dict[tuple[str, str], dict[str, dict[str, Record]]] = {}
    for record in records:
        group = grouped.setdefault((record["task"], record["ability"]), {})
        group.setdefault(record["configuration"], {})[record["id"]] = record
    rows: list[dict[str, Any]] = []
    for (task, ability), answers in grouped.items():
        for configuration in configurations:
            own = answers[configuration.name]
            single = configuration.layers[0] if len(configuration.layers) == 1 else None
            blocks = {partition.block_of(layer) for layer in configuration.layers}
            rows.append(
                {
                    "task": task,
                    "ability": ability,
                    "configuration": configuration.name,
                    "kind": configuration.kind,
                    "layer": single,
                    "block": blocks.pop() if len(blocks) == 1 else None,
                    **_accuracy(list(own.values())),
                    **(dict.fromkeys(DROP_COLUMNS) if configuration.kind == NONE else _drop(answers[NONE], own)),
                }
            )
    table = pd.DataFrame(rows).astype({"layer": "Int64"})
    table["p_holm"] = np.nan
    for _, family in table.groupby(["task", "ability", "kind"]):
        known = family["p"].dropna()
        table.loc[known.index, "p_holm"] = holm(known.to_numpy(float))
    return table


def _accuracy(group: Sequence[Record]) -> dict[str, Any]:
    scored = [record for record in group if record["status"] != UNSCORED]
    rate = wilson(sum(record["status"] == CORRECT for record in scored), len(scored))
    return {
        "n": len(scored),
        "accuracy": rate.estimate,
        "standard_error": rate.standard_error,
        "low": rate.low,
        "high": rate.high,
        "num_unscored": len(group) - len(scored),
        "at_limit_frac": sum(record["finish_reason"] == "length" for record in group) / len(group),
        "repetition_frac": sum(record["finish_reason"] == REPETITION for record in group) / len(group),
        "mean_tokens": sum(record["num_tokens"] for record in group) / len(group),
    }


def _drop(whole: dict[str, Record], own: dict[str, Record]) -> dict[str, Any]:
    both = [name for name in whole if UNSCORED not in (whole[name]["status"], own[name]["status"])]
    before, after = (np.array([answers[name]["status"] == CORRECT for name in both], bool) for answers in (whole, own))
    if not both:
        return dict.fromkeys(DROP_COLUMNS) | {"num_compared": 0, "num_lost": 0, "num_gained": 0}
    found = single_runs(before, after)
    drop = found.one()
    lost, gained = int(np.sum(before & ~after)), int(np.sum(~before & after))
    values = (len(both), lost, gained, drop.estimate, max(drop.low, -1), min(drop.high, 1), float(found.p()[0]))
    return dict(zip(DROP_COLUMNS, values, strict=True))
