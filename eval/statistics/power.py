"""What could so few samples have shown? The smallest difference a comparison would have found, and the n it would take.

Throughout: two-sided tests at 5 %, found with a probability (power) of 80 %, no correction for several comparisons.

    one answer a prompt   the exact McNemar test, its power averaged over how many pairs turn out discordant (S. Duffy,
                          Biometrics 40, 1984). The discordant rate is the observed one, or the difference itself where
                          that is larger, for then all flips go one way.
    anything else         (z_0.975 + z_0.8) times the standard error (E. Miller, arXiv 2411.00640, section 5)
    two separate samples  the arcsine approximation (J. Cohen, Statistical Power Analysis, 1988, chapter 6)
"""

import math
from statistics import NormalDist

import numpy as np

ALPHA = 0.05
POWER = 0.8
SMALLEST_SHARE = 1e-9
"""Binomial terms below it are left out of a sum."""


def mcnemar_power(n: int, discordant: float, difference: float, *, alpha: float = ALPHA) -> float:
    """Returns how often the exact two-sided McNemar test finds a difference.

    Args:
        n: samples that both models answered.
        discordant: share of samples that one of the two alone gets right, in (0, 1].
        difference: share that the first alone gets right less the share that the second does; at most `discordant`.
        alpha: level of the test; half of it on either side.
    """
    from scipy.stats import binom

    assert 0 < discordant <= 1 and abs(difference) <= discordant, (discordant, difference)
    sizes = np.arange(n + 1)
    shares = binom.pmf(sizes, n, discordant)
    kept = shares > SMALLEST_SHARE
    sizes, shares = sizes[kept], shares[kept]
    # The largest count that is rejected on the lower side: its tail holds at most alpha / 2.
    critical = binom.ppf(alpha / 2, sizes, 0.5)
    critical = np.where(binom.cdf(critical, sizes, 0.5) <= alpha / 2, critical, critical - 1)
    gained = (discordant + difference) / (2 * discordant)
    found = binom.cdf(critical, sizes, gained) + binom.sf(sizes - critical - 1, sizes, gained)
    return float(np.sum(shares * found))


def mcnemar_detectable(n: int, num_discordant: int) -> float:
    """Returns the smallest difference that the exact McNemar test would have found; NaN where it finds none.

    Fewer than six samples never reach 5 %, and six only where all flip the same way.
    """
    from scipy.optimize import brentq

    def missing(difference: float) -> float:
        return mcnemar_power(n, max(num_discordant / n, difference), difference) - POWER

    if n == 0 or missing(1.0) < 0:
        return float("nan")
    return float(brentq(missing, 1e-12, 1.0, xtol=1e-6))


def detectable(standard_error: float) -> float:
    """Returns the smallest difference that an estimate with this standard error would have found; NaN for none."""
    return _quantiles() * standard_error if standard_error > 0 else float("nan")


def num_needed(first: float, second: float) -> float:
    """Returns the samples a model that would show two shares, measured on separate samples, to differ; NaN if equal."""
    if first == second:
        return float("nan")
    size = 2 * math.asin(math.sqrt(first)) - 2 * math.asin(math.sqrt(second))
    return float(math.ceil(2 * (_quantiles() / size) ** 2))


def _quantiles() -> float:
    return NormalDist().inv_cdf(1 - ALPHA / 2) + NormalDist().inv_cdf(POWER)
