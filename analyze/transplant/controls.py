"""Is the sweep right? What each run of `analyze.transplant` checks on itself, with its limits.

    replies    with a shared prefix the replies are those of `eval.run`'s own engine on the same weights: for START,
               every END, and every unit with its last factor, on the first batch
    weights    START + 1 (END - START) in all tensors is END, END - 1 (END - START) is START, and after the sweep the
               model is START again; all bit for bit

If a control does not hold, the run fails.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analyze.layers.plan import SUFFICIENCY
from analyze.transplant.pieces import WHOLE_PASS
from analyze.transplant.plan import START
from tracking.records import Record

if TYPE_CHECKING:
    import pandas as pd

    from analyze.transplant.edits import LiveModel

TOLERATED_FRAC = 0.01
"""Of replies: kernels of a GPU may choose another algorithm from one call to the next."""
COLUMNS = ["control", "model", "what", "n", "num_equal", "holds"]


def weight_rows(live: "LiveModel", ends: Sequence[str], before: Mapping[str, str]) -> list[dict[str, Any]]:
    """Returns the rows about weights; the model must be START again.

    Args:
        before: the hashes of the model's tensors before the sweep.
    """
    rows = [_weight_row(START, "the model after the sweep is START", live.hashes(), before)]
    for end in ends:
        live.become(end)
        own = live.hashes()
        live.become(START)
        rows += [
            _weight_row(end, "START + 1 · (END − START) in all tensors is END", live.all_blended(end, 1.0), own),
            _weight_row(end, "END − 1 · (END − START) in all tensors is START", live.all_blended(end, 0.0), before),
            _weight_row(end, "after these edits the model is START", live.hashes(), before),
        ]
    return rows


def _weight_row(model: str, what: str, found: Mapping[str, str], expected: Mapping[str, str]) -> dict[str, Any]:
    num_equal = sum(found[name] == expected[name] for name in expected)
    return {
        "control": "weights", "model": model, "what": what, "n": len(expected), "num_equal": num_equal,
        "holds": num_equal == len(expected),
    }  # fmt: skip


def reply_rows(records: Sequence[Record]) -> Iterator[dict[str, Any]]:
    """Yields a row per base and unit whose replies were compared."""
    compared: dict[tuple[str, str], list[bool]] = {}
    for record in records:
        if WHOLE_PASS in record:
            base = START if record["direction"] == SUFFICIENCY else record["end"]
            place = "" if record["unit"] is None else f" with {record['unit']} at alpha {record['alpha']:g}"
            of = "" if record["end"] in (None, base) else f" of {record['end']}"
            compared.setdefault((base, f"replies{place}{of} are eval.run's"), []).append(record[WHOLE_PASS])
    for (model, what), equal in compared.items():
        yield {
            "control": "replies", "model": model, "what": what, "n": len(equal), "num_equal": sum(equal),
            "holds": len(equal) - sum(equal) <= TOLERATED_FRAC * len(equal),
        }  # fmt: skip


def control_table(weights: Sequence[Mapping[str, Any]], records: Sequence[Record]) -> "pd.DataFrame":
    """Returns `controls.csv`."""
    import pandas as pd

    return pd.DataFrame([*weights, *reply_rows(records)], columns=COLUMNS)


def check_controls(controls: "pd.DataFrame", output_dir: Path) -> None:
    """Fails the run if a control does not hold.

    Raises:
        RuntimeError: naming the first.
    """
    for _, row in controls[~controls["holds"].astype(bool)].iterrows():
        raise RuntimeError(
            f"control failed: {row['what']} ({row['model']}: {row['num_equal']} of {row['n']} equal); do not use the "
            f"tables in {output_dir}"
        )
