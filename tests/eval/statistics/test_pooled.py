"""Contrasts over seeds and prompts: against closed forms, other packages, and the truth they should cover."""

from typing import Any

import numpy as np
import pytest
import scipy.stats

from eval.statistics.critical import EXPONENT, critical_value
from eval.statistics.intervals import clustered_mean
from eval.statistics.pooled import Contrast, Term, contrast, ratio_of_gains


def term(coefficient: float, values: np.ndarray, *, trained: bool = True) -> Term:
    return Term(coefficient=coefficient, values=np.asarray(values, float)[..., None], trained=trained)


def difference(
    first: np.ndarray, second: np.ndarray, *, trained: tuple[bool, bool] = (True, True), **how: Any
) -> Contrast:
    return contrast([term(1, first, trained=trained[0]), term(-1, second, trained=trained[1])], **how)


def answers(rate: float, num_seeds: int, *, seed: int, n: int = 400) -> np.ndarray:
    return (np.random.default_rng(seed).random((num_seeds, n)) < rate).astype(float)


def test_two_single_runs_have_the_paired_t_test() -> None:
    first, second = np.random.default_rng(0).normal(size=(2, 60))
    found = difference(first[None], second[None] - 0.3)
    theirs = scipy.stats.ttest_rel(first, second - 0.3)
    assert found.num_degrees == 0
    assert found.p()[0] == pytest.approx(theirs.pvalue)
    interval = theirs.confidence_interval()
    assert (found.one().low, found.one().high) == pytest.approx((interval.low, interval.high))


def test_related_prompts_have_the_cluster_robust_interval() -> None:
    rng = np.random.default_rng(1)
    clusters = np.repeat(np.arange(30), rng.integers(1, 6, 30))
    first, second = rng.normal(size=(2, len(clusters))) + np.repeat(rng.normal(size=30), np.bincount(clusters))
    found = difference(first[None], second[None], clusters=clusters).one()
    theirs = clustered_mean(first - second, clusters)
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high))


def test_the_parts_of_the_variance_are_those_of_a_balanced_layout() -> None:
    """With two arms of equal size, all mean squares of the two-way layout are known in closed form."""
    rng = np.random.default_rng(2)
    num_seeds, n = 4, 50
    first, second = rng.normal(size=(2, num_seeds, n)) + rng.normal(size=(2, num_seeds, 1)) + rng.normal(size=(2, 1, n))
    found = difference(first, second)
    seeds = (first.mean(1).var(ddof=1) + second.mean(1).var(ddof=1)) / num_seeds
    rest = [own - own.mean(0) - own.mean(1, keepdims=True) + own.mean() for own in (first, second)]
    residual = sum((own**2).sum() / (num_seeds - 1) / (n - 1) for own in rest) / n / num_seeds
    prompts = (first.mean(0) - second.mean(0)).var(ddof=1) / n
    assert found.num_degrees == 2 * (num_seeds - 1)
    assert found.seeds[0] == pytest.approx(seeds)
    assert found.residual[0] == pytest.approx(residual)
    assert found.prompts[0] == pytest.approx(prompts - residual)
    assert found.standard_error[0] == pytest.approx(np.sqrt(seeds + prompts - residual))


def test_the_critical_value_lies_between_those_of_its_parts() -> None:
    ones, clusters = np.ones(1), np.array([101])
    of_prompts, of_seeds = scipy.stats.t.ppf(0.975, 100), scipy.stats.t.ppf(0.975, 2)
    assert critical_value(0.05, ones, 0 * ones, clusters, 2)[0] == pytest.approx(of_prompts)
    assert critical_value(0.05, 0 * ones, ones, clusters, 2)[0] == pytest.approx(of_seeds)
    share = 0.25**EXPONENT
    mixed = (1 - share) * of_prompts + share * of_seeds
    assert critical_value(0.05, 3 * ones, ones, clusters, 2)[0] == pytest.approx(mixed)


@pytest.mark.parametrize(("num_degrees", "least", "most"), [(1, 0.943, 0.984), (2, 0.948, 0.968), (6, 0.949, 0.959)])
def test_the_critical_value_covers_at_every_ratio_of_the_parts(num_degrees: int, least: float, most: float) -> None:
    assert least <= min(covered := exact_coverage(0.05, num_degrees)) and max(covered) <= most


def exact_coverage(level: float, num_degrees: int) -> list[float]:
    """Returns the coverage at many ratios: the part of the prompts is known, that of the seeds is estimated."""
    quantiles = (np.arange(20_000) + 0.5) / 20_000
    factors = scipy.stats.chi2.ppf(quantiles, num_degrees) / num_degrees
    found = []
    for share in (0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.99, 1.0):
        prompts, seeds = np.full(len(factors), 1 - share), share * factors
        critical = critical_value(level, prompts, seeds, np.full(len(factors), 10**6), num_degrees)
        found.append(float(np.mean(2 * scipy.stats.norm.cdf(critical * np.sqrt(prompts + seeds)) - 1)))
    return found


@pytest.mark.parametrize("shares", [False, True])
def test_the_p_value_is_the_level_at_which_the_interval_just_excludes_the_null(shares: bool) -> None:
    found = difference(answers(0.6, 3, seed=3), answers(0.5, 3, seed=4), shares=shares)
    for null in (0.0, 0.05, -0.2):
        p = float(found.p(null)[0])
        interval = found.one(level=p)
        assert min(abs(interval.low - null), abs(interval.high - null)) < 1e-9


@pytest.mark.parametrize("num_prompts", [2, 3, 4])
@pytest.mark.parametrize("num_seeds", [2, 4])
def test_few_prompts_give_no_certainty(num_prompts: int, num_seeds: int) -> None:
    """At small levels one part's quantile is many orders of magnitude above the other's, and must not cancel it."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        first = rng.random((num_seeds, num_prompts)) + 0.2 * rng.normal(size=(num_seeds, 1))
        found = difference(first, rng.random((1, num_prompts)), trained=(True, False), shares=True)
        interval, p = found.one(), found.p()[0]
        assert (p < 0.05) == (interval.low > 0 or interval.high < 0)
        assert p > 1e-6
        levels = p * 10.0 ** -np.arange(1, 290)
        needed = np.array([float(found.critical(level)[0]) for level in levels])
        assert (needed > abs(found.estimate[0]) / found.standard_error[0]).all()


def test_seeds_that_disagree_widen_the_interval_and_equal_ones_do_not() -> None:
    start = answers(0.5, 1, seed=6)
    alike = np.tile(answers(0.6, 1, seed=7), (4, 1))
    apart = np.concatenate([answers(rate, 1, seed=8 + i) for i, rate in enumerate((0.3, 0.5, 0.7, 0.9))])
    checkpoints = difference(alike[:1], start, trained=(False, False))
    assert difference(alike, start, trained=(True, False)).half_width() == pytest.approx(checkpoints.half_width())
    assert difference(apart, start, trained=(True, False)).half_width() > 4 * checkpoints.half_width()


def test_equal_seed_numbers_are_draws_of_their_own() -> None:
    """The order of the seeds of one model does not matter, nor does their number need to be equal."""
    first, second = answers(0.6, 4, seed=10), answers(0.5, 3, seed=11)
    turned = difference(first[::-1], second)
    assert turned.half_width() == pytest.approx(difference(first, second).half_width())
    assert turned.num_degrees == 5


@pytest.mark.parametrize("num_degrees", [1, 2, 6])
def test_small_levels_are_kept_too(num_degrees: int) -> None:
    assert min(exact_coverage(0.005, num_degrees)) > 0.994


def test_missing_answers_hide_no_seed_effect() -> None:
    """A seed's shift is that of the complete table, also if each seed lacks other prompts."""
    rng = np.random.default_rng(3)
    values = rng.normal(size=(1, 400)) + np.array([[0.5], [-0.5], [0.0]])
    values = values + rng.normal(0, 0.1, values.shape)
    whole = difference(values, np.zeros((1, 400)), trained=(True, False))
    values[rng.random(values.shape) < 0.3] = np.nan
    holed = difference(values, np.zeros((1, 400)), trained=(True, False))
    assert holed.seeds[0] == pytest.approx(whole.seeds[0], rel=0.05)
    assert 1.3 < holed.residual[0] / whole.residual[0] < 2  # 1 / 0.7, and prompts with a single answer say nothing


def test_answers_without_a_value_count_nowhere() -> None:
    rng = np.random.default_rng(11)
    first, second = answers(0.7, 2, seed=12), answers(0.5, 2, seed=13)
    first[rng.random(first.shape) < 0.3] = np.nan
    second[:, :10] = np.nan
    found = difference(first, second, shares=True)
    used = np.isfinite(first).any(0) & np.isfinite(second).any(0)
    assert found.n[0] == used.sum()
    expected = np.nanmean(first[:, used], axis=0).mean() - second[:, used].mean()
    assert found.estimate[0] == pytest.approx(expected)
    without = difference(first[:, used], second[:, used], shares=True)
    assert found.half_width() == pytest.approx(without.half_width())


def test_without_common_prompts_there_is_no_number() -> None:
    found = difference(np.full((2, 5), np.nan), answers(0.5, 2, seed=0, n=5))
    assert found.n[0] == 0 and np.isnan(found.estimate[0]) and np.isnan(found.p()[0])


def test_one_prompt_or_one_cluster_has_no_interval() -> None:
    assert np.isnan(difference(np.ones((2, 1)), np.zeros((2, 1))).half_width()[0])
    one = difference(answers(0.9, 2, seed=1, n=6), answers(0.1, 2, seed=2, n=6), clusters=np.zeros(6, int))
    assert np.isnan(one.half_width()[0]) and np.isnan(one.p()[0])


def agresti_min(lost: int, gained: int, n: int) -> float:
    """Returns Wald's standard error with half an observation more in each cell of the two-by-two table."""
    shares = np.array([lost + 0.5, gained + 0.5, n - lost - gained + 1]) / (n + 2)
    values = np.array([1, -1, 0])
    return float(np.sqrt((shares @ values**2 - (shares @ values) ** 2) / (n + 2)))


def test_equal_answers_differ_by_nothing_with_agresti_and_mins_width() -> None:
    own = answers(0.5, 1, seed=0)
    found = difference(own, own, shares=True)
    assert found.estimate[0] == 0 and found.p()[0] == 1
    assert found.standard_error[0] == pytest.approx(agresti_min(0, 0, 400))
    other = own.copy()
    other[0, :30] = 1 - other[0, :30]
    lost, gained = int((other > own).sum()), int((other < own).sum())
    assert difference(own, other, shares=True).standard_error[0] == pytest.approx(
        agresti_min(lost, gained, 400), rel=0.01
    )


def test_columns_are_computed_as_if_alone() -> None:
    first, second = np.random.default_rng(5).normal(size=(2, 3, 40, 7))
    first[0, :9, 2] = np.nan
    terms = [Term(coefficient=sign, values=values, trained=True) for sign, values in ((1, first), (-1, second))]
    together = contrast(terms)
    for column in range(7):
        alone = difference(first[..., column], second[..., column])
        assert together.estimate[column] == pytest.approx(alone.estimate[0])
        assert together.half_width()[column] == pytest.approx(alone.half_width()[0])
        assert together.p()[column] == pytest.approx(alone.p()[0])


@pytest.mark.parametrize(("num_seeds", "spread"), [(2, 0.0), (2, 0.1), (4, 0.03)])
@pytest.mark.cases_slow
def test_an_interval_covers_the_truth_about_as_often_as_it_says(num_seeds: int, spread: float) -> None:
    rng = np.random.default_rng(7)
    num_studies, covered = 500, 0
    for _ in range(num_studies):
        own, other = (
            (rng.random((num_seeds, 150)) < 0.5 + rng.normal(0, spread, (num_seeds, 1))).astype(float) for _ in range(2)
        )
        interval = difference(own, other, shares=True).one()
        covered += interval.low <= 0 <= interval.high
    assert 0.92 <= covered / num_studies <= 0.985  # three binomial standard errors around 95 %


def test_gain_kept_has_fiellers_interval() -> None:
    """With one run each, Fieller's interval is the solution of a quadratic equation."""
    rng = np.random.default_rng(8)
    start = rng.normal(size=80)
    arm, full = start + rng.normal(0.5, 1, 80), start + rng.normal(1.0, 1, 80)
    found = ratio_of_gains(*(term(1, own[None], trained=False) for own in (arm, full, start)))
    own, other = arm - start, full - start
    square = scipy.stats.t.ppf(0.975, 79) ** 2 / 80
    (a, b), (_, d) = np.cov(own, other)
    ends = np.roots(
        [other.mean() ** 2 - square * d, -2 * (own.mean() * other.mean() - square * b), own.mean() ** 2 - square * a]
    )
    assert found is not None
    assert found.estimate == pytest.approx(own.mean() / other.mean())
    assert (found.low, found.high) == pytest.approx(sorted(ends), rel=1e-6)


def test_gain_kept_is_one_for_the_reference_itself_and_missing_without_a_gain() -> None:
    full, start = term(1, answers(0.8, 3, seed=1)), term(1, answers(0.4, 1, seed=2), trained=False)
    found = ratio_of_gains(full, full, start, shares=True)
    assert found is not None and found.estimate == pytest.approx(1)
    equal = term(1, answers(0.41, 3, seed=3))
    assert ratio_of_gains(full, equal, start, shares=True) is None
