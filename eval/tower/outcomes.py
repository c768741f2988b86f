"""What did a probe get right, image by image? The values that accuracies and areas are means of.

Of images with one class: 1 where the predicted class is right, otherwise 0. Of images with findings: the share of the
findings that are predicted rightly, and the values of `areas.py`, averaged over findings (macro AUC). The scores behind
an area are in `scores/`, one file per probe; a record's `predicted` has a string of 0 and 1 per finding.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from eval.tower.areas import area_values
from eval.tower.features import FeatureStore, Label
from eval.tower.groups import MODALITY, Group
from eval.tower.probes import AUC, PROBES, Features, Probed, probe
from tracking.product import partial_file
from tracking.progress import progress
from tracking.records import Record, RecordLog

SCORES_DIR = "scores"
Values = dict[tuple[str, str, str], list[np.ndarray]]
"""(model, layer, probe) -> a value per test image, one entry per seed."""


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """What all probes of a group of images got right."""

    group: Group
    records: Sequence[Record]
    right: Values
    """Values in [0, 1] whose mean is the accuracy."""
    areas: Values
    """Values whose mean is the macro AUC; empty without findings."""
    by_class: Values
    """[test, classes]: right, for images of the class (NaN for others); of findings the values of each AUC."""

    @property
    def by_class_metric(self) -> str:
        """What the means of `by_class` are."""
        return AUC if self.group.many else "recall"


def fit(group: Group, kind: str, features: Features, *, num_folds: int, seed: int) -> tuple[Record, np.ndarray | None]:
    """Fits a probe; returns what a record holds of it, and with findings the scores [findings, test]."""
    train, test = features[group.train], features[group.test]
    if not group.many:
        found = probe(kind, train, group.train_labels, test, num_folds=num_folds, seed=seed)
        return _of_probes([found]) | {"predicted": found.predicted.tolist()}, None
    each = [
        probe(kind, train, labels, test, num_folds=num_folds, seed=seed, tune=AUC) for labels in group.train_labels.T
    ]
    bits = ["".join(map(str, found.predicted.tolist())) for found in each]
    scores = np.array([found.scores for found in each], np.float32)  # [findings, test]
    return _of_probes(each) | {"predicted": bits}, scores


def _of_probes(each: Sequence[Probed]) -> Record:
    found: Record = {
        "setting": float(np.median([one.setting for one in each])),
        "cv_accuracy": float(np.mean([one.cv_accuracy for one in each])),
        "converged": all(one.converged for one in each),
    }
    if any(one.cv_auc is not None for one in each):
        found["cv_auc"] = float(np.mean([one.cv_auc for one in each if one.cv_auc is not None]))
    return found


def run_probes(
    output_dir: Path,
    log: RecordLog,
    stores: dict[Label, FeatureStore],
    groups: Sequence[Group],
    *,
    num_folds: int,
    seed: int,
) -> list[list[Record]]:
    """Fits every probe that no record holds yet; returns the records of each group, by model, layer and probe."""

    def jobs() -> Iterator[tuple[Label, str, list[tuple[Group, str]]]]:
        for label, store in stores.items():
            for layer in store.layers:
                missing = [
                    (group, kind) for group in groups for kind in PROBES if _key(label, layer, kind, group) not in log
                ]
                if missing:
                    yield label, layer, missing

    waiting = list(jobs())
    for label, layer, missing in progress(waiting, label="probes", total=len(waiting), unit="layer"):
        features = stores[label].read(layer)
        for group, kind in missing:
            found, scores = fit(group, kind, features, num_folds=num_folds, seed=seed)
            key = _key(label, layer, kind, group)
            if scores is not None:
                write_scores(output_dir, key, scores)
            log.append(
                {
                    "key": key,
                    "model": label.name,
                    "seed": label.seed,
                    "layer": layer,
                    **({} if group.name is None else {MODALITY: group.name}),
                    "width": features.shape[1],
                    "probe": kind,
                    **found,
                }
            )
    by_key = {record["key"]: record for record in log}
    return [
        [
            by_key[_key(label, layer, kind, group)]
            for label, store in stores.items()
            for layer in store.layers
            for kind in PROBES
        ]
        for group in groups
    ]


def _key(label: Label, layer: str, kind: str, group: Group) -> str:
    return group.key(f"{label}/{layer}/{kind}")


def scores_file(output_dir: Path, key: str) -> Path:
    """Returns the file of a probe's scores."""
    return output_dir / SCORES_DIR / f"{key.replace('/', '--')}.npy"


def write_scores(output_dir: Path, key: str, scores: Float[np.ndarray, "findings test"]) -> None:
    """Writes the scores of a probe of findings."""
    path = scores_file(output_dir, key)
    path.parent.mkdir(exist_ok=True)
    with partial_file(path) as partial:
        np.save(partial, scores)


def collect_outcomes(output_dir: Path, group: Group, records: Sequence[Record]) -> Outcomes:
    """Returns the values of all probes of a group, in the order of the records."""
    right: Values = {}
    areas: Values = {}
    by_class: Values = {}
    for record in records:
        key = (record["model"], record["layer"], record["probe"])
        if group.many:
            predicted = np.array([[int(bit) for bit in bits] for bits in record["predicted"]]).T  # [test, findings]
            scores = np.load(scores_file(output_dir, record["key"]))
            own = np.stack([area_values(*pair) for pair in zip(scores, group.gold.T, strict=True)], axis=1)
            right.setdefault(key, []).append((predicted == group.gold).mean(axis=1))
            areas.setdefault(key, []).append(own.mean(axis=1))
        else:
            hits = np.array(record["predicted"]) == group.gold
            right.setdefault(key, []).append(hits)
            own = np.where(group.gold[:, None] == np.arange(len(group.classes)), hits[:, None], np.nan)
        by_class.setdefault(key, []).append(own)
    return Outcomes(group=group, records=records, right=right, areas=areas, by_class=by_class)


def tuned_by(record: Record) -> float:
    """Returns what chooses a model's layer: the cross-validated AUC of findings, otherwise the accuracy."""
    return float(record["cv_auc"] if "cv_auc" in record else record["cv_accuracy"])
