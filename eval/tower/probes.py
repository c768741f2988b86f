"""How well do fixed features separate classes? A linear and a nearest-neighbour probe, tuned on training images.

    linear   logistic regression with an L2 penalty; C from a grid
    knn      majority among the k nearest by Euclidean distance; k from a grid (ties: the first class)

Features are standardised with the training images' statistics (in each fold with the fold's own). C and k maximise
accuracy over stratified folds of the training images, the smallest value in case of ties; test images are only used for
prediction. Findings get a binary probe each, whose C and k maximise the area under the ROC curve over the folds: for a
rare finding, accuracy is highest if it is never predicted.

If there are more features than training images, logistic regression is fitted in the span of the training images. This
does not change any prediction, since the penalty sets every weight outside that span to zero.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from eval.tower.areas import area_values

ACCURACY, AUC = "accuracy", "auc"
C_GRID = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
K_GRID = (1, 3, 5, 9, 15, 25)
MAX_STEPS = 2000
"""Iterations of LBFGS for each C."""


@dataclass(frozen=True, kw_only=True)
class Probed:
    """A probe's predictions on the test images."""

    setting: float
    """C or k."""
    cv_accuracy: float
    """Accuracy of that setting over the folds of the training images."""
    cv_auc: float | None = None
    """Area under the ROC curve, averaged over the folds, if it chose the setting."""
    predicted: Int[np.ndarray, " test"]
    converged: bool = True
    scores: Float[np.ndarray, " test"] | None = None
    """Of two classes: how strongly the second is predicted."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Predictions of a probe with one setting."""

    predicted: Int[np.ndarray, " other"]
    scores: Float[np.ndarray, " other"] | None
    """Of two classes: how strongly the second is predicted, as logit or share of votes."""
    converged: bool = True


Features = Float[np.ndarray, "pictures width"]
Classes = Int[np.ndarray, " pictures"]
FitPath = Callable[[Features, Classes, Features, Sequence[float]], Iterator[Fit]]
"""(training features, classes, other features, settings) -> predictions, and whether each fit converged."""


def linear_path(train: Features, classes: Classes, other: Features, settings: Sequence[float]) -> Iterator[Fit]:
    """Yields logistic regression's predictions for increasing C, with warm starts."""
    from sklearn.linear_model import LogisticRegression

    train, other = _standardised(train, other)
    if train.shape[1] > len(train):
        basis = np.linalg.svd(train, full_matrices=False)[2]  # [pictures, width]
        train, other = train @ basis.T, other @ basis.T
    model = LogisticRegression(max_iter=MAX_STEPS, warm_start=True)
    for setting in settings:
        model.set_params(C=setting)
        model.fit(train, classes)
        scores = model.decision_function(other)  # [pictures] of two classes, [pictures, classes] of more
        yield Fit(
            predicted=model.predict(other),
            scores=scores if scores.ndim == 1 else None,
            converged=int(model.n_iter_.max()) < MAX_STEPS,
        )


def knn_path(train: Features, classes: Classes, other: Features, settings: Sequence[float]) -> Iterator[Fit]:
    """Yields the majority of the k nearest for each k; distances are computed once."""
    from sklearn.neighbors import NearestNeighbors

    train, other = _standardised(train, other)
    nearest = NearestNeighbors(n_neighbors=int(max(settings)), algorithm="brute").fit(train)
    votes = classes[nearest.kneighbors(other, return_distance=False)]  # [pictures, k], nearest first
    for setting in settings:
        counts = np.stack([(votes[:, : int(setting)] == one).sum(axis=1) for one in range(classes.max() + 1)], axis=1)
        yield Fit(predicted=counts.argmax(axis=1), scores=counts[:, 1] / setting if counts.shape[1] == 2 else None)


PROBES: dict[str, tuple[FitPath, Sequence[float]]] = {"linear": (linear_path, C_GRID), "knn": (knn_path, K_GRID)}


def probe(
    kind: str, train: Features, classes: Classes, test: Features, *, num_folds: int, seed: int, tune: str = ACCURACY
) -> Probed:
    """Fits a probe on the training images and predicts the classes of the test images.

    Args:
        kind: a key of `PROBES`.
        train: features of the training images.
        classes: their classes, numbered from 0.
        test: features of the test images.
        num_folds: folds of the training images for choosing C or k.
        seed: seed of the folds.
        tune: `accuracy`, or `auc` (of two classes): what C or k maximises.
    """
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.model_selection import StratifiedKFold

    path, grid = PROBES[kind]
    folds = list(StratifiedKFold(num_folds, shuffle=True, random_state=seed).split(train, classes))
    if kind == "knn":
        grid = [k for k in grid if k <= min(len(fitted) for fitted, _ in folds)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # reported in the table
        right, areas = np.zeros(len(grid)), np.zeros(len(grid))
        for fitted, held in folds:
            for place, fit in enumerate(path(train[fitted], classes[fitted], train[held], grid)):
                right[place] += np.sum(fit.predicted == classes[held])
                if tune == AUC:
                    assert fit.scores is not None
                    areas[place] += area_values(fit.scores, classes[held]).mean() / num_folds
        best = int((areas if tune == AUC else right).argmax())
        *_, fit = path(train, classes, test, grid[: best + 1])  # the same warm starts as in a fold
    return Probed(
        setting=float(grid[best]),
        cv_accuracy=float(right[best] / len(train)),
        cv_auc=float(areas[best]) if tune == AUC else None,
        predicted=fit.predicted,
        converged=fit.converged,
        scores=fit.scores,
    )


def _standardised(train: Features, other: Features) -> tuple[Features, Features]:
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(train.astype(np.float64))
    return scaler.transform(train.astype(np.float64)), scaler.transform(other.astype(np.float64))
