"""Which prompts did one model get right and another wrong, and vice versa? The rows of `transitions.csv`.

One row per flip: `kind` is `right->wrong` or `wrong->right`, from the comparison model (`against`) to the model
(`arm`); `before` and `after` are the prompt's values under the two models, the share of its samples that are right.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from eval.statistics.pairing import KINDS, Group, went

if TYPE_CHECKING:
    import pandas as pd

FLIPS = KINDS[:2]
COLUMNS = ("task", "ability", "metric", "arm", "against", "seed", "id", "kind", "before", "after")


def transition_table(
    groups: Sequence[Group], metrics: Sequence[str], *, baseline: str, reference: str | None
) -> "pd.DataFrame":
    """Returns one row per flipped prompt, metric, comparison and seed."""
    import pandas as pd

    rows: list[dict[str, object]] = []
    for group in groups:
        for pair in group.pairs(baseline, reference):
            for metric in metrics:
                first, second = pair.first.values(metric), pair.second.values(metric)
                for seed, own, other in pair.seeds():
                    after, before = first[own], second[other]  # NaN, in a prompt that has no value, is no flip
                    head = {"task": group.task, "ability": group.ability, "metric": metric}
                    head |= {"arm": pair.name, "against": pair.against, "seed": "" if seed is None else str(seed)}
                    for kind in FLIPS:
                        rows.extend(
                            {
                                **head,
                                "id": group.ids[place],
                                "kind": kind,
                                "before": before[place],
                                "after": after[place],
                            }
                            for place in np.flatnonzero(went(before, after, kind))
                        )
    return pd.DataFrame(rows, columns=list(COLUMNS))
