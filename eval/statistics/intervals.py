"""Intervals and paired tests for all tables, based on SciPy and statsmodels.

Differences are paired: both models answered the same samples. If models are trained with several seeds, both samples
and seeds are resampled, so that an interval covers new seeds as well as new samples, as far as a few seeds allow (the
crossed, or pigeonhole, bootstrap: A. Owen, Annals of Applied Statistics 1(2), 2007).
"""

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from jaxtyping import Bool, Float, Int

CONFIDENCE = 0.95
NUM_RESAMPLES = 20_000
ROUNDING = 1e-12
"""Smaller resampled differences count as zero, since weights of 1/n do not cancel exactly."""


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval."""

    estimate: float
    low: float
    high: float
    standard_error: float = float("nan")

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def wilson(num_correct: int, n: int) -> Estimate:
    """Returns a proportion with Wilson's interval and its standard error; all NaN for n = 0."""
    if n == 0:
        return Estimate(float("nan"), float("nan"), float("nan"))
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(num_correct, n, alpha=1 - CONFIDENCE, method="wilson")
    rate = num_correct / n
    low = 0.0 if num_correct == 0 else float(low)  # exact value, which rounding would miss
    high = 1.0 if num_correct == n else float(high)
    return Estimate(rate, low, high, (rate * (1 - rate) / n) ** 0.5)


def paired_interval(num_lost: int, num_gained: int, n: int) -> Estimate:
    """Returns the share lost minus the share gained, with its interval; all NaN for n = 0.

    Agresti and Min (Statistics in Medicine 24, 2005): the Wald interval after adding half an observation to each cell
    of the two-by-two table. It is therefore also defined if no sample changed.
    """
    if n == 0:
        return Estimate(float("nan"), float("nan"), float("nan"))
    centre = (num_lost - num_gained) / (n + 2)
    variance = (num_lost + num_gained + 1) - (num_lost - num_gained) ** 2 / (n + 2)
    error = variance**0.5 / (n + 2)
    half = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * error
    return Estimate((num_lost - num_gained) / n, max(centre - half, -1.0), min(centre + half, 1.0), error)


def mean_interval(values: Float[np.ndarray, "n ..."]) -> dict[str, np.ndarray]:
    """Returns `n`, `mean`, `low` and `high` of every column by Student's t, ignoring NaN.

    The interval of a single sample is NaN.
    """
    from scipy.stats import t

    n = np.isfinite(values).sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.nansum(values, 0, dtype=float) / n
        spread = np.sqrt(np.nansum((values - mean) ** 2, 0) / (n - 1))
        half = t.ppf((1 + CONFIDENCE) / 2, np.where(n > 1, n - 1, np.nan)) * spread / np.sqrt(n)
    return {"n": n, "mean": mean, "low": mean - half, "high": mean + half}


def paired_t(differences: Float[np.ndarray, "n columns"]) -> Float[np.ndarray, " columns"]:
    """Returns two-sided p-values of every column's mean; 1 if all differences are zero, NaN for a single sample."""
    from scipy.stats import t

    n = len(differences)
    if n < 2:
        return np.full(differences.shape[1], np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        statistic = differences.mean(0) / (differences.std(0, ddof=1) / np.sqrt(n))
    return np.where((differences == 0).all(0), 1.0, 2 * t.sf(np.abs(statistic), n - 1))


def clustered_mean(values: Float[np.ndarray, " n"], clusters: Int[np.ndarray, " n"]) -> Estimate:
    """Returns a mean with a cluster-robust standard error, for related samples such as several questions on one image.

    The sandwich estimator with its factor G / (G - 1) for few clusters (K.-Y. Liang and S. Zeger, Biometrika 73, 1986;
    for evaluations E. Miller, arXiv 2411.00640, section 2.2); the interval uses Student's t with G - 1 degrees of
    freedom. If each sample is its own cluster, this is the ordinary standard error. For one cluster both are NaN.
    """
    from scipy.stats import t

    mean = float(np.mean(values))
    sums = np.bincount(np.unique(clusters, return_inverse=True)[1], weights=values - mean)
    num_clusters = len(sums)
    if num_clusters < 2:
        return Estimate(mean, float("nan"), float("nan"))
    error = float(np.sqrt(num_clusters / (num_clusters - 1) * np.sum(sums**2)) / len(values))
    half = float(t.ppf((1 + CONFIDENCE) / 2, num_clusters - 1)) * error
    return Estimate(mean, mean - half, mean + half, error)


@dataclass(frozen=True)
class PairedTest:
    """Exact McNemar test of two models on the same samples."""

    n: int
    num_gained: int
    """Number of samples that only the first answers correctly."""
    num_lost: int
    """Number of samples that only the second answers correctly."""
    p: float


def mcnemar(first: Bool[np.ndarray, " n"], second: Bool[np.ndarray, " n"]) -> PairedTest:
    """Tests whether two models are correct equally often on the same samples (exact, two-sided)."""
    from statsmodels.stats.contingency_tables import mcnemar as exact_mcnemar

    gained = int(np.sum(first & ~second))
    lost = int(np.sum(~first & second))
    table = [[int(np.sum(first & second)), gained], [lost, int(np.sum(~first & ~second))]]
    return PairedTest(len(first), gained, lost, float(exact_mcnemar(table, exact=True).pvalue))


def holm(p_values: Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
    """Returns Holm's step-down adjusted p-values.

    Equal to statsmodels' `multipletests`, which runs the garbage collector in each call: 75 of 76 s for a large table.
    """
    order = np.argsort(p_values)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p_values[order] * np.arange(len(p_values), 0, -1)))
    return adjusted


@dataclass(frozen=True)
class CrossedDraws:
    """Bootstrap weights over samples and seeds, drawn once and shared by all models of a comparison."""

    samples: Float[np.ndarray, "resamples n"]
    seeds: Float[np.ndarray, "resamples seeds"]


def draw_crossed(
    n: int,
    num_seeds: int,
    *,
    seed: int,
    num_resamples: int = NUM_RESAMPLES,
    clusters: Int[np.ndarray, " n"] | None = None,
) -> CrossedDraws:
    """Draws the weight of each sample and each seed in each resample; rows sum to one.

    Args:
        clusters: index from 0 of each sample's cluster; if given, whole clusters are resampled, and a row sums to one
            only on average.
    """
    rng = np.random.default_rng(seed)
    drawn = n if clusters is None else int(clusters.max()) + 1
    samples = rng.multinomial(drawn, np.full(drawn, 1 / drawn), size=num_resamples) / n
    if clusters is not None:
        samples = samples[:, clusters]
    seeds = rng.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size=num_resamples) / num_seeds
    return CrossedDraws(samples, seeds)


@dataclass(frozen=True)
class PairedDifference:
    """The mean difference between two models over samples and seeds, with its resamples."""

    n: int
    """Number of distinct samples compared in at least one seed."""
    estimate: float
    resampled: Float[np.ndarray, " resamples"]

    @property
    def interval(self) -> Estimate:
        return percentile_interval(self.estimate, self.resampled)


def crossed_difference(
    first: Float[np.ndarray, "seeds n"],
    second: Float[np.ndarray, "seeds n"],
    compared: Bool[np.ndarray, "seeds n"],
    draws: CrossedDraws,
) -> PairedDifference:
    """Returns the mean of first - second over the compared samples of all seeds, with its resamples.

    Args:
        first, second: 1 if right, 0 if wrong; a model without seeds has equal rows.
        compared: which samples are compared in which seed.
        draws: shared by every comparison of one table.
    """
    weight = compared.astype(float)
    difference = (first - second) * weight
    total = float(weight.sum())
    if total == 0:
        raise ValueError("no sample was answered by both models in a way that can be compared")
    numerator = np.sum((draws.samples @ difference.T) * draws.seeds, axis=1)
    denominator = np.sum((draws.samples @ weight.T) * draws.seeds, axis=1)
    usable = denominator > 0
    return PairedDifference(
        n=int(compared.any(axis=0).sum()),
        estimate=float(difference.sum()) / total,
        resampled=numerator[usable] / denominator[usable],
    )


def percentile_interval(estimate: float, resampled: Float[np.ndarray, " resamples"]) -> Estimate:
    """Returns an estimate with its percentile interval."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return Estimate(estimate, float(low), float(high), float(np.std(resampled, ddof=1)))


def bootstrap_p(resampled: Float[np.ndarray, " resamples"]) -> float:
    """Returns the two-sided bootstrap p-value: the level at which the percentile interval just excludes zero."""
    num_resamples = len(resampled)
    at_or_below = 1 + int(np.sum(resampled <= ROUNDING))
    at_or_above = 1 + int(np.sum(resampled >= -ROUNDING))
    return min(1.0, 2 * min(at_or_below, at_or_above) / (num_resamples + 1))


def gain_kept(arm: PairedDifference, full: PairedDifference) -> Estimate | None:
    """Returns (arm - start) / (full - start) with its interval; None unless the interval of full - start is above zero.

    Args:
        arm, full: differences to the same start, with the same draws.
    """
    if full.interval.low <= 0:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        resampled = arm.resampled / full.resampled
    return percentile_interval(arm.estimate / full.estimate, resampled[np.isfinite(resampled)])
