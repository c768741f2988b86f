"""How straight is a trajectory? The direction that explains most of it, and a line through its coefficients.

For one tensor with T kept steps, M is the matrix of its flattened changes Δ_t = W_t − W_start, [T, elements]. All that
is needed is the Gram matrix G = M·Mᵀ, [T, T], whose leading eigenpair is λ, u:

    direction     v = Mᵀu / √λ                 coefficients     c_t = ⟨Δ_t, v⟩ = √λ u_t
    rank-1 share  λ / trace G                  line             c_t ≈ intercept + slope · t, least squares; R²

as in RELEX (arXiv 2605.21468): not centred, and with an intercept. A change that the line predicts for another step is
a sum of the kept ones, ĉ(step) v = Σ_t w_t Δ_t with w_t = ĉ(step) u_t / √λ. Gram matrices of several tensors add up to
that of the tensors together.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

FEWEST_STEPS = 3
"""Two points always lie on a line."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """The leading direction of a trajectory, and its linearity in steps; NaN where nothing changed."""

    steps: tuple[int, ...]
    rank1_share: float
    """Share of Σ_t ‖Δ_t‖² along the direction."""
    coefficients: Float[np.ndarray, " steps"]
    """c_t, with the sign that makes the last one positive."""
    slope: float
    """Per step."""
    intercept: float
    r2: float
    """Share of the coefficients' variance that the line explains; NaN with fewer than three steps."""

    def predicted(self, step: float) -> float:
        """Returns ĉ, the coefficient that the line gives for a step."""
        return self.intercept + self.slope * step

    def weights(self, step: float) -> Float[np.ndarray, " steps"]:
        """Returns w_t, so that Σ w_t Δ_t is the change that the line predicts for a step; zeros if nothing changed."""
        squares = float(self.coefficients @ self.coefficients)  # λ
        if not squares > 0:
            return np.zeros(len(self.steps))
        return self.predicted(step) * self.coefficients / squares


def fit_line(gram: Float[np.ndarray, "steps steps"], steps: Sequence[int]) -> Line:
    """Returns the leading direction of a trajectory, from its Gram matrix, and the line through its coefficients.

    Args:
        gram: ⟨Δ_s, Δ_t⟩.
        steps: the optimizer steps, ascending.
    """
    values, vectors = np.linalg.eigh(gram)
    total = float(np.trace(gram))
    largest = max(float(values[-1]), 0.0)
    coefficients = np.sqrt(largest) * vectors[:, -1]
    if coefficients[-1] < 0:
        coefficients = -coefficients
    places = np.asarray(steps, dtype=float)
    centred, spread = places - places.mean(), coefficients - coefficients.mean()
    width, variance = float(centred @ centred), float(spread @ spread)
    slope = float(centred @ spread) / width if width else float("nan")
    return Line(
        steps=tuple(steps),
        rank1_share=largest / total if total > 0 else float("nan"),
        coefficients=coefficients,
        slope=slope,
        intercept=float(coefficients.mean() - slope * places.mean()),
        r2=slope**2 * width / variance if len(steps) >= FEWEST_STEPS and variance > 0 else float("nan"),
    )


def half_step(gram: Float[np.ndarray, "steps steps"], steps: Sequence[int]) -> float:
    """Returns the step at which half of the final change was reached, between kept steps by a straight line.

    What is reached after step t is ⟨Δ_t, Δ_T⟩ / ‖Δ_T‖², and 0 at the start. NaN if the final change is zero.
    """
    final = float(gram[-1, -1])
    if not final > 0:
        return float("nan")
    reached = np.concatenate([[0.0], gram[:, -1] / final])
    places = np.concatenate([[0.0], np.asarray(steps, dtype=float)])
    after = int(np.argmax(reached >= 0.5))
    before = after - 1
    rise = reached[after] - reached[before]
    return float(places[before] + (places[after] - places[before]) * (0.5 - reached[before]) / rise)
