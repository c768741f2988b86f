"""Intervals and paired tests, against the literature, SciPy and closed forms."""

import math

import numpy as np
import pytest
import scipy.stats
import statsmodels.api

from eval.statistics.intervals import (
    bootstrap_p,
    clustered_mean,
    crossed_difference,
    draw_crossed,
    gain_kept,
    holm,
    mcnemar,
    mean_interval,
    paired_interval,
    paired_t,
    percentile_interval,
    wilson,
)

NUM_SAMPLES = 400


def _answers(rate: float, num_seeds: int, *, seed: int, n: int = NUM_SAMPLES) -> np.ndarray:
    return (np.random.default_rng(seed).random((num_seeds, n)) < rate).astype(float)


def _difference(first: np.ndarray, second: np.ndarray, *, compared: np.ndarray | None = None, resamples: int = 4000):
    compared = np.ones(first.shape, bool) if compared is None else compared
    draws = draw_crossed(first.shape[1], first.shape[0], seed=1, num_resamples=resamples)
    return crossed_difference(first, second, compared, draws)


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


def test_a_paired_interval_is_walds_with_half_an_observation_more_in_each_cell() -> None:
    both, lost, gained, neither = cells = np.array([20, 9, 2, 12]) + 0.5
    weights, difference = cells / cells.sum(), np.array([0, 1, -1, 0])
    mean = float(weights @ difference)
    error = float(weights @ (difference - mean) ** 2 / cells.sum()) ** 0.5
    found = paired_interval(9, 2, 43)
    assert found.estimate == pytest.approx(7 / 43)
    assert (found.low, found.high) == pytest.approx((mean - 1.959964 * error, mean + 1.959964 * error))
    assert both + lost + gained + neither == 45


@pytest.mark.parametrize("shares", [(0.02, 0.01), (0.3, 0.05), (0.6, 0.0)])
@pytest.mark.parametrize("n", [20, 200])
def test_a_paired_interval_holds_the_true_drop_about_as_often_as_it_says(shares: tuple[float, float], n: int) -> None:
    lost, gained = shares
    drawn = np.random.default_rng(0).multinomial(n, [lost, gained, 1 - lost - gained], size=2000)
    intervals = [paired_interval(int(a), int(b), n) for a, b, _ in drawn]
    covered = np.mean([interval.low <= lost - gained <= interval.high for interval in intervals])
    assert 0.92 <= covered <= 1


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


def test_equal_models_differ_by_exactly_nothing() -> None:
    answers = _answers(0.5, 3, seed=0)
    difference = _difference(answers, answers)
    assert (difference.estimate, difference.interval.low, difference.interval.high) == (0.0, 0.0, 0.0)
    assert bootstrap_p(difference.resampled) == 1.0
    assert not difference.interval.excludes_zero


def test_an_interval_covers_the_true_shift_about_as_often_as_it_says() -> None:
    true_shift, num_studies = 0.2, 200
    covered = 0
    for study in range(num_studies):
        difference = _difference(
            _answers(0.6, 1, seed=2 * study, n=200), _answers(0.4, 1, seed=2 * study + 1, n=200), resamples=500
        )
        covered += difference.interval.low <= true_shift <= difference.interval.high
    # 95 % of 200, three binomial standard errors either way, and a little for the percentile method at this size.
    assert 0.89 <= covered / num_studies <= 0.995


def test_with_one_seed_it_is_the_ordinary_paired_bootstrap() -> None:
    first, second = _answers(0.6, 1, seed=3), _answers(0.5, 1, seed=4)
    ours = _difference(first, second, resamples=20_000)
    theirs = scipy.stats.bootstrap(
        ((first - second)[0],), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(5)
    )
    assert ours.n == NUM_SAMPLES
    assert ours.estimate == pytest.approx((first - second).mean())
    assert ours.interval.standard_error == pytest.approx(theirs.standard_error, rel=0.03)
    interval = theirs.confidence_interval
    assert (ours.interval.low, ours.interval.high) == pytest.approx((interval.low, interval.high), abs=0.005)


def test_seeds_that_disagree_widen_the_interval() -> None:
    second = np.tile(_answers(0.5, 1, seed=6), (4, 1))
    alike = np.tile(_answers(0.6, 1, seed=7), (4, 1))
    apart = np.concatenate([_answers(rate, 1, seed=8 + i) for i, rate in enumerate((0.3, 0.5, 0.7, 0.9))])
    assert _difference(apart, second).interval.standard_error > 2 * _difference(alike, second).interval.standard_error


def test_repeating_one_seed_adds_no_certainty() -> None:
    first, second = _answers(0.6, 1, seed=3), _answers(0.5, 1, seed=4)
    once = _difference(first, second).interval
    thrice = _difference(np.tile(first, (3, 1)), np.tile(second, (3, 1))).interval
    assert thrice.standard_error == pytest.approx(once.standard_error, rel=0.05)


def test_masked_answers_count_nowhere() -> None:
    rng = np.random.default_rng(11)
    first, second = _answers(0.7, 2, seed=12), _answers(0.5, 2, seed=13)
    compared = rng.random(first.shape) < 0.6
    compared[:, :10] = False
    masked = _difference(first, second, compared=compared)
    scrambled = _difference(np.where(compared, first, 1 - first), second, compared=compared)
    assert masked.estimate == pytest.approx((first - second)[compared].mean())
    assert masked.n == compared.any(axis=0).sum()
    assert np.array_equal(masked.resampled, scrambled.resampled)


def test_nothing_to_compare_is_an_error() -> None:
    answers = _answers(0.5, 1, seed=0)
    with pytest.raises(ValueError, match="no sample was answered"):
        _difference(answers, answers, compared=np.zeros(answers.shape, bool))


def test_the_p_value_and_the_interval_agree() -> None:
    resampled = np.random.default_rng(0).normal(2.0, 1.0, 40_000)
    expected = 2 * scipy.stats.norm.sf(2.0)
    assert bootstrap_p(resampled) == pytest.approx(expected, rel=0.1)
    assert bootstrap_p(-resampled) == pytest.approx(bootstrap_p(resampled))
    assert bootstrap_p(np.full(999, 1.0)) == pytest.approx(2 / 1000)
    interval = percentile_interval(2.0, resampled)
    assert (interval.low, interval.high) == pytest.approx((2 - 1.96, 2 + 1.96), abs=0.03)


def test_gain_kept_is_one_for_the_same_arm_and_half_for_half_the_gain() -> None:
    n = 1000
    start = np.zeros((2, n))
    start[:, :200] = 1
    full, half = start.copy(), start.copy()
    full[:, 200:600] = 1
    half[:, 200:400] = 1
    gain = _difference(full, start)
    kept_by_full = gain_kept(gain, gain)
    assert kept_by_full is not None
    assert (kept_by_full.estimate, kept_by_full.low, kept_by_full.high) == (1.0, 1.0, 1.0)
    kept_by_half = gain_kept(_difference(half, start), gain)
    assert kept_by_half is not None
    assert kept_by_half.estimate == pytest.approx(0.5)
    assert 0.4 < kept_by_half.low < 0.5 < kept_by_half.high < 0.6


def test_gain_kept_is_not_given_where_full_may_have_gained_nothing() -> None:
    start = _answers(0.5, 2, seed=20)
    full = _answers(0.5, 2, seed=21)
    gain = _difference(full, start)
    assert gain.interval.low < 0 < gain.interval.high
    assert gain_kept(_difference(_answers(0.9, 2, seed=22), start), gain) is None


def test_the_same_seed_gives_the_same_interval() -> None:
    first, second = _answers(0.6, 3, seed=30), _answers(0.5, 3, seed=31)
    assert _difference(first, second).interval == _difference(first, second).interval
    draws, others = draw_crossed(50, 3, seed=0, num_resamples=100), draw_crossed(50, 3, seed=1, num_resamples=100)
    assert not np.array_equal(draws.samples, others.samples)
    assert np.allclose(draws.samples.sum(axis=1), 1) and np.allclose(draws.seeds.sum(axis=1), 1)


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


def test_the_cluster_bootstrap_draws_whole_clusters_and_has_the_clustered_error() -> None:
    values, clusters = _clustered(5, num_clusters=150)
    draws = draw_crossed(len(values), 1, seed=0, num_resamples=8000, clusters=clusters)
    for cluster in (0, 17):
        own = draws.samples[:, clusters == cluster]
        assert (own == own[:, :1]).all()
    nothing, compared = np.zeros((1, len(values))), np.ones((1, len(values)), bool)
    difference = crossed_difference(values[None], nothing, compared, draws)
    assert difference.estimate == pytest.approx(values.mean())
    expected = clustered_mean(values, clusters).standard_error
    assert difference.interval.standard_error == pytest.approx(expected, rel=0.05)
    plain = draw_crossed(len(values), 1, seed=0, num_resamples=8000)
    alone = draw_crossed(len(values), 1, seed=0, num_resamples=8000, clusters=np.arange(len(values)))
    assert np.array_equal(alone.samples, plain.samples)
    ordinary = crossed_difference(values[None], nothing, compared, plain)
    assert ordinary.interval.standard_error < 0.75 * expected


def test_resamples_that_are_zero_but_for_rounding_count_on_both_sides() -> None:
    n, num_seeds = 300, 3
    first = _answers(0.5, num_seeds, seed=40, n=n)
    second = np.where(np.random.default_rng(41).random(first.shape) < 0.05, 1 - first, first)
    draws = draw_crossed(n, num_seeds, seed=1, num_resamples=4000)
    found = bootstrap_p(crossed_difference(first, second, np.ones(first.shape, bool), draws).resampled)
    counts = np.rint(draws.samples * n).astype(int) @ (first - second).astype(int).T
    exact = np.sum(counts * np.rint(draws.seeds * num_seeds).astype(int), axis=1)
    assert np.mean(exact == 0) > 0.02
    below, above = 1 + np.sum(exact <= 0), 1 + np.sum(exact >= 0)
    assert found == min(1.0, 2 * min(below, above) / 4001)
