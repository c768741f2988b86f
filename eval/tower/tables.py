"""Do the towers differ? One row per model, layer and probe, and paired differences on the same test images.

Every model is compared with raw pixels and, at the same layer, with every model named before it: the share of images
that only the first gets right minus the share that only the second does, on new images. Random towers differ among
themselves, on some images by more than a trained tower differs from their mean; so a model is compared with all of
them, with an interval that covers other images and other random seeds (`eval/statistics/pooled.py`). P-values are
Holm-corrected within their family: one probe and one kind of comparison, over all layers, models and modalities.

An encoder (`encoders.py`) has other layers than the towers. So each layer of every model is compared with one layer of
the encoder, the one of the best cross-validated accuracy on the training images (`chosen_layer`; of findings the best
AUC): the test images choose no layer. The family of these tests spans all encoders, models and layers.

Of images with findings, accuracy is the mean over findings, and `auc_rows` compares macro AUCs in the same way.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from eval.statistics.intervals import Estimate, add_holm, wilson
from eval.statistics.pooled import Contrast, Term, contrast
from eval.tower.features import PIXELS
from eval.tower.groups import MODALITY
from eval.tower.images import ImageSet
from eval.tower.outcomes import Outcomes, Values, tuned_by
from tracking.progress import progress
from tracking.records import Record
from tracking.tables import write_table

if TYPE_CHECKING:
    import pandas as pd

RANDOM = "random"
DIFFERENCE_COLUMNS = (
    "probe", "layer", "model", "against", "against_layer", "n", "num_seeds", "difference", "low", "high",
    "standard_error", "num_gained", "num_lost", "p", "p_holm", "family", "test", "detectable",
)  # fmt: skip
CLASS_COLUMNS = (
    "probe", "layer", "class", "metric", "model", "against", "against_layer", "n", "num_seeds", "value",
    "value_against", "difference", "low", "high", "standard_error", "p", "p_holm", "family", "test",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A model's layer and what it is compared with."""

    probe: str
    layer: str
    model: str
    against: str
    against_layer: str
    kind: str
    """Which tests are corrected together with this one."""

    @property
    def test(self) -> str:
        return "t, seeds and images" if self.kind == RANDOM else "paired t, images"

    def terms(self, values: Values) -> list[Term]:
        """Returns the two sides, [seeds, test, columns] each."""
        own = np.array(values[self.model, self.layer, self.probe][:1], float)
        other = np.array(values[self.against, self.against_layer, self.probe], float)
        return [
            Term(coefficient=sign, values=each if each.ndim == 3 else each[..., None], trained=trained)
            for sign, each, trained in ((1.0, own, False), (-1.0, other, self.kind == RANDOM))
        ]


def score_rows(outcomes: Outcomes) -> "pd.DataFrame":
    """Returns accuracy with its interval, macro-averaged F1, and the share that answers without a picture would get.

    The interval of an accuracy is Wilson's; of findings it is that of a mean over images, and macro AUC has one too.
    """
    import pandas as pd
    from sklearn.metrics import f1_score

    group, places = outcomes.group, dict.fromkeys(outcomes.right, 0)
    rows = []
    for record in outcomes.records:
        key = (record["model"], record["layer"], record["probe"])
        right = outcomes.right[key][places[key]]
        accuracy = _mean(right) if group.many else wilson(int(right.sum()), len(right))
        predicted: object = record["predicted"]
        if group.many:
            predicted = np.array([[int(bit) for bit in bits] for bits in record["predicted"]]).T
        rows.append(
            {
                **{name: record[name] for name in ("model", "seed", "layer", "width", "probe", "setting")},
                "n_train": len(group.train),
                "n_test": len(group.test),
                "accuracy": accuracy.estimate,
                "low": accuracy.low,
                "high": accuracy.high,
                "standard_error": accuracy.standard_error,
                "macro_f1": f1_score(group.gold, predicted, average="macro", zero_division=0),
                "largest_class": _largest_class(group.gold),
                "cv_accuracy": record["cv_accuracy"],
                "converged": record["converged"],
            }
        )
        if group.many:
            area = _mean(outcomes.areas[key][places[key]])
            rows[-1] |= {
                "auc": area.estimate,
                "auc_low": area.low,
                "auc_high": area.high,
                "cv_auc": record["cv_auc"],
            }
        places[key] += 1
    return pd.DataFrame(rows)


def _mean(values: Float[np.ndarray, " test"]) -> Estimate:
    """Returns a mean in [0, 1] with its 95 % interval."""
    found = contrast([Term(coefficient=1.0, values=values.astype(float)[None, :, None], trained=False)]).one()
    return Estimate(found.estimate, max(found.low, 0.0), min(found.high, 1.0), found.standard_error)


def _largest_class(gold: Int[np.ndarray, "test ..."]) -> float:
    """Returns the accuracy of always giving the most frequent answer, of findings the mean over findings."""
    if gold.ndim == 2:
        return float(np.maximum(gold.mean(axis=0), 1 - gold.mean(axis=0)).mean())
    return float(np.bincount(gold).max() / len(gold))


def chosen_layer(records: Sequence[Record], model: str, probe: str) -> str:
    """Returns a model's layer of the best cross-validated accuracy on the training images; of equal ones the first.

    Of findings it is the best cross-validated AUC.
    """
    own = [record for record in records if (record["model"], record["probe"]) == (model, probe)]
    return str(max(own, key=tuned_by)["layer"])


def comparisons(outcomes: Outcomes, models: Sequence[str], encoders: Sequence[str] = ()) -> list[Comparison]:
    """Returns all comparisons of models, those with random towers first.

    Args:
        outcomes: what the probes got right.
        models: models to compare, in the order of the comparison.
        encoders: encoders with which every model is compared.
    """
    compared = [key for key in outcomes.right if key[0] in models]
    chosen = {(name, probe): chosen_layer(outcomes.records, name, probe) for name in encoders for *_, probe in compared}

    def others(model: str, layer: str, probe: str) -> Iterator[tuple[str, str, str]]:
        yield PIXELS, PIXELS, PIXELS
        yield from ((other, layer, "models") for other in models[: models.index(model)])
        yield from ((name, chosen[name, probe], "encoders") for name in encoders)

    random = [
        Comparison(probe=probe, layer=layer, model=model, against=RANDOM, against_layer=layer, kind=RANDOM)
        for model, layer, probe in compared
    ]
    return random + [
        Comparison(probe=probe, layer=layer, model=model, against=against, against_layer=its_layer, kind=kind)
        for model, layer, probe in compared
        for against, its_layer, kind in others(model, layer, probe)
    ]


def difference_rows(
    outcomes: Outcomes, models: Sequence[str], encoders: Sequence[str] = (), *, areas: bool = False
) -> "pd.DataFrame":
    """Returns all paired differences of accuracies, or of macro AUCs; `correct` adds the corrected p-values.

    Args:
        outcomes: what the probes got right.
        models: models to compare, in the order of the comparison.
        encoders: encoders with which every model is compared.
        areas: compare macro AUCs.
    """
    import pandas as pd

    values = outcomes.areas if areas else outcomes.right
    rows = []
    for one in progress(comparisons(outcomes, models, encoders), label="differences", unit="probe"):
        own, other = terms = one.terms(values)
        found = contrast(terms, shares=not areas)
        rows.append(_head(one) | _numbers(found, 0) | {"num_seeds": len(other.values)})
        if not areas and one.kind != RANDOM:
            first, second = own.values[0, :, 0], other.values[0, :, 0]
            rows[-1] |= {"num_gained": int(np.sum(first > second)), "num_lost": int(np.sum(first < second))}
        certain = found.standard_error[0] == 0
        rows[-1] |= {"detectable": np.nan if certain else float(found.detectable()[0])}
    return pd.DataFrame(rows)


def class_rows(outcomes: Outcomes, models: Sequence[str], encoders: Sequence[str] = ()) -> "pd.DataFrame":
    """Returns recall of each class, or AUC of each finding, of every model with the paired difference to the others.

    `correct` adds the corrected p-values. A class with a single test image has neither interval nor p-value.
    """
    import pandas as pd

    rows = []
    for one in progress(comparisons(outcomes, models, encoders), label="classes", unit="probe"):
        terms = one.terms(outcomes.by_class)
        with np.errstate(invalid="ignore", divide="ignore"):
            found = contrast(terms, shares=not outcomes.group.many)
            halves, p_values = found.half_width(), found.p()
        for place in np.flatnonzero(found.n):  # classes with test images
            name = outcomes.group.classes[place]
            value, against = (float(np.nanmean(term.values[..., place])) for term in terms)
            estimate, half = float(found.estimate[place]), float(halves[place])
            rows.append(
                _head(one)
                | {
                    "class": name,
                    "metric": outcomes.by_class_metric,
                    "n": int(found.n[place]),
                    "num_seeds": len(terms[1].values),
                    "value": value,
                    "value_against": against,
                    "difference": estimate,
                    "low": estimate - half,
                    "high": estimate + half,
                    "standard_error": float(found.standard_error[place]),
                    "p": float(p_values[place]),
                }
            )
    return pd.DataFrame(rows)


def correct(table: "pd.DataFrame", columns: Sequence[str], first: Sequence[str] = ()) -> "pd.DataFrame":
    """Returns a table of differences with its families and Holm-corrected p-values, in the order of the columns.

    Args:
        table: rows of `difference_rows` or `class_rows`, of all modalities.
        columns: the columns to keep.
        first: columns before them.
    """
    table["family"] = table["probe"] + ", " + table.pop("kind")
    add_holm(table, "family")
    return table[[*first, *columns]]


def write_tables(
    output_dir: Path,
    outcomes: Sequence[Outcomes],
    images: ImageSet,
    models: Sequence[str],
    encoders: Sequence[str],
) -> "pd.DataFrame":
    """Writes all tables; returns `tower.csv`."""
    import pandas as pd

    divided = outcomes[0].group.name is not None
    rows = [
        {"id": image.id, "class": image.label, "index": images.classes.index(image.label), "split": image.split}
        | ({MODALITY: image.modality} if divided else {})
        for image in images.images
    ]
    write_table(output_dir / "samples.csv", pd.DataFrame(rows))

    def together(make: Callable[[Outcomes], "pd.DataFrame"]) -> "pd.DataFrame":
        tables = [make(each).assign(**({MODALITY: each.group.name} if divided else {})) for each in outcomes]
        return pd.concat(tables, ignore_index=True)

    first = [MODALITY] if divided else []
    scores = together(score_rows)
    scores = scores[[*first, *(name for name in scores if name not in first)]]
    write_table(output_dir / "tower.csv", scores)
    for name, columns, make in (
        ("differences.csv", DIFFERENCE_COLUMNS, partial(difference_rows, models=models, encoders=encoders)),
        ("classes.csv", CLASS_COLUMNS, partial(class_rows, models=models, encoders=encoders)),
    ):
        write_table(output_dir / name, correct(together(make), columns, first))
    with_findings = [each for each in outcomes if each.group.many]
    if with_findings:
        tables = [
            difference_rows(each, models, encoders, areas=True).assign(
                **({MODALITY: each.group.name} if divided else {})
            )
            for each in with_findings
        ]
        kept = [name for name in DIFFERENCE_COLUMNS if name not in ("num_gained", "num_lost")]
        write_table(output_dir / "auc.csv", correct(pd.concat(tables, ignore_index=True), kept, first))
    return scores


def _head(one: Comparison) -> dict[str, object]:
    return {
        **{name: getattr(one, name) for name in ("probe", "layer", "model", "against", "against_layer", "kind")},
        "test": one.test,
    }


def _numbers(found: Contrast, column: int) -> dict[str, object]:
    interval = found.one(column)
    return {
        "n": int(found.n[column]),
        "difference": interval.estimate,
        "low": interval.low,
        "high": interval.high,
        "standard_error": interval.standard_error,
        "p": float(found.p()[column]),
    }
