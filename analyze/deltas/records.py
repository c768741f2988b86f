"""The spectral record of a matrix: singular values of each phase and of the null, and angles between phases."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from analyze.deltas.factors import factor_decomposition, factor_spectrum
from analyze.deltas.geometry import Subspace, decompose, principal_angles, top_subspace
from analyze.deltas.ranks import Spectrum, summarise_spectrum
from analyze.deltas.spectra import as_matrix, matched_null, singular_values, singular_values_batched
from models.adapters.changes import LowRankChange, low_rank_change
from models.checkpoint import Checkpoint
from models.layout import Parameter
from tracking.records import Record

if TYPE_CHECKING:
    import torch

BATCH_ELEMENTS = 2**28
"""Elements per GPU batch: 1 GiB in fp32."""
DIGITS = 9
"""Significant digits of a stored singular value."""
Measured = tuple[dict[str, Any], Subspace | None]
"""One phase's figures of a matrix, and its leading directions if they are compared."""


@dataclass(frozen=True, kw_only=True)
class SpectralOptions:
    """Options of the computation per matrix."""

    top_k: int | None
    with_null: bool
    subspace_rank: int | None
    """None omits the angles."""
    seed: int
    device: str


def is_matrix(parameter: Parameter) -> bool:
    """True for matrices, not for biases and norms."""
    return len(parameter.shape) > 1


def matrix_shape(parameter: Parameter) -> tuple[int, int]:
    """Returns the matrix shape of a weight; a convolution kernel has one row per output."""
    return parameter.shape[0], math.prod(parameter.shape[1:])


def cost(parameters: Sequence[Parameter]) -> float:
    """Returns the cost of the spectra of some matrices in multiplications: Gram matrix and eigenvalues."""
    total = 0.0
    for parameter in parameters:
        short, long = sorted(matrix_shape(parameter))
        total += short * short * (long + 4 * short)
    return total


def batches(parameters: Sequence[Parameter], device: str) -> Iterator[list[Parameter]]:
    """Yields batches of matrices to decompose together: single ones on a CPU, equal shapes on a GPU."""
    if device == "cpu":
        yield from ([parameter] for parameter in parameters)
        return
    groups: dict[tuple[int, ...], list[Parameter]] = {}
    for parameter in parameters:
        groups.setdefault(parameter.shape, []).append(parameter)
    for group in groups.values():
        size = max(1, BATCH_ELEMENTS // group[0].num_elements)
        yield from (group[first : first + size] for first in range(0, len(group), size))


def measure_spectra(
    parameters: Sequence[Parameter],
    phases: Sequence[tuple[Checkpoint, Checkpoint]],
    pairs: Sequence[tuple[int, int]],
    options: SpectralOptions,
) -> list[Record]:
    """Returns one record per matrix, for matrices of equal shape.

    Args:
        parameters: the matrices.
        phases: (start, end) of each difference.
        pairs: indices of the phases whose leading subspaces are compared.
        options: options of the computation.
    """
    measured: list[list[dict[str, Any]]] = [[] for _ in parameters]
    subspaces: list[list[Subspace | None]] = [[] for _ in parameters]
    for number, (start, end) in enumerate(phases):
        rank = options.subspace_rank if any(number in pair for pair in pairs) else None
        changes = {parameter.name: low_rank_change(start, end, parameter.name) for parameter in parameters}
        results = {name: _from_factors(change, rank) for name, change in changes.items() if change is not None}
        dense = [parameter for parameter in parameters if parameter.name not in results]
        results |= _from_elements(dense, (start, end), number, rank, options) if dense else {}
        for parameter, own_phases, own_subspaces in zip(parameters, measured, subspaces, strict=True):
            figures, subspace = results[parameter.name]
            own_phases.append(figures)
            own_subspaces.append(subspace)
    return [
        {
            "key": f"spectra/{parameter.name}",
            "tensor": parameter.name,
            "phases": own_phases,
            "pairs": [_angles(own_subspaces[first], own_subspaces[second]) for first, second in pairs]
            if options.subspace_rank is not None
            else [],
        }
        for parameter, own_phases, own_subspaces in zip(parameters, measured, subspaces, strict=True)
    ]


def _from_factors(change: LowRankChange, rank: int | None) -> Measured:
    """Returns one exact change's figures. Its null is left out: no shuffled matrix is of low rank."""
    if rank is None:
        return _phase_figures(factor_spectrum(change), None, None), None
    spectrum, subspace = factor_decomposition(change, rank)
    return _phase_figures(spectrum, None, None), subspace


def _from_elements(
    parameters: Sequence[Parameter],
    phase: tuple[Checkpoint, Checkpoint],
    number: int,
    rank: int | None,
    options: SpectralOptions,
) -> dict[str, Measured]:
    """Returns the figures of one phase's matrices from all their elements, by name."""
    deltas = [_delta(*phase, parameter.name) for parameter in parameters]
    spectra: list[Spectrum]
    subspaces: list[Subspace | None] = [None] * len(deltas)
    if rank is not None and options.top_k is None and len(deltas) == 1:
        spectrum, subspaces[0] = decompose(deltas[0], rank, device=options.device)
        spectra = [spectrum]
    else:
        spectra = _spectra(deltas, options)
        if rank is not None:
            subspaces = [top_subspace(delta, rank, device=options.device) for delta in deltas]
    norms = [float(delta.double().norm()) if options.top_k else None for delta in deltas]
    nulls: list[Spectrum | None] = [None] * len(deltas)
    if options.with_null:
        nulls = [*_spectra(_shuffled(deltas, parameters, number, options), options)]
    return {
        parameter.name: (_phase_figures(spectrum, null, norm), subspace)
        for parameter, spectrum, null, norm, subspace in zip(parameters, spectra, nulls, norms, subspaces, strict=True)
    }


def _phase_figures(spectrum: Spectrum, null: Spectrum | None, norm: float | None) -> dict[str, Any]:
    return {
        "method": spectrum.method,
        "num_values": spectrum.num_values,
        **_figures(spectrum, norm),
        "null": None if null is None else _figures(null, norm),
    }


def _delta(start: Checkpoint, end: Checkpoint, name: str) -> "torch.Tensor":
    """Returns end - start in fp32 as a matrix, with one copy in memory."""
    delta = end.view(name).float().clone() if end.tensors[name].dtype == "F32" else end.view(name).float()
    delta.sub_(start.view(name))  # promoted to fp32 elementwise: exact for lower-precision storage
    for checkpoint in (start, end):
        checkpoint.release(name)
    return as_matrix(delta.reshape(end.tensors[name].shape))


def _spectra(deltas: Sequence["torch.Tensor"], options: SpectralOptions) -> list[Spectrum]:
    if options.top_k is None and len(deltas) > 1:
        return singular_values_batched(deltas, device=options.device)
    return [singular_values(delta, top_k=options.top_k, device=options.device, seed=options.seed) for delta in deltas]


def _shuffled(
    deltas: list["torch.Tensor"], parameters: Sequence[Parameter], phase: int, options: SpectralOptions
) -> list["torch.Tensor"]:
    """Returns the matched nulls; each matrix has its own seed, independent of the order of work."""
    nulls = []
    for delta, parameter in zip(deltas, parameters, strict=True):
        label = f"{options.seed}/{phase}/{parameter.name}"
        seed = int.from_bytes(hashlib.sha256(label.encode()).digest()[:8], "big")
        nulls.append(matched_null(delta, seed=seed))
    deltas.clear()  # frees memory for the largest matrix
    return nulls


def _figures(spectrum: Spectrum, frobenius_norm: float | None) -> dict[str, Any]:
    summary = asdict(summarise_spectrum(spectrum, frobenius_norm=frobenius_norm))
    del summary["log_decay"], summary["frobenius_norm"]
    return {
        "summary": summary,
        "sigma": [float(f"{value:.{DIGITS}g}") for value in spectrum.values],
        "sigma_error": [float(f"{value:.2g}") for value in spectrum.errors],
    }


def _angles(one: Subspace | None, other: Subspace | None) -> dict[str, Any]:
    """Returns the angles between two phases' leading directions, on the output (left) and input side."""
    assert one is not None and other is not None
    result: dict[str, Any] = {"subspace_rank": min(one.k, other.k), "gap_a": one.gap, "gap_b": other.gap}
    for side in ("left", "right"):
        angles = principal_angles(getattr(one, side), getattr(other, side))
        known = len(angles.angles) > 0
        result |= {
            f"{side}_overlap": angles.overlap if known else None,
            f"{side}_chance": angles.random_overlap if known else None,
            f"{side}_smallest_angle_deg": math.degrees(angles.angles[0]) if known else None,
            f"{side}_largest_angle_deg": math.degrees(angles.angles[-1]) if known else None,
        }
    return result
