"""Leading subspaces and the angles between them, against planted directions, SciPy and closed forms."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from analyze.deltas.geometry import decompose, principal_angles, top_subspace
from analyze.deltas.spectra import singular_values


def noise(rows: int, columns: int, *, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def orthonormal(rows: int, columns: int, *, seed: int) -> np.ndarray:
    return np.linalg.qr(noise(rows, columns, seed=seed).double().numpy())[0]


def planted(rows: int, columns: int, values: list[float]) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    left, right = orthonormal(rows, len(values), seed=1), orthonormal(columns, len(values), seed=2)
    return torch.from_numpy(left * values @ right.T).float(), left, right


@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (300, 700), (700, 300), (300, 300)])
def test_planted_directions_are_found_on_both_sides(shape: tuple[int, int]) -> None:
    delta, left, right = planted(*shape, [5.0, 4.0, 3.0, 1.0])
    subspace = top_subspace(delta, 3)
    assert subspace.gap == pytest.approx(2 / 3, rel=1e-5)
    for found, expected in ((subspace.left, left[:, :3]), (subspace.right, right[:, :3])):
        np.testing.assert_allclose(np.abs(found.T @ expected), np.eye(3), atol=1e-6)
        np.testing.assert_allclose(found.T @ found, np.eye(3), atol=1e-12)


@pytest.mark.parametrize("k", [1, 5, 40])
@pytest.mark.parametrize("shape", [(280, 400), (50, 900)])
def test_directions_span_what_numpy_finds_and_belong_together(shape: tuple[int, int], k: int) -> None:
    delta = noise(*shape)
    spectrum, subspace = decompose(delta, k)
    np.testing.assert_allclose(spectrum.values, singular_values(delta).values, rtol=1e-12)
    left, values, right = np.linalg.svd(delta.double().numpy(), full_matrices=False)
    assert principal_angles(subspace.left, left[:, :k]).angles.max() < 1e-6
    assert principal_angles(subspace.right, right[:k].T).angles.max() < 1e-6
    paired = subspace.left.T @ delta.double().numpy() @ subspace.right
    np.testing.assert_allclose(np.abs(np.diag(paired)), values[:k], rtol=1e-9)
    assert subspace.gap == pytest.approx(1 - values[k] / values[k - 1], rel=1e-6)


def test_no_more_directions_are_given_than_stand_above_rounding() -> None:
    delta, left, _ = planted(300, 400, [2.0, 1.0])
    spectrum, subspace = decompose(delta, 16)
    assert (subspace.k, spectrum.method) == (2, "svd")
    assert subspace.gap == pytest.approx(1, abs=1e-5)
    assert principal_angles(subspace.left, left).angles.max() < 1e-6
    small = top_subspace(noise(3, 9), 8)
    assert (small.left.shape, small.right.shape, small.gap) == ((3, 3), (9, 3), 1.0)


def test_no_change_has_no_directions() -> None:
    for shape in ((4, 6), (5,), (0, 3)):
        spectrum, subspace = decompose(torch.zeros(shape), 2)
        assert not spectrum.values.any()
        assert (subspace.k, subspace.gap) == (0, 0.0)
    angles = principal_angles(subspace.right, orthonormal(3, 2, seed=0))
    assert len(angles.angles) == 0
    assert math.isnan(angles.overlap)


def test_rows_and_columns_of_zeros_keep_their_places() -> None:
    delta, *_ = planted(300, 500, [3.0, 2.0, 1.0])
    delta[::4], delta[:, 1::3] = 0, 0
    subspace = top_subspace(delta, 2)
    left, _, right = np.linalg.svd(delta.double().numpy(), full_matrices=False)
    assert principal_angles(subspace.left, left[:, :2]).angles.max() < 1e-6
    assert principal_angles(subspace.right, right[:2].T).angles.max() < 1e-6
    assert not subspace.left[::4].any()
    assert not subspace.right[1::3].any()


def test_a_vector_is_its_own_direction() -> None:
    bias = noise(1, 50)[0]
    spectrum, subspace = decompose(bias, 3)
    assert subspace.k == len(spectrum.values) == 1
    direction = (bias / bias.norm()).double().numpy()
    assert abs(float(direction @ subspace.right[:, 0])) == pytest.approx(1)


def test_the_same_matrix_gives_the_same_directions() -> None:
    one, other = (top_subspace(noise(300, 310), 4) for _ in range(2))
    assert np.array_equal(one.left, other.left)
    assert np.array_equal(one.right, other.right)


def test_angles_between_planes_match_their_closed_forms() -> None:
    angle = 0.3
    plane = np.eye(4)[:, :2]
    turned = np.array([[1, 0], [0, math.cos(angle)], [0, math.sin(angle)], [0, 0]])
    result = principal_angles(plane, turned)
    np.testing.assert_allclose(result.angles, [0, angle], atol=1e-9)
    assert result.overlap == pytest.approx((1 + math.cos(angle) ** 2) / 2)
    assert result.random_overlap == 0.5
    assert principal_angles(plane, np.eye(4)[:, 2:]).overlap == pytest.approx(0, abs=1e-12)
    within = principal_angles(np.eye(4)[:, :1], plane)
    assert (len(within.angles), within.overlap, within.random_overlap) == (1, pytest.approx(1), 0.5)


def test_random_subspaces_overlap_as_much_as_is_said_of_them() -> None:
    draws = [orthonormal(30, size, seed=seed) for seed in range(400) for size in (3, 6)]
    results = [principal_angles(one, other) for one, other in zip(draws[::2], draws[1::2], strict=True)]
    assert np.mean([result.overlap for result in results]) == pytest.approx(results[0].random_overlap, rel=0.05)
    for smaller, larger in pairwise(results[0].angles):
        assert smaller <= larger


def test_subspaces_of_two_spaces_and_no_directions_are_refused() -> None:
    with pytest.raises(ValueError, match="expected one space"):
        principal_angles(np.eye(4)[:, :2], np.eye(5)[:, :2])
    with pytest.raises(ValueError, match="k is 0"):
        top_subspace(noise(3, 4), 0)
