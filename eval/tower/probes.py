"""How well do fixed features separate classes? A linear and a nearest-neighbour probe, tuned on training images.

    linear   logistic regression with an L2 penalty; C from a grid
    knn      majority among the k nearest by Euclidean distance; k from a grid (ties: the first class)

Features are standardised with the training images' statistics (in each fold with the fold's own). C and k maximise
accuracy over stratified folds of the training images, the smallest value in case of ties; test images are only used for
prediction.

If there are more features than training images, logistic regression is fitted in the span of the training images. This
does not change any prediction, since the penalty sets every weight outside that span to zero.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

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
    predicted: Int[np.ndarray, " test"]
    converged: bool = True


Features = Float[np.ndarray, "pictures width"]
Classes = Int[np.ndarray, " pictures"]
FitPath = Callable[[Features, Classes, Features, Sequence[float]], Iterator[tuple[np.ndarray, bool]]]
"""(training features, classes, other features, settings) -> predictions, and whether each fit converged."""


def linear_path(
    train: Features, classes: Classes, other: Features, settings: Sequence[float]
) -> Iterator[tuple[np.ndarray, bool]]:
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
        yield model.predict(other), int(model.n_iter_.max()) < MAX_STEPS


def knn_path(
    train: Features, classes: Classes, other: Features, settings: Sequence[float]
) -> Iterator[tuple[np.ndarray, bool]]:
    """Yields the majority of the k nearest for each k; distances are computed once."""
    from sklearn.neighbors import NearestNeighbors

    train, other = _standardised(train, other)
    nearest = NearestNeighbors(n_neighbors=int(max(settings)), algorithm="brute").fit(train)
    votes = classes[nearest.kneighbors(other, return_distance=False)]  # [pictures, k], nearest first
    for setting in settings:
        counts = np.stack([(votes[:, : int(setting)] == one).sum(axis=1) for one in range(classes.max() + 1)], axis=1)
        yield counts.argmax(axis=1), True


PROBES: dict[str, tuple[FitPath, Sequence[float]]] = {"linear": (linear_path, C_GRID), "knn": (knn_path, K_GRID)}


def probe(kind: str, train: Features, classes: Classes, test: Features, *, num_folds: int, seed: int) -> Probed:
    """Fits a probe on the training images and predicts the classes of the test images."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.model_selection import StratifiedKFold

    path, grid = PROBES[kind]
    folds = list(StratifiedKFold(num_folds, shuffle=True, random_state=seed).split(train, classes))
    if kind == "knn":
        grid = [k for k in grid if k <= min(len(fitted) for fitted, _ in folds)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # reported in the table
        right = np.zeros(len(grid))
        for fitted, held in folds:
            for place, (predicted, _) in enumerate(path(train[fitted], classes[fitted], train[held], grid)):
                right[place] += np.sum(predicted == classes[held])
        best = int(right.argmax())
        *_, (predicted, converged) = path(train, classes, test, grid[: best + 1])  # the same warm starts as in a fold
    return Probed(
        setting=float(grid[best]),
        cv_accuracy=float(right[best] / len(train)),
        predicted=predicted,
        converged=converged,
    )


def _standardised(train: Features, other: Features) -> tuple[Features, Features]:
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(train.astype(np.float64))
    return scaler.transform(train.astype(np.float64)), scaler.transform(other.astype(np.float64))
