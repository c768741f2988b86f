"""How much of the gain does a transplant give, and how much is lost without it? Accuracies and shares with intervals.

    transplants.csv    a row per ability, END, direction, unit and factor: accuracy, the paired difference to START
                       (sufficiency) or END (necessity), and the share of the gain
    scores.csv         accuracy of START and of every END

The share of a transplant is (variant - START) / (END - START), and for necessity 1 minus that, as for the trained arms
of `analyze.layers`. Differences and shares are estimated as in `eval.compare` (`eval/statistics/pooled.py`): with
several seeds of END the intervals cover new prompts and new training runs, otherwise new prompts only. Each variant
counts as a training run of its own although it comes from the same run as END, so the intervals of differences to END
are rather too wide than too narrow. P-values are corrected (Holm) over all rows with the same comparison model.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from analyze.layers.plan import NECESSITY, SUFFICIENCY
from analyze.transplant.plan import START, Unit, Variant
from eval.replies.outcomes import Outcome, outcomes
from eval.statistics.intervals import holm
from eval.statistics.pairing import ACCURACY, Answers, Entry, Group, collect_groups
from eval.statistics.pooled import Term, contrast, ratio_of_gains
from eval.statistics.scores import score_table
from models.blocks import Partition
from tracking.records import Record

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = [
    "task", "ability", "arm", "direction", "unit", "part", "first", "last", "block", "alpha", "n", "num_seeds",
    "scope", "changed", "accuracy", "against", "accuracy_against", "difference", "low", "high", "p", "p_holm",
    "num_tests", "share", "share_low", "share_high",
]  # fmt: skip


def score_rows(records: Sequence[Record], ends: Sequence[Entry]) -> "pd.DataFrame":
    """Returns `scores.csv`: START and every END, per task and ability."""
    import pandas as pd

    tables = []
    for label in (START, *(end.label for end in ends)):
        own = [one for one in records if one["unit"] is None and (one["end"] or START) == label]
        scores = score_table(own)
        scores.insert(0, "model", label)
        tables.append(scores)
    return pd.concat(tables, ignore_index=True).drop(
        columns=["num_ability", "ability_score", "ability_standard_error", "ability_low", "ability_high"]
    )


def transplant_table(
    records: Sequence[Record], variants: Sequence[Variant], ends: Sequence[Entry], partition: Partition
) -> "pd.DataFrame":
    """Returns `transplants.csv`.

    Args:
        ends: the END checkpoints by label, `NAME@SEED`; those of one name are pooled.
    """
    import pandas as pd

    by_label = {end.label: end for end in ends}
    entries, found = _models(records, variants, by_label)
    units = {variant.unit.name: variant.unit for variant in variants if variant.unit is not None}
    changed: dict[str, bool] = {}
    for record in records:
        if record["unit"] is not None:
            name = _name(record["direction"], record["unit"], record["alpha"], by_label[record["end"]].name)
            changed[name] = changed.get(name, False) or record["changed"]
    rows = []
    for group in collect_groups(entries, found):
        for variant, arm in _distinct(variants, by_label):
            assert variant.unit is not None
            name = _name(variant.direction, variant.unit.name, variant.alpha, arm)
            row = _compare(group, name, arm, variant.direction)
            rows.append(
                {
                    "task": group.task, "ability": group.ability, "arm": arm, "direction": variant.direction,
                    **_place(units[variant.unit.name], partition), "alpha": variant.alpha, "changed": changed[name],
                    **row,
                }
            )  # fmt: skip
    table = pd.DataFrame(rows, columns=COLUMNS)
    table["p_holm"], table["num_tests"] = np.nan, 0
    for _, own in table.groupby("against"):
        tested = own.index[own["p"].notna()]
        table.loc[tested, "p_holm"] = holm(own.loc[tested, "p"].to_numpy(float))
        table.loc[own.index, "num_tests"] = len(tested)
    return table


def _place(unit: Unit, partition: Partition) -> dict[str, Any]:
    block = "" if unit.first is None else partition.block_of(int(unit.middle))
    return {"unit": unit.name, "part": unit.part, "first": unit.first, "last": unit.last, "block": block}


def _name(direction: str, unit: str, alpha: float, arm: str) -> str:
    return f"{arm} {direction} {unit} {alpha:g}"


def _distinct(variants: Sequence[Variant], ends: Mapping[str, Entry]) -> Iterator[tuple[Variant, str]]:
    """Yields each variant once, not once per seed, with the name of its END."""
    seen = set()
    for variant in variants:
        if variant.unit is not None and variant.end is not None:
            arm = ends[variant.end].name
            place = arm, variant.direction, variant.unit.name, variant.alpha
            if place not in seen:
                seen.add(place)
                yield variant, arm


def _models(
    records: Sequence[Record], variants: Sequence[Variant], ends: Mapping[str, Entry]
) -> tuple[list[Entry], dict[str, list[Outcome]]]:
    """Returns every evaluated model, and its outcomes by label."""
    by_variant: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        place = record["end"], record["direction"], record["unit"], record["alpha"]
        by_variant.setdefault(place, []).append(record)
    entries, found = [], {}
    for variant in variants:
        end = None if variant.end is None else ends[variant.end]
        unit = None if variant.unit is None else variant.unit.name
        if end is None:
            name = START
        else:
            name = end.name if unit is None else _name(variant.direction, unit, variant.alpha, end.name)
        entry = Entry(name, None, Path()) if end is None else Entry(name, end.seed, end.directory)
        entries.append(entry)
        found[entry.label] = outcomes(by_variant[variant.end, variant.direction, unit, variant.alpha])
    return entries, found


def _compare(group: Group, name: str, arm: str, direction: str) -> dict[str, Any]:
    """Returns the numbers of one variant: pooled over seeds, against START or END."""
    own, start, end = (group.answers[each] for each in (name, START, arm))
    against, other = (START, start) if direction == SUFFICIENCY else (arm, end)
    found = contrast([_term(own, 1.0), _term(other, -1.0)], clusters=group.clusters, shares=True)
    if not found.n[0]:
        return {"n": 0, "against": against, "num_seeds": len(own.seeds)}
    estimate = found.one()
    kept = ratio_of_gains(_term(own), _term(end), _term(start), clusters=group.clusters, shares=True)
    share = [np.nan] * 3 if kept is None else [kept.estimate, kept.low, kept.high]
    if direction == NECESSITY:
        share = [1 - share[0], 1 - share[2], 1 - share[1]]
    return {
        "n": int(found.n[0]),
        "num_seeds": len(own.seeds),
        "scope": found.scope,
        "accuracy": float(np.nanmean(own.accuracy)),
        "against": against,
        "accuracy_against": float(np.nanmean(other.accuracy)),
        "difference": estimate.estimate,
        "low": max(estimate.low, -1.0),
        "high": min(estimate.high, 1.0),
        "p": float(found.p()[0]),
        "share": share[0],
        "share_low": share[1],
        "share_high": share[2],
    }


def _term(answers: Answers, coefficient: float = 1.0) -> Term:
    values = answers.values(ACCURACY)[..., None]
    return Term(coefficient=coefficient, values=values, trained=answers.seeds != (None,))
