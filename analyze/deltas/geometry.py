"""Do two changes have the same directions? Leading singular subspaces and the principal angles between them.

    spectrum, subspace = decompose(delta, 16)
    angles = principal_angles(subspace.left, other.left)

The k leading left and right singular vectors are computed from the Gram matrix of the spectrum, by Lanczos iteration
from a fixed start (ARPACK). Principal angles: Knyazev & Argentati 2002, doi 10.1137/S1064827500377332, using SciPy.

Known limits: a subspace is well-defined only if σ_k is separated from σ_{k+1}. An error of size e in the matrix rotates
it by about e / (σ_k − σ_{k+1}) (Wedin 1972), so report `gap` with every angle. Rounding noise has no gaps.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from analyze.deltas.ranks import Spectrum
from analyze.deltas.spectra import (
    CHUNK,
    MAX_RELATIVE_ERROR,
    as_matrix,
    eigenvalue_error,
    exact_spectrum,
    gram_matrix,
    without_zeros,
)

if TYPE_CHECKING:
    import torch

MIN_ROWS_FOR_LANCZOS = 256
"""Smaller Gram matrices, or those from which many vectors are needed, are decomposed directly."""


@dataclass(frozen=True, kw_only=True)
class Subspace:
    """The leading singular directions of a matrix, as orthonormal columns."""

    left: Float[np.ndarray, "rows k"]
    right: Float[np.ndarray, "columns k"]
    gap: float
    """(σ_k − σ_{k+1}) / σ_k: 0 if the subspace is arbitrary, 1 if σ_{k+1} is zero."""

    @property
    def k(self) -> int:
        """Number of directions; fewer than requested if the others cannot be distinguished from rounding."""
        return len(self.left.T)


@dataclass(frozen=True, kw_only=True)
class PrincipalAngles:
    """The relation of two subspaces."""

    angles: Float[np.ndarray, " smaller"]
    """In radians, smallest first; as many as the smaller subspace has dimensions."""
    overlap: float
    """Mean cos²: 1 if the smaller lies within the larger, 0 if they are orthogonal, NaN if one is empty."""
    random_overlap: float
    """Expected overlap of two random subspaces of these sizes: the larger dimension over that of the space."""


def top_subspace(delta: "torch.Tensor", k: int, *, device: "torch.device | str | None" = None) -> Subspace:
    """Returns the k leading left and right singular directions of a matrix; see `decompose`."""
    return decompose(delta, k, device=device)[1]


def decompose(
    delta: "torch.Tensor", k: int, *, device: "torch.device | str | None" = None
) -> tuple[Spectrum, Subspace]:
    """Returns all singular values and the k leading directions of a matrix, with one Gram matrix for both.

    Fewer than k directions are returned if the matrix has fewer, or if the others are too weak (below about 1e-5 σ_1)
    to be resolved by the Gram matrix.
    """
    if k < 1:
        raise ValueError(f"k is {k}; expected 1 or more directions")
    whole = as_matrix(delta)
    matrix, kept_rows, kept_columns = without_zeros(whole.to(device=device))
    gram = gram_matrix(matrix)
    spectrum = exact_spectrum(matrix, gram, min(whole.shape))
    values = spectrum.values
    if len(values) and values[0] > 0:
        k = min(k, num_resolved(values, (matrix.shape[0], matrix.shape[1])))
        gap = float(1 - values[k] / values[k - 1]) if k < len(values) else 1.0
        left, right = _directions(matrix, gram, k)
    else:
        left, right, gap = np.empty((matrix.shape[0], 0)), np.empty((matrix.shape[1], 0)), 0.0
    subspace = Subspace(
        left=_with_zero_rows(left, kept_rows, whole.shape[0]),
        right=_with_zero_rows(right, kept_columns, whole.shape[1]),
        gap=gap,
    )
    return spectrum, subspace


def num_resolved(values: Float[np.ndarray, " num_values"], shape: tuple[int, int]) -> int:
    """Returns how many leading singular values of a matrix have directions that its Gram matrix resolves."""
    floor = eigenvalue_error(shape, float(values[0]) ** 2) / (2 * MAX_RELATIVE_ERROR)
    return int(np.sum(values**2 >= floor))


def principal_angles(one: Float[np.ndarray, "n p"], other: Float[np.ndarray, "n q"]) -> PrincipalAngles:
    """Returns the principal angles between the column spaces of two matrices."""
    from scipy.linalg import subspace_angles

    if one.shape[0] != other.shape[0]:
        raise ValueError(f"subspaces of {one.shape[0]} and of {other.shape[0]} dimensions; expected one space")
    sizes = (one.shape[1], other.shape[1])
    if not min(sizes):
        return PrincipalAngles(angles=np.empty(0), overlap=float("nan"), random_overlap=float("nan"))
    angles = subspace_angles(one, other)[::-1]
    return PrincipalAngles(
        angles=angles, overlap=float(np.mean(np.cos(angles) ** 2)), random_overlap=max(sizes) / one.shape[0]
    )


def _directions(matrix: "torch.Tensor", gram: "torch.Tensor", k: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the leading left and right singular vectors, the longer side's from the shorter's."""
    import torch

    short = _leading_eigenvectors(gram, k)  # [short, k]
    is_wide = matrix.shape[0] <= matrix.shape[1]
    across = matrix if is_wide else matrix.T  # [short, long]
    weights = torch.from_numpy(short).to(gram.device)
    parts = [across[:, start : start + CHUNK].double().T @ weights for start in range(0, across.shape[1], CHUNK)]
    long = torch.linalg.qr(torch.cat(parts))[0].cpu().numpy()  # [long, k]
    return (short, long) if is_wide else (long, short)


def _leading_eigenvectors(gram: "torch.Tensor", k: int) -> np.ndarray:
    """Returns the eigenvectors of the k largest eigenvalues, largest first."""
    import torch
    from scipy.sparse.linalg import eigsh

    num_rows = gram.shape[0]
    if gram.is_cuda or num_rows < MIN_ROWS_FOR_LANCZOS or k > num_rows // 8:
        vectors = torch.linalg.eigh(gram)[1][:, -k:].cpu().numpy()
    else:
        start = np.random.default_rng(0).standard_normal(num_rows)
        values, vectors = eigsh((gram.tril() + gram.tril(-1).T).numpy(), k=k, which="LA", v0=start)
        vectors = vectors[:, np.argsort(values)]
    return np.array(vectors[:, ::-1])


def _with_zero_rows(basis: np.ndarray, kept: "torch.Tensor | None", num_rows: int) -> np.ndarray:
    """Reinserts the omitted zero rows."""
    if kept is None:
        return basis
    whole = np.zeros((num_rows, basis.shape[1]))
    whole[kept.cpu().numpy()] = basis
    return whole
