"""How much does each part matter? Accuracy with parts left out, against the same problems with nothing left out.

A drop is a difference of paired proportions with its interval (`eval.statistics.intervals.paired_interval`): a part
whose absence changes no answer of sixty has one too. The p-values are McNemar's exact ones, corrected (Holm) over the
configurations of one kind.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from analyze.skip.plan import NONE, Configuration
from eval.grading import CORRECT, UNSCORED
from eval.statistics.intervals import holm, mcnemar, paired_interval, wilson
from models.blocks import Partition
from tracking.records import Record

if TYPE_CHECKING:
    import pandas as pd

PLAIN = "plain"
"""The configuration under which the model's own answers stand, made without this probe."""
REPETITION = "repetition"
"""How a reply ended that went round in circles, beside `stop` and `length`."""
DROP_COLUMNS = ("num_compared", "num_lost", "num_gained", "drop", "drop_low", "drop_high", "p")
TOLERATED_FRAC = 0.01
"""Of replies in float32: sums round otherwise in a batch of another shape, and a tie may fall the other way."""
TOLERATED_P = 0.001
"""In lower precision many a long reply parts from itself in another batch; that must not favour either."""


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
    test = mcnemar(before, after)
    drop = paired_interval(test.num_gained, test.num_lost, test.n)
    values = (test.n, test.num_gained, test.num_lost, drop.estimate, drop.low, drop.high, test.p)
    return dict(zip(DROP_COLUMNS, values, strict=True))


def control_table(records: Sequence[Record]) -> "pd.DataFrame":
    """Returns a row per task: are the answers with nothing left out those of the model without this probe?"""
    import pandas as pd

    rows = []
    for task in dict.fromkeys(record["task"] for record in records):
        plain, none = (
            {r["id"]: r for r in records if r["task"] == task and r["configuration"] == name} for name in (PLAIN, NONE)
        )
        num_equal = sum(_same_reply(plain[name], none[name]) for name in plain)
        right = [np.array([answers[name]["status"] == CORRECT for name in plain], bool) for answers in (plain, none)]
        p = mcnemar(*right).p
        dtype = next(iter(plain.values()))["dtype"]
        by_rounding = len(plain) - num_equal <= TOLERATED_FRAC * len(plain)
        rows.append(
            {
                "task": task,
                "control": "nothing left out equals the plain model",
                "dtype": dtype,
                "n": len(plain),
                "num_equal_replies": num_equal,
                "plain_accuracy": float(right[0].mean()),
                "none_accuracy": float(right[1].mean()),
                "p": p,
                "holds": by_rounding if dtype == "float32" else p >= TOLERATED_P,
            }
        )
    return pd.DataFrame(rows)


def _same_reply(plain: Record, none: Record) -> bool:
    """True for equal replies; one that was ended for repeating itself must be how the plain one begins."""
    if none["finish_reason"] == REPETITION:
        return bool(plain["response"].startswith(none["response"].rstrip("\ufffd")))
    return (plain["response"], plain["finish_reason"]) == (none["response"], none["finish_reason"])
