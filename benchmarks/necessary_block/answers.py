"""Was the necessary block found, and no other? What each study says, against what is true by construction.

    blind replies   a model of the arm that freezes the block answers every prompt alike, since it sees no picture
    open layers     layers outside the block whose attention could carry anything: none, in any arm
    gain            of `full` over the start; the truth is what the whole model has over it, before its route was cut
    gain kept       by the arm that freezes the block: 0, less than half by its whole interval; by every other arm: 1,
                    at least KEPT by its whole interval

    A against A     halves of the ten seeds of one arm are compared with each other, in all ways: a difference is
                    claimed in at most MAX_CLAIMED of these 501 splits (`eval/splits.py`). The splits are not
                    independent. With ten seeds a sound test claims 4 to 6 % of them in most studies, and more than 7 %
                    in one of 300. Four seeds have three splits only: a sound test claims one of them in one study of
                    six.

`analyze.report` judges with the same half whether a block was necessary (`analyze/report/kept.py`).
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from analyze.report.kept import MOST
from benchmarks.known_answers.answers import Answer
from benchmarks.necessary_block.start import open_layers, partition_of
from benchmarks.necessary_block.studies import SEEDS, Workplace
from eval.splits import compare_all, summarise
from eval.statistics.pairing import ACCURACY, Entry
from models.checkpoint import open_checkpoint
from tracking.records import read_records
from tracking.tables import read_table
from train import FINAL_DIR

if TYPE_CHECKING:
    import pandas as pd

INSTRUMENT, SPLITS = "necessity", "A against A"
START, FULL, WHOLE = "sft", "full", "base"
LEAST_GAIN = 0.3
"""Share of prompts that `full` must gain, by its whole interval, so that there is something to keep or lose."""
KEPT = 0.8
"""Least share of the gain that an arm which trains the block must keep, by its whole interval."""
LEVEL, MAX_CLAIMED = 0.05, 0.07
"""Share of splits in which a sound test claims a difference, and the most that is accepted."""
MAX_SPLITS = 501
"""All divisions of ten seeds into halves of two seeds or more."""


def read_answers(work: Workplace, block: str) -> list[Answer]:
    """Returns what a finished study found, with the truth."""
    directory = work.study(block)
    plan = [path.name for path in sorted((directory / "arms").iterdir())]
    table = read_table(directory / "comparison.csv")
    own = table[(table["seed"] == "pooled") & (table["metric"] == ACCURACY) & (table["against"] == START)]
    return [
        *(count_replies(directory, block, label) for label in plan if label.startswith(f"{frozen_arm(block)}-seed")),
        count_open_layers(directory, block, plan),
        *judge_gains(own, block),
    ]


def frozen_arm(block: str) -> str:
    """Returns the arm that freezes the necessary block."""
    return f"freeze-{block}"


def count_replies(directory: Path, block: str, label: str) -> Answer:
    """Counts the different replies of one model: one, if it sees nothing."""
    replies = {record["response"] for record in read_records(directory / "eval" / label / "records.jsonl")}
    number = len(replies)
    return _judge(block, "different replies", label, 1, [number], is_right=number == 1)


def count_open_layers(directory: Path, block: str, labels: Sequence[str]) -> Answer:
    """Counts the layers outside the block that are not closed, over all trained models."""
    number = 0
    for label in labels:
        checkpoint = directory / "arms" / label / FINAL_DIR
        inside = partition_of(open_checkpoint(checkpoint)).layers(block)
        number += sum(layer not in inside for layer in open_layers(checkpoint))
    place = f"outside {block}, {len(labels)} models"
    return _judge(block, "open layers", place, 0, [number], is_right=number == 0)


def judge_gains(pooled: "pd.DataFrame", block: str) -> list[Answer]:
    """Judges the gain of `full` and the share that every other arm keeps.

    Args:
        pooled: rows of `comparison.csv` against the start: accuracy, all seeds together.
        block: the necessary block.
    """
    answers = []
    (whole,) = pooled.loc[pooled["arm"] == WHOLE, "difference"]
    for row in pooled.to_dict("records"):
        arm = str(row["arm"])
        if arm == FULL:
            values = [row[name] for name in ("difference", "low", "high")]
            answers.append(_judge(block, "gain", arm, float(whole), values, is_right=values[1] > LEAST_GAIN))
        elif arm.startswith(("freeze-", "only-")):
            values = [row[name] for name in ("gain_kept", "gain_kept_low", "gain_kept_high")]
            if arm == frozen_arm(block):
                answers.append(_judge(block, "gain kept", arm, 0.0, values, is_right=values[2] < MOST))
            else:
                answers.append(_judge(block, "gain kept", arm, 1.0, values, is_right=values[1] > KEPT))
    return answers


def _judge(block: str, quantity: str, place: str, truth: float, values: Sequence[float], *, is_right: bool) -> Answer:
    """Returns an answer; `values` are the estimate and, if it is not a count, the ends of its interval."""
    interval = dict(zip(("estimate", "low", "high"), values, strict=False))
    return Answer(
        instrument=INSTRUMENT, case=block, quantity=quantity, place=place, truth=truth, is_right=is_right, **interval
    )


def describe(answer: Answer) -> str:
    """Returns one line on an answer: what is true, and what was found."""
    interval = "" if math.isnan(answer.low) else f" [{answer.low:.2f}, {answer.high:.2f}]"
    what = f"{answer.instrument}, {answer.case}: {answer.quantity}, {answer.place}"
    return f"{what}: true {answer.truth:g}, found {answer.estimate:.2f}{interval}"


def compare_halves(work: Workplace) -> Answer:
    """Counts the divisions of an arm's ten seeds into two halves in which a difference is claimed."""
    entries = [
        Entry(arm, int(seed), path)
        for path in sorted((work.study(SEEDS) / "eval").iterdir())
        for arm, separator, seed in [path.name.rpartition("-seed")]
        if separator
    ]
    whole = summarise(compare_all(entries, max_splits=MAX_SPLITS)).iloc[-1]
    share = float(whole["claimed_frac"])
    return Answer(
        instrument=SPLITS,
        case=f"{len(entries)} seeds of {FULL}",
        quantity="splits with a claimed difference",
        place=f"{whole['num_claimed']} of {whole['num_splits']}",
        truth=LEVEL,
        estimate=share,
        is_right=share <= MAX_CLAIMED,
    )
