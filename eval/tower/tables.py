"""Do the towers differ? One row per model, layer and probe, and paired differences on the same test images.

Every model is compared with raw pixels and, at the same layer, with every model named before it: the share of images
that only the first gets right minus the share that only the second does, with its interval (Agresti and Min) and the
exact McNemar test. Random towers differ among themselves, on some images by more than a trained tower differs from
their mean; so a model is compared with all of them by a bootstrap over images and random seeds (crossed,
`eval/statistics/intervals.py`). With few seeds, its intervals are too narrow rather than too wide. P-values are
Holm-corrected within their family: one probe and one kind of comparison, over all layers and models.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Int

from eval.statistics.intervals import (
    NUM_RESAMPLES,
    Estimate,
    PairedDifference,
    bootstrap_p,
    crossed_difference,
    draw_crossed,
    holm,
    mcnemar,
    paired_interval,
    percentile_interval,
    wilson,
)
from eval.statistics.power import detectable, mcnemar_detectable
from eval.tower.features import PIXELS
from tracking.progress import progress
from tracking.records import Record

if TYPE_CHECKING:
    import pandas as pd

RANDOM = "random"
DIFFERENCE_COLUMNS = (
    "probe", "layer", "model", "against", "n", "difference", "low", "high", "standard_error", "num_gained", "num_lost",
    "p", "p_holm", "family", "test", "detectable",
)  # fmt: skip
RESAMPLES_AT_ONCE = 1000
"""Resamples per chunk; their weights take 8 kB per test image."""

Right = dict[tuple[str, str, str], list[np.ndarray]]
"""(model, layer, probe) -> which test images are right, one entry per seed."""


def score_rows(records: Sequence[Record], gold: Int[np.ndarray, " test"], *, num_train: int) -> "pd.DataFrame":
    """Returns accuracy with Wilson's interval, macro-averaged F1, and the share of the largest class."""
    import pandas as pd
    from sklearn.metrics import f1_score

    rows = []
    for record in records:
        predicted = np.array(record["predicted"])
        accuracy = wilson(int(np.sum(predicted == gold)), len(gold))
        rows.append(
            {
                **{name: record[name] for name in ("model", "seed", "layer", "width", "probe", "setting")},
                "n_train": num_train,
                "n_test": len(gold),
                "accuracy": accuracy.estimate,
                "low": accuracy.low,
                "high": accuracy.high,
                "standard_error": accuracy.standard_error,
                "macro_f1": f1_score(gold, predicted, average="macro", zero_division=0),
                "largest_class": np.bincount(gold).max() / len(gold),
                "cv_accuracy": record["cv_accuracy"],
                "converged": record["converged"],
            }
        )
    return pd.DataFrame(rows)


def difference_rows(
    records: Sequence[Record], gold: Int[np.ndarray, " test"], models: Sequence[str], *, seed: int
) -> "pd.DataFrame":
    """Returns all paired differences, Holm-corrected within their family; `seed` is the bootstrap's."""
    import pandas as pd

    right: Right = {}
    for record in records:
        key = (record["model"], record["layer"], record["probe"])
        right.setdefault(key, []).append(np.array(record["predicted"]) == gold)
    compared = [key for key in right if key[0] in models]
    rows = _against_random(right, compared, seed=seed)
    for model, layer, probe in compared:
        own = right[model, layer, probe][0]
        head = {"probe": probe, "layer": layer, "model": model}
        rows.append(head | _paired(own, right[PIXELS, PIXELS, probe][0]) | {"against": PIXELS, "kind": PIXELS})
        for other in models[: models.index(model)]:
            rows.append(head | _paired(own, right[other, layer, probe][0]) | {"against": other, "kind": "models"})
    table = pd.DataFrame(rows)
    table["family"] = table["probe"] + ", " + table.pop("kind")
    table["p_holm"] = np.nan
    for _, group in table.groupby("family"):
        table.loc[group.index, "p_holm"] = holm(group["p"].to_numpy())
    return table[list(DIFFERENCE_COLUMNS)]


def _paired(own: Bool[np.ndarray, " test"], other: Bool[np.ndarray, " test"]) -> dict[str, object]:
    test = mcnemar(own, other)
    return {
        **_interval(paired_interval(test.num_gained, test.num_lost, test.n), test.n),
        "num_gained": test.num_gained,
        "num_lost": test.num_lost,
        "p": test.p,
        "test": "McNemar",
        "detectable": mcnemar_detectable(test.n, test.num_gained + test.num_lost),
    }


def _against_random(right: Right, compared: Sequence[tuple[str, str, str]], *, seed: int) -> list[dict[str, object]]:
    """Compares models with all random towers, in chunks of resamples that are shared by all comparisons."""
    pairs = []
    for model, layer, probe in compared:
        random = np.stack(right[RANDOM, layer, probe])  # [seeds, pictures]
        pairs.append((np.broadcast_to(right[model, layer, probe][0], random.shape), random))
    parts: list[list[PairedDifference]] = [[] for _ in pairs]
    resamplings = range(NUM_RESAMPLES // RESAMPLES_AT_ONCE)
    for part in progress(resamplings, label="bootstrap", unit="part"):
        num_seeds, n = pairs[0][0].shape
        draws = draw_crossed(n, num_seeds, seed=seed + part, num_resamples=RESAMPLES_AT_ONCE)
        for found, (own, random) in zip(parts, pairs, strict=True):
            found.append(crossed_difference(own.astype(float), random.astype(float), np.ones_like(random), draws))
    rows = []
    for (model, layer, probe), found in zip(compared, parts, strict=True):
        resampled = np.concatenate([one.resampled for one in found])
        interval = percentile_interval(found[0].estimate, resampled)
        rows.append(
            {
                "probe": probe,
                "layer": layer,
                "model": model,
                "against": RANDOM,
                "kind": RANDOM,
                **_interval(interval, found[0].n),
                "p": bootstrap_p(resampled),
                "test": "crossed bootstrap",
                "detectable": detectable(interval.standard_error),
            }
        )
    return rows


def _interval(found: Estimate, n: int) -> dict[str, object]:
    return {
        "n": n,
        "difference": found.estimate,
        "low": found.low,
        "high": found.high,
        "standard_error": found.standard_error,
    }
