"""What could a comparison have shown? The smallest detectable difference, and the number of samples required.

Throughout: two-sided tests, by default at 5 % with a power of 80 %, without correction for multiple comparisons.

    a pooled test         `PlannedTest`: from the parts W (prompts) and S (seeds) of the variance. The test compares the
                          difference with the critical value (`critical.py`) times the root of the estimated W + S. The
                          power is the normal probability of exceeding it, averaged over the chi-squared distributions
                          of the estimates of W (clusters - 1 degrees of freedom) and S.
    a published error     (z_0.975 + z_0.8) times the standard error (E. Miller, arXiv 2411.00640, section 5)
    independent samples   the arcsine approximation (J. Cohen, Statistical Power Analysis, 1988, chapter 6)

Without an effect of seeds, and without one of prompts, `PlannedTest` has the power of Student's test.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from jaxtyping import Float

from eval.statistics.critical import critical_value

ALPHA = 0.05
POWER = 0.8
NUM_SEED_NODES, NUM_PROMPT_NODES = 200, 30
"""Nodes of the Gauss-Legendre quadrature over the cube root of the probabilities of the estimates of S and W: close to
zero, where a small difference is found, there are more nodes."""
BEYOND = 10.0
"""Standard errors above the highest threshold at which any difference is found."""


@dataclass(frozen=True)
class PlannedTest:
    """The test of a difference with a known variance: its threshold for each possible estimate of the variance."""

    standard_error: float
    thresholds: Float[np.ndarray, " nodes"]
    weights: Float[np.ndarray, " nodes"]
    """Probabilities of the estimates; their sum is 1."""

    def power(self, difference: float) -> float:
        """Returns the probability that a true difference is found significant."""
        from scipy.special import ndtr

        found = ndtr((difference - self.thresholds) / self.standard_error)
        found += ndtr((-difference - self.thresholds) / self.standard_error)
        return float(found @ self.weights)

    def detectable(self, power: float = POWER) -> float:
        """Returns the smallest difference that is found with this power; NaN if there is no test."""
        from scipy.optimize import brentq

        if not np.isfinite(self.thresholds).all():
            return math.nan
        if self.standard_error == 0:
            return 0.0
        most = float(self.thresholds.max()) + BEYOND * self.standard_error
        return float(brentq(lambda difference: self.power(difference) - power, 0.0, most, xtol=1e-6 * most))


def planned_test(
    prompts: float, seeds: float, *, num_clusters: float, num_degrees: int, level: float = ALPHA
) -> PlannedTest:
    """Returns the test of a difference between models.

    Args:
        prompts: the part W of the variance of the difference.
        seeds: its part S.
        num_clusters: of prompts; prompts that belong together are one cluster.
        num_degrees: degrees of freedom of S; 0 if nothing is known about seeds, then S is 0.
        level: of the two-sided test.
    """
    of_prompts, prompt_weights = _estimates(prompts, num_clusters - 1, NUM_PROMPT_NODES)
    of_seeds, seed_weights = _estimates(seeds, num_degrees, NUM_SEED_NODES)
    w, s = (grid.ravel() for grid in np.meshgrid(of_prompts, of_seeds, indexing="ij"))
    thresholds = critical_value(level, w, s, np.array([num_clusters]), num_degrees) * np.sqrt(w + s)
    return PlannedTest(math.sqrt(prompts + seeds), thresholds, np.outer(prompt_weights, seed_weights).ravel())


def _estimates(variance: float, degrees: float, num_nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns possible estimates of a variance, which are chi-squared, and their probabilities."""
    from scipy.special import chdtri

    if degrees <= 0:
        return np.array([variance]), np.ones(1)
    roots, weights = _nodes(num_nodes)
    return variance * chdtri(degrees, 1 - roots**3) / degrees, 1.5 * weights * roots**2


@lru_cache
def _nodes(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns nodes between 0 and 1, and their weights, which add up to 2."""
    nodes, weights = np.polynomial.legendre.leggauss(number)
    return (nodes + 1) / 2, weights


def detectable(standard_error: float) -> float:
    """Returns the smallest difference detectable with a published standard error; NaN for an error of zero."""
    return _quantiles() * standard_error if standard_error > 0 else float("nan")


def num_needed(first: float, second: float) -> float:
    """Returns the number of samples per model needed to tell two shares of independent samples apart; NaN if equal."""
    if first == second:
        return float("nan")
    size = 2 * math.asin(math.sqrt(first)) - 2 * math.asin(math.sqrt(second))
    return float(math.ceil(2 * (_quantiles() / size) ** 2))


def _quantiles() -> float:
    return NormalDist().inv_cdf(1 - ALPHA / 2) + NormalDist().inv_cdf(POWER)
