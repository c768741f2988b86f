"""What does one model score? Computes `scores.csv` from an evaluation's records, one row per task and ability.

    accuracy        mean over prompts of the share of their samples under `given` that are right (accuracy@1)
    ability_score   mean over prompts of the paper's definition (`eval/replies/outcomes.py`), over the `num_ability`
                    prompts for which it is defined: all of its conditions were asked and could be judged

If every prompt has one answer and prompts are independent, intervals are Wilson's; with several samples, or related
prompts (a record's `cluster`), they are cluster-robust. Replies under other conditions only affect the ability's
columns.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from eval.grading import UNSCORED
from eval.replies.decoding import LENGTH, REPETITION
from eval.replies.outcomes import GIVEN, Outcome, outcomes
from eval.statistics.intervals import Estimate, clustered_mean, wilson
from tracking.records import Record

if TYPE_CHECKING:
    import pandas as pd


def score_table(records: Sequence[Record], found: Sequence[Outcome] | None = None) -> "pd.DataFrame":
    """Returns one row per task and ability: n, accuracy and ability with intervals, and counts of excluded cases.

    Args:
        found: the outcomes of the records, where the caller has them.
    """
    import pandas as pd

    given: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        if record.get("condition", GIVEN) == GIVEN:
            given.setdefault((record["task"], record["ability"]), []).append(record)
    asked: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes(records) if found is None else found:
        asked.setdefault((outcome.task, outcome.ability), []).append(outcome)
    clusters = {(record["task"], record["id"]): record.get("cluster") for record in records}
    rows = []
    for (task, ability), group in given.items():
        own = asked[task, ability]
        accuracy, n = _mean(own, lambda outcome: outcome.samples, clusters)
        score, num_ability = _mean(own, lambda outcome: outcome.ability_samples, clusters)
        rows.append(
            {
                "task": task,
                "ability": ability,
                "n": n,
                "accuracy": accuracy.estimate,
                "standard_error": accuracy.standard_error,
                "low": accuracy.low,
                "high": accuracy.high,
                "num_ability": num_ability,
                "ability_score": score.estimate,
                "ability_standard_error": score.standard_error,
                "ability_low": score.low,
                "ability_high": score.high,
                "num_samples": max(len(outcome.samples) for outcome in own),
                "num_unscored": sum(record["status"] == UNSCORED for record in group),
                "well_formed_frac": _share(group, lambda record: record["well_formed"]),
                "mean_tokens": _mean_tokens(group),
                "at_limit_frac": _share_ended(group, LENGTH),
                "repetition_frac": _share_ended(group, REPETITION),
            }
        )
    return pd.DataFrame(rows).sort_values(["task", "ability"], ignore_index=True)


def _mean(
    own: Sequence[Outcome],
    samples: Callable[[Outcome], Sequence[bool | None]],
    clusters: dict[tuple[str, str], str | None],
) -> tuple[Estimate, int]:
    """Returns the mean over prompts with its interval, and n."""
    judged = {
        (outcome.task, outcome.id): [sample for sample in samples(outcome) if sample is not None] for outcome in own
    }
    values = {key: sum(ones) / len(ones) for key, ones in judged.items() if ones}
    names = [clusters[key] for key in values]
    if not values or (all(name is None for name in names) and all(len(ones) <= 1 for ones in judged.values())):
        return wilson(round(sum(values.values())), len(values)), len(values)
    labels = [
        f"cluster {name}" if name is not None else f"prompt {key}" for name, key in zip(names, values, strict=True)
    ]
    numbers = np.unique(labels, return_inverse=True)[1]
    return clustered_mean(np.array(list(values.values())), numbers), len(values)


def _mean_tokens(group: Sequence[Record]) -> float:
    """Returns the mean length of replies in tokens; NaN where another harness kept them without it."""
    if any(record["num_tokens"] is None for record in group):
        return float("nan")
    return float(sum(record["num_tokens"] for record in group) / len(group))


def _share_ended(group: Sequence[Record], reason: str) -> float:
    """Returns the share of replies that ended for a reason; NaN where another harness kept them without one."""
    if any(record["finish_reason"] is None for record in group):
        return float("nan")
    return _share(group, lambda record: record["finish_reason"] == reason)


def _share(group: Sequence[Record], holds: Callable[[Record], bool]) -> float:
    return sum(map(holds, group)) / len(group)
