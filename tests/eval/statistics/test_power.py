"""Smallest differences that could be shown: enumeration, G*Power's manual, Connor's formula, Cohen's table."""

import itertools
import math

import pytest
import scipy.stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.power import NormalIndPower
from statsmodels.stats.proportion import proportion_effectsize

from eval.statistics.power import detectable, mcnemar_detectable, mcnemar_power, num_needed


def test_power_agrees_with_the_worked_example_of_g_power() -> None:
    # G*Power's manual, McNemar: odds ratio 0.25, 40 % discordant, n = 50, one-sided 5 %: power 0.839343. Ours is
    # two-sided at twice the level; its other side is found with a probability of 1.5e-5.
    assert mcnemar_power(50, 0.4, 0.24, alpha=0.10) == pytest.approx(0.839343, abs=3e-5)


@pytest.mark.parametrize(("n", "discordant", "difference"), [(14, 0.5, 0.3), (20, 0.3, 0.3), (18, 0.9, -0.4)])
def test_power_is_the_share_of_all_tables_that_the_test_rejects(n: int, discordant: float, difference: float) -> None:
    gained, lost = (discordant + difference) / 2, (discordant - difference) / 2
    expected = 0.0
    for num_gained, num_lost in itertools.product(range(n + 1), repeat=2):
        rest = n - num_gained - num_lost
        if rest < 0 or mcnemar([[rest, num_gained], [num_lost, 0]], exact=True).pvalue > 0.05:
            continue
        expected += scipy.stats.multinomial.pmf([num_gained, num_lost, rest], n, [gained, lost, 1 - gained - lost])
    assert mcnemar_power(n, discordant, difference) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("n", "num_discordant"), [(40, 20), (100, 30), (500, 70), (1500, 600)])
def test_what_is_detectable_is_found_four_times_in_five(n: int, num_discordant: int) -> None:
    found = mcnemar_detectable(n, num_discordant)
    assert mcnemar_power(n, num_discordant / n, found) == pytest.approx(0.8, abs=1e-3)


def test_it_approaches_connors_formula_for_many_samples() -> None:
    # R. Connor, Biometrics 43 (1987), solved for the difference.
    upper, power = scipy.stats.norm.ppf([0.975, 0.8])
    for n, rate in ((400, 0.3), (2000, 0.1), (5000, 0.2)):
        root = power * math.sqrt(n + power**2 - upper**2)
        connor = math.sqrt(rate) * (upper * math.sqrt(n) + root) / (n + power**2)
        assert connor < mcnemar_detectable(n, round(n * rate)) < 1.05 * connor


def test_without_a_flip_it_is_the_share_that_gives_six_flips_one_way() -> None:
    for n in (20, 100, 1000):
        found = mcnemar_detectable(n, 0)
        assert scipy.stats.binom.sf(5, n, found) == pytest.approx(0.8, abs=1e-3)
        assert mcnemar_detectable(n, 1) == pytest.approx(found)


def test_so_few_samples_that_no_test_could_reject_show_nothing() -> None:
    assert all(math.isnan(mcnemar_detectable(n, min(n, 3))) for n in range(6))
    assert 0.9 < mcnemar_detectable(6, 3) < 1


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
