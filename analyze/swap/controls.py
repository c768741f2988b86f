"""Is the swap right? What each run of `analyze.swap` checks on every pair, with its limits.

    self-swap  half of the layers take the target's own picture, read once more: must change nothing
    full swap  the source's picture in all layers: must be what the model replies to the source picture
    no swap    the swap of no layer: must be what the model replies to the target picture

The replies to the plain pictures come from Transformers' own `generate`, without any of the probe's machinery. Greedy
replies whose choice was within rounding (`TIE_LOGITS`) may part there; such a control is a `tie`, and counted as such.
One that differs fails the run.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from analyze.swap.records import GROUP_COLUMNS, Control, Variant, group_records
from tracking.records import Record

if TYPE_CHECKING:
    import pandas as pd

    from analyze.swap.prefix import Reply

CONTROLS = {
    "self-swap": "swapping in the target's own picture must change nothing",
    "full swap": "a swap of all layers must give the model's reply to the source picture",
    "no swap": "a swap of no layer must give the model's reply to the target picture",
}
"""Name -> what must hold for every pair."""
STATUSES = ("equal", "tie", "differs")
TIE_LOGITS = {"float64": 1e-8, "float32": 1e-3, "bfloat16": 0.5, "float16": 0.1}
"""How near two logits must be for rounding to choose between them, which differs with the rows beside; generous (in
fp32 4e-6 was seen), since a real fault moves them further, and in most pairs."""


def control_swaps(num_layers: int) -> tuple[range, range]:
    """Returns the layers that the full swap takes from the source, and the self-swap from the target's own picture."""
    return range(num_layers), range(num_layers // 2, num_layers)


def check_pair(
    *,
    unswapped: Variant,
    full: Variant,
    itself: Variant,
    plain_target: "Reply",
    plain_source: "Reply",
    dtype: str,
    longest_answer_tokens: int,
) -> dict[str, Control]:
    """Returns how each control came out on one pair.

    Args:
        unswapped: the variant k = L of a mode.
        full, itself: the variants of `control_swaps`.
        plain_target, plain_source: the model's own replies to the two pictures.
        dtype: the model's, which says how far rounding reaches.
        longest_answer_tokens: of the two right answers, over which log-probabilities are summed.
    """
    tie = TIE_LOGITS[dtype]
    controls = {
        "self-swap": compare(itself.reply, unswapped.reply, tie),
        "full swap": compare(full.reply, plain_source, tie),
        "no swap": compare(unswapped.reply, plain_target, tie),
    }
    if logprob_shift(itself, unswapped) > 2 * tie * longest_answer_tokens:
        controls["self-swap"] = replace(controls["self-swap"], status="differs")
    return controls


def compare(ours: "Reply", other: "Reply", tie: float) -> Control:
    """Compares two greedy replies; one that parts from the other where its choice was within rounding is a tie."""
    if (ours.tokens, ours.finish_reason) == (other.tokens, other.finish_reason):
        return Control(status="equal", expected=other, found=ours)
    both = zip(ours.tokens, other.tokens, strict=False)
    common = next((place for place, (one, two) in enumerate(both) if one != two), None)
    place = min(len(ours.tokens), len(other.tokens)) if common is None else common
    return Control(status="tie" if ours.margins[place] <= tie else "differs", expected=other, found=ours)


def logprob_shift(one: Variant, other: Variant) -> float:
    """Returns the larger of both answers' differences in log-probability."""
    return max(abs(one.logprob_target - other.logprob_target), abs(one.logprob_source - other.logprob_source))


def control_table(records: Sequence[Record]) -> "pd.DataFrame":
    """Returns a row per set, task, mode and control: how many pairs passed it, tied within rounding, or failed."""
    import pandas as pd

    rows = []
    for labels, group in group_records(records):
        for control in CONTROLS:
            statuses = [record["controls"][control]["status"] for record in group]
            counts = {f"num_{status}": statuses.count(status) for status in STATUSES}
            rows.append({**labels, "control": control, "n": len(statuses), **counts})
    return pd.DataFrame(rows, columns=[*GROUP_COLUMNS, "control", "n", *(f"num_{name}" for name in STATUSES)])


def check_controls(records: Sequence[Record]) -> None:
    """Fails where a control did, on any pair.

    Raises:
        RuntimeError: naming the control and the first pair.
    """
    for control in CONTROLS:
        failed = [
            record["key"]
            for record in records
            if record["left_out"] is None and record["controls"][control]["status"] == "differs"
        ]
        if failed:
            raise RuntimeError(
                f"the control {control!r} failed on {failed[0]} ({len(failed)} such): {CONTROLS[control]}; the probe's "
                "rates are not to be trusted, see controls.csv and records.jsonl"
            )
