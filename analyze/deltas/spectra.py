"""In how many directions, and how strongly, do weights change? Singular values of weight deltas.

    spectrum = singular_values(delta)  # delta: [rows, columns], fp32

Exact by default: the eigenvalues λ of the Gram matrix of the shorter side, every product exact and every sum in fp64,
σ = sqrt(λ). It is several times faster than a singular value decomposition, but its rounding error ε is one of λ:

    ε = u (sqrt(n) + sqrt(m)) λ_1,    u = 2^-53, n the shorter side, m the longer

u sqrt(m) for the sums (probabilistic bound: Higham & Mary 2019, doi 10.1137/18M1226312) and u sqrt(n) λ_1
for the eigenvalues (LAPACK Users' Guide, section 4.7: u p(n) λ_1, p a modestly growing function). Measured: a sixth of
that at most for random, positive, graded and low-rank matrices up to 1500 × 1500; 1.3 times that for a constant one,
whose rounding errors all have the same sign. So a σ near 1e-8 σ_1 is lost. If any value could be off by more than
`MAX_RELATIVE_ERROR`, all are recomputed by QR reduction and a full decomposition in fp64, whose error is one of σ:
u (sqrt(n) + sqrt(m)) σ_1. Zero rows and columns are removed first: they only add zero singular values.

With `top_k` only the leading values are computed, randomised (Halko, Martinsson & Tropp 2011, doi 10.1137/090771806,
algorithm 4.4, with `torch.svd_lowrank`). Apart from rounding they are lower bounds; each has a residual within which a
true value lies (Weyl's inequality for [[0, D], [Dᵀ, 0]]). For flat spectra (rounding) errors are some percent.

Known limits: below about 1e-12 σ_1 even the full decomposition has fewer than four correct digits (see `errors`).
"""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from analyze.deltas.ranks import Spectrum

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float

MAX_RELATIVE_ERROR = 1e-4
"""Maximum relative error of a Gram value; above it the full decomposition is used."""
UNIT_ROUNDOFF = 2.0**-53
CHUNK = 1024
"""Entries of the longer side converted to fp64 at a time; more is not faster (measured on two cores)."""
NUM_BLOCK_ROWS = 4
"""Blocks per side of the symmetric Gram matrix: of 4 × 4 blocks, the 10 at and below the diagonal are computed."""
MIN_ROWS_IN_BLOCKS = 1024
BATCH_BYTES = 2**31
"""Gram matrices decomposed per batch."""
SIGN_BIT = np.uint32(1 << 31)
SIGNS_AT_ONCE = 2**20
NUM_OVERSAMPLED = 16
NUM_POWER_ITERATIONS = 6
"""Halko, Martinsson & Tropp: 5 to 10 extra directions, 1 to 4 iterations; rounding's flat spectra need more of both."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def as_matrix(delta: "torch.Tensor") -> "torch.Tensor":
    """Returns a tensor as [rows, columns]: a vector as one row, a kernel with one row per output."""
    delta = delta.detach()
    return delta.flatten(1) if delta.ndim > 1 else delta.reshape(1, -1)


def singular_values(
    delta: "torch.Tensor", *, top_k: int | None = None, device: "torch.device | str | None" = None, seed: int = 0
) -> Spectrum:
    """Returns the singular values of a matrix; a vector has one, its norm.

    Args:
        delta: in fp32 or fewer bits, of any shape (see `as_matrix`).
        top_k: compute only this many leading values, with a randomised algorithm; by default all are computed exactly.
        device: device of the computation; the tensor's by default.
        seed: seed of the randomised algorithm.

    Raises:
        ValueError: if a value is not finite.
    """
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k is {top_k}; expected 1 or more leading singular values")
    whole = as_matrix(delta)
    matrix, _, _ = without_zeros(whole.to(device=device))
    num_values = min(whole.shape)
    if top_k is not None and top_k < min(matrix.shape):
        return _randomised(matrix, top_k, num_values, seed)
    return exact_spectrum(matrix, gram_matrix(matrix), num_values)


def singular_values_batched(
    deltas: Sequence["torch.Tensor"], *, device: "torch.device | str | None" = None
) -> list[Spectrum]:
    """Returns the singular values of matrices of one shape, with batched decomposition of their Gram matrices.

    For GPUs, which single small matrices do not fully use. If memory is insufficient, smaller batches are used.
    """
    import torch

    if not deltas:
        return []
    shapes = {tuple(delta.shape) for delta in deltas}
    if len(shapes) > 1:
        raise ValueError(f"matrices of the shapes {sorted(shapes)} in one batch; expected one shape")
    matrices = [as_matrix(delta) for delta in deltas]
    num_values = min(matrices[0].shape)

    def decompose(batch: Sequence["torch.Tensor"]) -> list[Spectrum]:
        grams = torch.stack([gram_matrix(matrix.to(device=device)) for matrix in batch])
        for matrix, gram in zip(batch, grams, strict=True):
            _check_finite(matrix, gram)
        eigenvalues = torch.linalg.eigvalsh(grams).cpu()
        del grams
        return [
            _trusted(matrix, values, num_values) or singular_values(matrix, device=device)
            for matrix, values in zip(batch, eigenvalues, strict=True)
        ]

    return in_batches(matrices, max(1, BATCH_BYTES // max(1, 8 * num_values**2)), decompose)


def in_batches(items: Sequence[Item], size: int, work: Callable[[Sequence[Item]], list[Result]]) -> list[Result]:
    """Processes items in batches; a batch that does not fit the device's memory is halved."""
    import torch

    results: list[Result] = []
    while len(results) < len(items):
        try:
            results += work(items[len(results) : len(results) + size])
        except torch.OutOfMemoryError:
            if size == 1:
                raise
            size //= 2
    return results


def without_zeros(
    matrix: "torch.Tensor",
) -> tuple["torch.Tensor", "torch.Tensor | None", "torch.Tensor | None"]:
    """Returns a matrix without zero rows and columns, and the indices of the others (None: all are kept)."""
    rows, columns = matrix.any(dim=1), matrix.any(dim=0)
    kept_rows = None if bool(rows.all()) else rows.nonzero().flatten()
    kept_columns = None if bool(columns.all()) else columns.nonzero().flatten()
    if kept_rows is not None:
        matrix = matrix[kept_rows]
    if kept_columns is not None:
        matrix = matrix[:, kept_columns]
    return matrix, kept_rows, kept_columns


def gram_matrix(matrix: "Float[torch.Tensor, 'rows columns']") -> "Float[torch.Tensor, 'short short']":
    """Returns the Gram matrix of the shorter side in fp64; only the lower triangle is complete."""
    import torch

    is_wide = matrix.shape[0] <= matrix.shape[1]
    short, long = min(matrix.shape), max(matrix.shape)
    gram = torch.zeros(short, short, dtype=torch.float64, device=matrix.device)
    height = -(-short // NUM_BLOCK_ROWS) if short >= MIN_ROWS_IN_BLOCKS else max(1, short)
    for start in range(0, long, CHUNK):
        part = matrix[:, start : start + CHUNK] if is_wide else matrix[start : start + CHUNK].T  # [short, chunk]
        part = part.double()
        for top in range(0, short, height):
            bottom = min(short, top + height)
            gram[top:bottom, :bottom].addmm_(part[top:bottom], part[:bottom].T)
    return gram


def exact_spectrum(matrix: "torch.Tensor", gram: "torch.Tensor", num_values: int) -> Spectrum:
    """Returns all singular values of a matrix, from its Gram matrix if that is accurate enough.

    Args:
        matrix: [rows, columns], without rows or columns of zeros.
        gram: result of `gram_matrix`.
        num_values: number of values including zero rows and columns.
    """
    import torch

    _check_finite(matrix, gram)
    return _trusted(matrix, torch.linalg.eigvalsh(gram).cpu(), num_values) or _decomposed(matrix, num_values)


def eigenvalue_error(shape: Sequence[int], largest: float) -> float:
    """Returns ε, the error bound of an eigenvalue of a matrix's Gram matrix (see the module's docstring)."""
    return UNIT_ROUNDOFF * (math.sqrt(shape[0]) + math.sqrt(shape[1])) * largest


def _trusted(matrix: "torch.Tensor", eigenvalues: "torch.Tensor", num_values: int) -> Spectrum | None:
    """Returns the spectrum from a Gram matrix's eigenvalues, or None if one may be too inaccurate."""
    squares = eigenvalues.numpy()[::-1]  # largest first
    error = eigenvalue_error(matrix.shape, float(squares[0])) if len(squares) else 0.0
    values = np.sqrt(np.maximum(squares, 0))
    errors = values - np.sqrt(np.maximum(squares - error, 0))
    if np.any(errors > MAX_RELATIVE_ERROR * values) or np.any(squares < 0):
        return None
    return _padded(values, errors, num_values, "gram")


def _decomposed(matrix: "torch.Tensor", num_values: int) -> Spectrum:
    """Returns all singular values by blockwise QR reduction of the longer side and a full decomposition."""
    import torch

    short, long = min(matrix.shape), max(matrix.shape)
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    if long <= 2 * short:
        triangle = tall.double()
    else:
        triangle = torch.empty(0, short, dtype=torch.float64, device=matrix.device)
        step = max(2 * short, CHUNK)
        for start in range(0, long, step):
            part = tall[start : start + step].double()
            triangle = torch.linalg.qr(torch.cat([triangle, part]), mode="r")[1]
    driver = "gesvd" if matrix.is_cuda else None  # CUDA's default, gesvdj, stops at a tolerance
    values = torch.linalg.svdvals(triangle, driver=driver).cpu().numpy()
    error = UNIT_ROUNDOFF * (math.sqrt(long) + math.sqrt(short)) * float(values[0])
    return _padded(values, np.full_like(values, error), num_values, "svd")


def _padded(values: np.ndarray, errors: np.ndarray, num_values: int, method: str) -> Spectrum:
    """Adds the zero singular values of removed rows or columns."""
    missing = num_values - len(values)
    return Spectrum(
        values=np.pad(values, (0, missing)), errors=np.pad(errors, (0, missing)), num_values=num_values, method=method
    )


def _check_finite(matrix: "torch.Tensor", gram: "torch.Tensor") -> None:
    if not bool(gram.diagonal().isfinite().all()):
        num_bad = int((~matrix.isfinite()).sum())
        raise ValueError(f"{num_bad} of {matrix.numel()} elements are not finite; a spectrum needs finite ones")


def _randomised(matrix: "torch.Tensor", top_k: int, num_values: int, seed: int) -> Spectrum:
    import torch

    if matrix.dtype not in (torch.float32, torch.float64):
        matrix = matrix.float()
    scale = matrix.abs().amax()
    if not bool(scale.isfinite()):
        _check_finite(matrix, scale.reshape(1, 1))
    size = min(top_k + NUM_OVERSAMPLED, *matrix.shape)
    with torch.random.fork_rng(devices=[matrix.device] if matrix.is_cuda else []):
        torch.manual_seed(seed)
        left, values, right = torch.svd_lowrank(matrix, q=size, niter=NUM_POWER_ITERATIONS)
    left, values, right = left[:, :top_k].double(), values[:top_k].double(), right[:, :top_k].double()
    backwards = -right * values
    squares = torch.zeros_like(values)
    for start in range(0, matrix.shape[0], CHUNK):
        part, left_part = matrix[start : start + CHUNK].double(), left[start : start + CHUNK]
        squares += (part @ right - left_part * values).square().sum(0)
        backwards += part.T @ left_part
    squares += backwards.square().sum(0)
    errors = squares.sqrt() + torch.finfo(matrix.dtype).eps * values[0]
    return Spectrum(
        values=values.cpu().numpy(), errors=errors.cpu().numpy(), num_values=num_values, method="randomised"
    )


def matched_null(delta: "torch.Tensor", *, seed: int) -> "torch.Tensor":
    """Returns a matrix with the same magnitudes at random positions with random signs: the same size, but no direction.

    Signs are drawn independently: shuffled ones would keep a mean, which is one strong direction. The same seed gives
    the same matrix for any number of threads. Needs one copy of the matrix besides the result.
    """
    import torch

    rng = np.random.default_rng(seed)
    null = delta.detach().float().cpu().clone(memory_format=torch.contiguous_format)
    values = null.numpy().reshape(-1)
    rng.shuffle(values)
    bits = values.view(np.uint32)
    for start in range(0, len(bits), SIGNS_AT_ONCE):
        part = bits[start : start + SIGNS_AT_ONCE]
        part ^= rng.integers(2**32, size=len(part), dtype=np.uint32) & SIGN_BIT
    return null
