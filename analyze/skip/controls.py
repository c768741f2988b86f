"""Is the skip right? What each run of `analyze.skip` checks on itself, with its limits.

With nothing left out, the probe's rows must reply what the plain model replies, by Transformers' own `generate` and
without the probe's hooks. Where that does not hold, the run fails.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from analyze.skip.plan import NONE, PLAIN
from eval.grading import CORRECT
from eval.replies.decoding import REPETITION
from eval.statistics.intervals import mcnemar
from tracking.records import Record

if TYPE_CHECKING:
    import pandas as pd

TOLERATED_FRAC = 0.01
"""Of replies in float32: sums round otherwise in a batch of another shape, and a tie may fall the other way."""
TOLERATED_P = 0.001
"""In lower precision many a long reply parts from itself in another batch; that must not favour either."""


def control_table(records: Sequence[Record]) -> "pd.DataFrame":
    """Returns a row per task: are the answers with nothing left out those of the model without this probe?"""
    import pandas as pd

    rows = []
    for task in dict.fromkeys(record["task"] for record in records):
        plain, none = (
            {r["id"]: r for r in records if r["task"] == task and r["configuration"] == name} for name in (PLAIN, NONE)
        )
        num_equal = sum(same_reply(plain[name], none[name]) for name in plain)
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


def same_reply(plain: Record, none: Record) -> bool:
    """True for equal replies; one that was ended for repeating itself must be how the plain one begins."""
    if none["finish_reason"] == REPETITION:
        return bool(plain["response"].startswith(none["response"].rstrip("\ufffd")))
    return (plain["response"], plain["finish_reason"]) == (none["response"], none["finish_reason"])


def check_controls(controls: "pd.DataFrame", output_dir: Path) -> None:
    """Fails the run where the control does not hold.

    Raises:
        RuntimeError: naming the task.
    """
    for _, row in controls[~controls["holds"]].iterrows():
        raise RuntimeError(
            f"{row['task']}: with nothing left out only {row['num_equal_replies']} of {row['n']} replies are the plain "
            f"model's; the drops in {output_dir / 'rates.csv'} are not to be trusted"
        )
