"""Intervals and paired tests of single runs, based on SciPy and statsmodels, and Holm's correction.

`eval/statistics/pooled.py` has differences between models, with and without training seeds.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int

if TYPE_CHECKING:
    import pandas as pd

CONFIDENCE = 0.95


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


def add_holm(table: "pd.DataFrame", *families: "str | pd.Series") -> None:
    """Adds the column `p_holm` to a table with `p`: corrected within each family, NaN if a row has no p-value.

    Args:
        families: columns of the table, or their names; rows that are equal in all of them are one family.
    """
    table["p_holm"] = np.nan
    for _, family in table[table["p"].notna()].groupby(list(families)):
        table.loc[family.index, "p_holm"] = holm(family["p"].to_numpy(float))


def holm_levels(p_values: Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
    """Returns the level at which Holm's method tests each p-value.

    An interval at this level excludes zero exactly if the corrected p-value is below 0.05.
    """
    order = np.argsort(p_values)
    stepped = np.maximum.accumulate(p_values[order] * np.arange(len(p_values), 0, -1))
    with np.errstate(divide="ignore", invalid="ignore"):
        factors = np.where(p_values[order] > 0, stepped / p_values[order], np.arange(len(p_values), 0, -1))
    levels = np.empty(len(p_values))
    levels[order] = (1 - CONFIDENCE) / factors
    return levels
