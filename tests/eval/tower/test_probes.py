"""Do the probes find class information if it is present, and only then?"""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from eval.tower.probes import C_GRID, K_GRID, PROBES, knn_path, linear_path, probe


def clusters(num: int, width: int, *, distance: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Three classes whose means stand `distance` apart in a direction of their own; features of very unequal scale."""
    rng = np.random.default_rng(seed)
    classes = np.arange(num) % 3
    features = rng.normal(size=(num, width))
    features[np.arange(num), classes] += distance
    return features * np.logspace(-3, 3, width), classes


def test_linear_predictions_in_the_pictures_span_are_those_in_all_features() -> None:
    features, classes = clusters(90, 300, distance=3.0)
    found = [fit.predicted for fit in linear_path(features[:60], classes[:60], features[60:], C_GRID)]
    for setting, predicted in zip(C_GRID, found, strict=True):
        direct = make_pipeline(StandardScaler(), LogisticRegression(C=setting, max_iter=5000, tol=1e-7))
        assert np.mean(direct.fit(features[:60], classes[:60]).predict(features[60:]) == predicted) > 0.95


def test_nearest_neighbours_are_those_of_scikit_learn() -> None:
    features, classes = clusters(200, 12, distance=1.5)
    found = [fit.predicted for fit in knn_path(features[:120], classes[:120], features[120:], K_GRID)]
    for k, predicted in zip(K_GRID, found, strict=True):
        direct = make_pipeline(StandardScaler(), KNeighborsClassifier(n_neighbors=int(k)))
        assert np.array_equal(direct.fit(features[:120], classes[:120]).predict(features[120:]), predicted)


@pytest.mark.parametrize("kind", PROBES)
def test_what_is_far_apart_is_told_apart_and_shuffled_classes_are_not(kind: str) -> None:
    features, classes = clusters(600, 8, distance=6.0)
    found = probe(kind, features[:300], classes[:300], features[300:], num_folds=5, seed=0)
    assert np.mean(found.predicted == classes[300:]) > 0.98
    assert abs(found.cv_accuracy - np.mean(found.predicted == classes[300:])) < 0.03 and found.converged
    shuffled = np.random.default_rng(0).permutation(classes)
    nothing = probe(kind, features[:300], shuffled[:300], features[300:], num_folds=5, seed=0)
    assert abs(np.mean(nothing.predicted == shuffled[300:]) - 1 / 3) < 4 * (2 / 9 / 300) ** 0.5


@pytest.mark.parametrize("kind", PROBES)
def test_test_pictures_change_nothing_but_their_own_prediction(kind: str) -> None:
    features, classes = clusters(150, 20, distance=1.0)
    all_of_them = probe(kind, features[:100], classes[:100], features[100:], num_folds=5, seed=0)
    one = probe(kind, features[:100], classes[:100], features[120:121], num_folds=5, seed=0)
    assert (one.setting, one.cv_accuracy) == (all_of_them.setting, all_of_them.cv_accuracy)
    assert one.predicted[0] == all_of_them.predicted[20]


def test_a_feature_that_never_changes_does_no_harm() -> None:
    features, classes = clusters(120, 6, distance=6.0)
    features[:, 5] = 7.0
    for kind in PROBES:
        found = probe(kind, features[:60], classes[:60], features[60:], num_folds=3, seed=0)
        assert np.mean(found.predicted == classes[60:]) > 0.95


def test_k_never_exceeds_the_pictures_of_a_fold() -> None:
    features, classes = clusters(9, 4, distance=6.0)
    assert probe("knn", features, classes, features, num_folds=3, seed=0).setting <= 6
