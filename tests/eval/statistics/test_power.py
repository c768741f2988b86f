"""Smallest differences that could be shown: Student's test, simulated tests, the normal limit, Cohen's table."""

import math

import numpy as np
import pytest
import scipy.stats
from statsmodels.stats.power import NormalIndPower
from statsmodels.stats.proportion import proportion_effectsize

from eval.statistics.critical import critical_value
from eval.statistics.power import detectable, num_needed, planned_test


def student(shift: float, degrees: int, level: float) -> float:
    """Returns the power of the two-sided t test at a difference of so many standard errors."""
    critical = scipy.stats.t.ppf(1 - level / 2, degrees)
    return float(sum(scipy.stats.nct.sf(critical, degrees, sign * shift) for sign in (1, -1)))


@pytest.mark.parametrize("level", [0.05, 0.05 / 27])
@pytest.mark.parametrize("degrees", [1, 2, 3, 6, 40])
def test_with_one_part_alone_it_is_students_test(degrees: int, level: float) -> None:
    of_seeds = planned_test(0.0, 0.04, num_clusters=500, num_degrees=degrees, level=level)
    of_prompts = planned_test(0.04, 0.0, num_clusters=degrees + 1, num_degrees=0, level=level)
    for test, precision in ((of_seeds, 0.01), (of_prompts, 0.04)):  # fewer nodes for the part of the prompts
        for shift in (1.0, 4.0, 12.0):
            assert test.power(0.2 * shift) == pytest.approx(student(shift, degrees, level), abs=0.005)
        assert student(test.detectable() / 0.2, degrees, level) == pytest.approx(0.8, abs=precision)


@pytest.mark.parametrize(("num_degrees", "share"), [(1, 0.5), (2, 0.2), (6, 0.8)])
def test_with_both_parts_it_is_found_four_times_in_five(num_degrees: int, share: float) -> None:
    rng = np.random.default_rng(0)
    w, s, num_clusters, number = 1 - share, share, 30, 40_000
    detectable = planned_test(w, s, num_clusters=num_clusters, num_degrees=num_degrees).detectable()
    of_prompts, of_seeds = (
        part * rng.chisquare(degrees, number) / degrees for part, degrees in ((w, num_clusters - 1), (s, num_degrees))
    )
    critical = critical_value(0.05, of_prompts, of_seeds, np.full(number, num_clusters), num_degrees)
    found = np.abs(rng.normal(detectable, 1.0, number)) > critical * np.sqrt(of_prompts + of_seeds)
    assert np.mean(found) == pytest.approx(0.8, abs=0.008)  # four binomial standard errors


def test_with_many_prompts_and_seeds_it_is_the_normal_one() -> None:
    for w, s, degrees in ((0.01, 0.0, 0), (0.0, 0.01, 100_000), (0.004, 0.006, 100_000)):
        found = planned_test(w, s, num_clusters=1_000_000, num_degrees=degrees).detectable()
        assert found == pytest.approx(detectable(0.1), rel=1e-3)


def test_one_cluster_tests_nothing_and_without_a_variance_every_difference_is_found() -> None:
    assert math.isnan(planned_test(0.01, 0.01, num_clusters=1, num_degrees=3).detectable())
    assert planned_test(0.0, 0.0, num_clusters=20, num_degrees=3).detectable() == 0


def test_a_normal_estimate_finds_its_detectable_difference_four_times_in_five() -> None:
    for error in (0.01, 0.2):
        found = detectable(error)
        assert scipy.stats.norm.sf(scipy.stats.norm.ppf(0.975) - found / error) == pytest.approx(0.8)
    assert math.isnan(detectable(0.0)) and math.isnan(detectable(float("nan")))


def test_samples_needed_agree_with_statsmodels() -> None:
    assert num_needed(0.5, 0.6) == 388  # R's pwr.2p.test, from Cohen's chapter 6: 387.2
    for first, second in ((0.38, 0.47), (0.88, 0.63), (0.0, 0.1)):
        size = proportion_effectsize(first, second)
        expected = NormalIndPower().solve_power(effect_size=abs(size), alpha=0.05, power=0.8)
        assert num_needed(first, second) == math.ceil(expected)
    assert math.isnan(num_needed(0.4, 0.4))
