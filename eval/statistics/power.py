"""What could this many samples have shown? The smallest detectable difference of a comparison, and the n required.

Throughout: two-sided tests at 5 %, power 80 %, no correction for multiple comparisons.

    one answer a prompt   the exact McNemar test, its power averaged over the number of discordant pairs (S. Duffy,
                          Biometrics 40, 1984). The discordant rate is the observed one, or the difference itself if
                          that is larger (then all flips go in one direction).
    anything else         (z_0.975 + z_0.8) times the standard error (E. Miller, arXiv 2411.00640, section 5)
    independent samples   the arcsine approximation (J. Cohen, Statistical Power Analysis, 1988, chapter 6)
"""

import math
from statistics import NormalDist

import numpy as np

ALPHA = 0.05
POWER = 0.8
SMALLEST_SHARE = 1e-9
"""Smaller binomial terms are omitted from sums."""


def mcnemar_power(n: int, discordant: float, difference: float, *, alpha: float = ALPHA) -> float:
    """Returns the power of the exact two-sided McNemar test.

    Args:
        n: samples that both models answered.
        discordant: share of samples that exactly one of the two gets right, in (0, 1].
        difference: share that only the first gets right minus the share that only the second does;
            at most `discordant`.
        alpha: level of the test, half of it on each side.
    """
    from scipy.stats import binom

    assert 0 < discordant <= 1 and abs(difference) <= discordant, (discordant, difference)
    sizes = np.arange(n + 1)
    shares = binom.pmf(sizes, n, discordant)
    kept = shares > SMALLEST_SHARE
    sizes, shares = sizes[kept], shares[kept]
    # The largest count in the lower rejection region: its tail probability is at most alpha / 2.
    critical = binom.ppf(alpha / 2, sizes, 0.5)
    critical = np.where(binom.cdf(critical, sizes, 0.5) <= alpha / 2, critical, critical - 1)
    gained = (discordant + difference) / (2 * discordant)
    found = binom.cdf(critical, sizes, gained) + binom.sf(sizes - critical - 1, sizes, gained)
    return float(np.sum(shares * found))


def mcnemar_detectable(n: int, num_discordant: int) -> float:
    """Returns the smallest difference detectable by the exact McNemar test; NaN if there is none.

    Fewer than six samples never reach 5 %, and six only if all flip in the same direction.
    """
    from scipy.optimize import brentq

    def missing(difference: float) -> float:
        return mcnemar_power(n, max(num_discordant / n, difference), difference) - POWER

    if n == 0 or missing(1.0) < 0:
        return float("nan")
    return float(brentq(missing, 1e-12, 1.0, xtol=1e-6))


def detectable(standard_error: float) -> float:
    """Returns the smallest difference detectable with this standard error; NaN for an error of zero."""
    return _quantiles() * standard_error if standard_error > 0 else float("nan")


def num_needed(first: float, second: float) -> float:
    """Returns the number of samples per model needed to tell two shares of independent samples apart; NaN if equal."""
    if first == second:
        return float("nan")
    size = 2 * math.asin(math.sqrt(first)) - 2 * math.asin(math.sqrt(second))
    return float(math.ceil(2 * (_quantiles() / size) ** 2))


def _quantiles() -> float:
    return NormalDist().inv_cdf(1 - ALPHA / 2) + NormalDist().inv_cdf(POWER)
