"""Intervals and paired tests, against the literature, SciPy and closed forms."""

import math

import numpy as np
import pytest
import scipy.stats
import statsmodels.api

from eval.statistics.intervals import (
    clustered_mean,
    holm,
    holm_levels,
    mcnemar,
    mean_interval,
    paired_t,
    wilson,
)


def test_wilson_agrees_with_newcombes_table() -> None:
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3: 81/263, 15/148, 0/20, 1/29.
    for num_correct, n, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        rate = wilson(num_correct, n)
        assert rate.estimate == num_correct / n
        assert (rate.low, rate.high) == pytest.approx((low, high), abs=5e-5)
        assert rate.standard_error == pytest.approx(math.sqrt(num_correct * (n - num_correct) / n**3))


def test_wilson_of_nothing_is_no_number() -> None:
    assert all(math.isnan(value) for value in (wilson(0, 0).estimate, wilson(0, 0).low, wilson(0, 0).high))


@pytest.mark.parametrize("n", [1, 7, 20, 61, 93, 400])
def test_wilsons_interval_ends_exactly_where_no_sample_says_otherwise(n: int) -> None:
    assert wilson(0, n).low == 0.0 < wilson(0, n).high < 1
    assert wilson(n, n).high == 1.0 > wilson(n, n).low > 0


@pytest.mark.parametrize(("gained", "lost", "both"), [(0, 0, 5), (6, 1, 10), (1, 6, 0), (20, 20, 3), (40, 11, 100)])
def test_mcnemar_is_the_binomial_test_of_the_discordant_pairs(gained: int, lost: int, both: int) -> None:
    first = np.array([1] * gained + [0] * lost + [1] * both + [0] * 4, bool)
    second = np.array([0] * gained + [1] * lost + [1] * both + [0] * 4, bool)
    test = mcnemar(first, second)
    expected = scipy.stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert (test.n, test.num_gained, test.num_lost) == (len(first), gained, lost)
    assert test.p == pytest.approx(expected)


def test_means_have_students_interval_over_the_samples_that_are_there() -> None:
    values = np.random.default_rng(0).normal(size=(7, 3))
    values[:2, 1], values[:6, 2] = np.nan, np.nan
    found = mean_interval(values)
    assert found["n"].tolist() == [7, 5, 1]
    for column in (0, 1):
        own = values[np.isfinite(values[:, column]), column]
        interval = scipy.stats.ttest_1samp(own, 0).confidence_interval()
        assert (found["mean"][column], found["low"][column], found["high"][column]) == pytest.approx(
            (own.mean(), interval.low, interval.high)
        )
    assert found["mean"][2] == values[6, 2] and np.isnan(found["low"][2])


def test_paired_t_is_scipys_one_where_nothing_differs_and_no_number_for_one_sample() -> None:
    differences = np.random.default_rng(0).normal(0.5, 1, (6, 3))
    differences[:, 2] = 0
    expected = scipy.stats.ttest_1samp(differences[:, :2], 0).pvalue
    assert paired_t(differences) == pytest.approx([*expected, 1.0])
    assert np.isnan(paired_t(differences[:1])).all()


def test_holm_agrees_with_a_worked_example() -> None:
    # Holm 1979 by hand: sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1, made monotone.
    assert holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm(np.array([0.6, 0.7])) == pytest.approx([1.0, 1.0])
    assert len(holm(np.array([]))) == 0


def test_a_corrected_interval_excludes_zero_exactly_where_the_corrected_p_is_below_the_level() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        p = rng.beta(0.2, 3, 8)
        levels = holm_levels(p)
        assert ((p < levels) == (holm(p) < 0.05)).all()
        assert levels == pytest.approx(0.05 * p / np.maximum(holm(p), 1e-300)) or (holm(p) == 1).any()
    assert holm_levels(np.array([0.0, 0.0, 0.5])) == pytest.approx([0.05 / 3, 0.05 / 2, 0.05])


def _clustered(seed: int, *, num_clusters: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Draws values that are alike within clusters of one to six samples."""
    rng = np.random.default_rng(seed)
    clusters = np.repeat(np.arange(num_clusters), rng.integers(1, 7, num_clusters))
    return (rng.random(len(clusters)) < rng.beta(0.6, 0.6, num_clusters)[clusters]).astype(float), clusters


def test_clustered_errors_are_statsmodels() -> None:
    for seed in range(5):
        values, clusters = _clustered(seed)
        fit = statsmodels.api.OLS(values, np.ones(len(values))).fit(
            cov_type="cluster", cov_kwds={"groups": clusters}, use_t=True
        )
        mean = clustered_mean(values, clusters * 7 + 3)
        assert mean.estimate == pytest.approx(fit.params[0])
        assert mean.standard_error == pytest.approx(fit.bse[0])
        assert (mean.low, mean.high) == pytest.approx(tuple(fit.conf_int()[0]))


def test_clustered_errors_are_millers_sum_over_pairs() -> None:
    # Miller, arXiv 2411.00640, section 2.2: the ordinary variance of the mean, and the covariances within clusters.
    values, clusters = _clustered(9)
    n, num_clusters = len(values), len(set(clusters))
    own = values - values.mean()
    pairs = sum(own[i] * own[j] for i in range(n) for j in range(n) if i != j and clusters[i] == clusters[j])
    expected = (np.sum(own**2) + pairs) / n**2 * num_clusters / (num_clusters - 1)
    assert clustered_mean(values, clusters).standard_error ** 2 == pytest.approx(expected)


def test_samples_of_their_own_have_the_ordinary_error_and_one_cluster_has_none() -> None:
    values, _ = _clustered(3)
    mean = clustered_mean(values, np.arange(len(values)))
    assert mean.standard_error == pytest.approx(scipy.stats.sem(values))
    interval = scipy.stats.ttest_1samp(values, 0).confidence_interval()
    assert (mean.low, mean.high) == pytest.approx((interval.low, interval.high))
    alone = clustered_mean(values, np.zeros(len(values), int))
    assert alone.estimate == values.mean() and math.isnan(alone.standard_error) and math.isnan(alone.low)
