"""Summaries of a spectrum: norms, ranks and decay of a change's singular values σ_1 ≥ σ_2 ≥ …

The definitions are the paper's and its code's: stable rank, effective rank (Roy & Vetterli 2007, "The effective rank: a
measure of effective dimensionality"), log-volume and decay of the leading 50; in addition the participation ratio.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

NUM_LEADING = 50
"""Number of values in the log-volume and the decay, as in the paper's figure and code."""


@dataclass(frozen=True, kw_only=True)
class Spectrum:
    """A matrix's singular values, largest first, with error bounds."""

    values: Float[np.ndarray, " num_kept"]
    errors: Float[np.ndarray, " num_kept"]
    """Absolute error bound of each value."""
    num_values: int
    """Number of singular values of the matrix; `values` has fewer if only the leading ones were requested."""
    method: str
    """`gram`, `svd` or `randomised`."""

    @property
    def is_full(self) -> bool:
        return len(self.values) == self.num_values

    @property
    def resolved(self) -> Float[np.ndarray, " num_resolved"]:
        """The values above their error bound; the others cannot be distinguished from zero."""
        return self.values[self.values > self.errors]


@dataclass(frozen=True, kw_only=True)
class SpectrumSummary:
    """Norms and ranks; 0 for a zero matrix, None if they need values that were not computed."""

    spectral_norm: float
    """σ_1"""
    nuclear_norm: float | None
    """Σ σ"""
    frobenius_norm: float | None
    """sqrt(Σ σ²)"""
    stable_rank: float | None
    """Σ σ² / σ_1²"""
    effective_rank: float | None
    """exp(−Σ p ln p) with p = σ / Σ σ"""
    participation_ratio: float | None
    """(Σ σ²)² / Σ σ⁴"""
    log_volume: float | None
    """Σ ln σ over the leading `num_in_log_volume`; None where there is none"""
    num_in_log_volume: int
    """50, or the number of values distinguishable from zero"""
    log_decay: Float[np.ndarray, " num_in_log_volume"]
    """ln(σ_i / σ_1) of the same values"""


def summarise_spectrum(spectrum: Spectrum, *, frobenius_norm: float | None = None) -> SpectrumSummary:
    """Returns the norms, ranks and decay of a spectrum.

    Args:
        spectrum: all values or the leading ones.
        frobenius_norm: norm of the matrix, needed if the spectrum has only the leading values.
    """
    values = spectrum.values
    largest = float(values[0]) if len(values) else 0.0
    scaled = values / largest if largest else values  # squares and fourth powers of small changes would underflow
    squares = float(np.sum(scaled**2))
    nuclear = effective_rank = participation = None
    if spectrum.is_full:
        frobenius_norm = largest * squares**0.5
        nuclear = largest * float(np.sum(scaled))
        effective_rank = _effective_rank(scaled)
        participation = squares**2 / float(np.sum(scaled**4)) if largest else 0.0
    stable_rank = None
    if frobenius_norm is not None:
        stable_rank = (frobenius_norm / largest) ** 2 if largest else 0.0
    leading = spectrum.resolved[:NUM_LEADING]
    return SpectrumSummary(
        spectral_norm=largest,
        nuclear_norm=nuclear,
        frobenius_norm=frobenius_norm,
        stable_rank=stable_rank,
        effective_rank=effective_rank,
        participation_ratio=participation,
        log_volume=float(np.sum(np.log(leading))) if len(leading) else None,
        num_in_log_volume=len(leading),
        log_decay=np.log(leading / largest) if len(leading) else np.empty(0),
    )


def _effective_rank(values: np.ndarray) -> float:
    positive = values[values > 0]
    if not len(positive):
        return 0.0
    shares = positive / positive.sum()
    return float(np.exp(-np.sum(shares * np.log(shares))))
