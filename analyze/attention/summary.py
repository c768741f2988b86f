"""What does a measurement of attention say when it ends? The share on the image by block, and its shift in training."""

from pathlib import Path
from typing import TYPE_CHECKING

from analyze.attention.controls import TEACHER_FORCED
from analyze.attention.records import ALL, PARTS
from analyze.attention.tables import POOLED
from eval.display.formatting import format_difference, percent, probability
from models.blocks import BLOCKS
from tracking.tables import format_first, read_table

if TYPE_CHECKING:
    import pandas as pd

MEASURE = "vision"


def summary(output_dir: Path) -> list[str]:
    """Returns the lines about `attention.csv`, `blocks.csv` and `controls.csv`, over the abilities of each task.

    Teacher-forced where that mode was measured, else on each model's own replies; the share is the mean over a block's
    layers and heads, the shift the paired difference over all layers, pooled over seeds where there are several.
    """
    attention, blocks = (_of_replies(read_table(output_dir / f"{name}.csv")) for name in ("attention", "blocks"))
    attention = attention[attention["head"].astype(str) == "mean"]
    rows = [["task", "model", *(f"% on the image, {block}" for block in BLOCKS), "shift, in points", "p, corrected"]]
    for (task, model), own in attention.groupby(["task", "model"], sort=False):
        shares = [percent(own[own["block"] == block]["mean"].mean()) for block in BLOCKS]
        for against, cell, p in _shifts(blocks, str(task), str(model)) or [("", "", "")]:
            rows.append([str(task), str(model), *shares, f"{cell} to {against}" if against else "", p])
    controls = read_table(output_dir / "controls.csv")
    num_passed = int(controls["passed"].sum())
    verdict = "passed" if num_passed == len(controls) else "FAILED"
    mode = attention["mode"].iloc[0]
    return [
        f"{mode}: mean over the prompts of the share of attention that a reply's tokens give to the image",
        *format_first(rows, right=(2, 3, 4), table="blocks.csv"),
        f"controls {verdict}: {num_passed} of {len(controls)} ({', '.join(dict.fromkeys(controls['control']))})",
    ]


def _of_replies(table: "pd.DataFrame") -> "pd.DataFrame":
    """Returns the rows of one mode about the image, whole replies and, where a task has several abilities, all."""
    own = table[(table["measure"] == MEASURE) & (table["part"] == PARTS[0])]
    if TEACHER_FORCED in set(own["mode"]):
        own = own[own["mode"] == TEACHER_FORCED]
    joint = own.groupby("task")["ability"].transform(lambda abilities: ALL in set(abilities))
    return own[(own["ability"] == ALL) | ~joint.astype(bool)]


def _shifts(blocks: "pd.DataFrame", task: str, model: str) -> list[tuple[str, str, str]]:
    """Returns (baseline, difference, p) over all layers, for each baseline."""
    found = []
    own = blocks[(blocks["task"] == task) & (blocks["model"] == model) & (blocks["block"] == ALL)]
    for against, rows in own.groupby("against", sort=False):
        pooled = rows[rows["seed"].astype(str) == POOLED]
        for _, row in (pooled if len(pooled) else rows).iterrows():
            cell = format_difference(row["difference"], row["low"], row["high"])
            found.append((str(against), cell, probability(row["p_holm"])))
    return found
