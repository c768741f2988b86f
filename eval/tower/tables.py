"""Do the towers differ? One row per model, layer and probe, and paired differences on the same test images.

Every model is compared with raw pixels and, at the same layer, with every model named before it: the share of images
that only the first gets right minus the share that only the second does, on new images. Random towers differ among
themselves, on some images by more than a trained tower differs from their mean; so a model is compared with all of
them, with an interval that covers other images and other random seeds (`eval/statistics/pooled.py`). P-values are
Holm-corrected within their family: one probe and one kind of comparison, over all layers and models.

An encoder (`encoders.py`) has other layers than the towers. So each layer of every model is compared with one layer of
the encoder, the one of the best cross-validated accuracy on the training images (`chosen_layer`): the test images
choose no layer. The family of these tests spans all encoders, models and layers.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Int

from eval.statistics.intervals import Estimate, holm, wilson
from eval.statistics.pooled import Term, contrast, single_runs
from eval.tower.features import PIXELS
from tracking.progress import progress
from tracking.records import Record

if TYPE_CHECKING:
    import pandas as pd

RANDOM = "random"
DIFFERENCE_COLUMNS = (
    "probe", "layer", "model", "against", "against_layer", "n", "num_seeds", "difference", "low", "high",
    "standard_error", "num_gained", "num_lost", "p", "p_holm", "family", "test", "detectable",
)  # fmt: skip

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


def chosen_layer(records: Sequence[Record], model: str, probe: str) -> str:
    """Returns a model's layer of the best cross-validated accuracy on the training images; of equal ones the first."""
    own = [record for record in records if (record["model"], record["probe"]) == (model, probe)]
    return str(max(own, key=lambda record: record["cv_accuracy"])["layer"])


def difference_rows(
    records: Sequence[Record], gold: Int[np.ndarray, " test"], models: Sequence[str], encoders: Sequence[str] = ()
) -> "pd.DataFrame":
    """Returns all paired differences, Holm-corrected within their family.

    Args:
        records: one per model, seed, layer and probe.
        gold: the test images' classes.
        models: models to compare, in the order of the comparison.
        encoders: encoders with which every model is compared.
    """
    import pandas as pd

    right: Right = {}
    for record in records:
        key = (record["model"], record["layer"], record["probe"])
        right.setdefault(key, []).append(np.array(record["predicted"]) == gold)
    compared = [key for key in right if key[0] in models]
    chosen = {(name, probe): chosen_layer(records, name, probe) for name in encoders for *_, probe in compared}
    rows = _against_random(right, compared)
    for model, layer, probe in compared:
        own = right[model, layer, probe][0]
        head = {"probe": probe, "layer": layer, "model": model}
        rows.append(
            head
            | _paired(own, right[PIXELS, PIXELS, probe][0])
            | {"against": PIXELS, "against_layer": PIXELS, "kind": PIXELS}
        )
        for other in models[: models.index(model)]:
            paired = _paired(own, right[other, layer, probe][0])
            rows.append(head | paired | {"against": other, "against_layer": layer, "kind": "models"})
        for name in encoders:
            its_layer = chosen[name, probe]
            paired = _paired(own, right[name, its_layer, probe][0])
            rows.append(head | paired | {"against": name, "against_layer": its_layer, "kind": "encoders"})
    table = pd.DataFrame(rows)
    table["family"] = table["probe"] + ", " + table.pop("kind")
    table["p_holm"] = np.nan
    for _, group in table.groupby("family"):
        table.loc[group.index, "p_holm"] = holm(group["p"].to_numpy())
    return table[list(DIFFERENCE_COLUMNS)]


def _paired(own: Bool[np.ndarray, " test"], other: Bool[np.ndarray, " test"]) -> dict[str, object]:
    found = single_runs(own, other)
    return {
        **_interval(found.one(), len(own)),
        "num_seeds": 1,
        "num_gained": int(np.sum(own & ~other)),
        "num_lost": int(np.sum(~own & other)),
        "p": float(found.p()[0]),
        "test": "paired t, images",
        "detectable": float(found.detectable()[0]),
    }


def _against_random(right: Right, compared: Sequence[tuple[str, str, str]]) -> list[dict[str, object]]:
    """Compares models with all random towers; these are the seeds, a trained tower exists once."""
    rows = []
    for model, layer, probe in progress(compared, label="differences to random towers", unit="probe"):
        own, random = np.array(right[model, layer, probe][:1], float), np.array(right[RANDOM, layer, probe], float)
        found = contrast(
            [
                Term(coefficient=1.0, values=own[..., None], trained=False),
                Term(coefficient=-1.0, values=random[..., None], trained=True),
            ],
            shares=True,
        )
        rows.append(
            {
                "probe": probe,
                "layer": layer,
                "model": model,
                "against": RANDOM,
                "against_layer": layer,
                "kind": RANDOM,
                "num_seeds": len(random),
                **_interval(found.one(), int(found.n[0])),
                "p": float(found.p()[0]),
                "test": "t, seeds and images",
                "detectable": float(found.detectable()[0]),
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
