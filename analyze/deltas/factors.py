"""What are the singular values and directions of a change s·B·A? Computed from the factors, exactly and cheaply.

    up·down = Q_u (R_u R_dᵀ) Q_dᵀ,    up = Q_u R_u,    downᵀ = Q_d R_d

The core R_u R_dᵀ has at most rank × rank elements and the singular values of the whole. Its singular vectors, times Q_u
and Q_d, are those of the whole. All in fp64. The error of a value is at most about u (√n + √m) ‖R_u‖ ‖R_d‖, with
u = 2^-53. There are never more nonzero values than the adapter's rank.
"""

import math
from typing import TYPE_CHECKING

import numpy as np

from analyze.deltas.geometry import Subspace, num_resolved
from analyze.deltas.ranks import Spectrum
from analyze.deltas.spectra import UNIT_ROUNDOFF
from models.adapters.changes import LowRankChange

if TYPE_CHECKING:
    import torch

METHOD = "factors"


def squared_norm(change: LowRankChange) -> float:
    """Returns the sum of the squared elements of a change."""
    return float(_core(change)[1].square().sum()) if change.rank else 0.0


def factor_spectrum(change: LowRankChange) -> Spectrum:
    """Returns all singular values of a change: those of its core, and zeros."""
    import torch

    if not change.rank:
        return _spectrum(change, np.zeros(0), 0.0)
    _, core, _ = _core(change)
    return _spectrum(change, torch.linalg.svdvals(core).numpy(), _error(change))


def factor_decomposition(change: LowRankChange, k: int) -> tuple[Spectrum, Subspace]:
    """Returns all singular values of a change and its k leading directions, as `geometry.decompose` does."""
    import torch

    rows, columns = change.shape
    none = Subspace(left=np.empty((rows, 0)), right=np.empty((columns, 0)), gap=0.0)
    if not change.rank:
        return factor_spectrum(change), none
    left_basis, core, right_basis = _core(change)
    left, values, right = torch.linalg.svd(core, full_matrices=False)
    spectrum = _spectrum(change, values.numpy(), _error(change))
    if not float(values[0]):
        return spectrum, none
    number = min(k, len(values), num_resolved(spectrum.values, change.shape))
    after = float(spectrum.values[number]) if number < len(spectrum.values) else 0.0
    subspace = Subspace(
        left=(left_basis @ left[:, :number]).numpy(),
        right=(right_basis @ right[:number].T).numpy(),
        gap=1 - after / float(spectrum.values[number - 1]),
    )
    return spectrum, subspace


def _core(change: LowRankChange) -> "tuple[torch.Tensor, torch.Tensor, torch.Tensor]":
    """Returns orthonormal bases of the two factors and the matrix between them: [m, a], [a, b] and [n, b]."""
    import torch

    left_basis, left = torch.linalg.qr(change.up)
    right_basis, right = torch.linalg.qr(change.down.T)
    return left_basis, left @ right.T, right_basis


def _error(change: LowRankChange) -> float:
    rows, columns = change.shape
    return UNIT_ROUNDOFF * (math.sqrt(rows) + math.sqrt(columns)) * float(change.up.norm() * change.down.norm())


def _spectrum(change: LowRankChange, values: np.ndarray, error: float) -> Spectrum:
    number = min(change.shape)
    missing = number - len(values)
    return Spectrum(
        values=np.pad(values, (0, missing)),
        errors=np.pad(np.full_like(values, error), (0, missing)),
        num_values=number,
        method=METHOD,
    )
