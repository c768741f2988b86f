"""Differences that a planned study would find: against simulated studies, SciPy's t tests, and the limits in size."""

import dataclasses
import math

import numpy as np
import pytest
import scipy.optimize
import scipy.stats

from eval.statistics.design import (
    Components,
    Size,
    detectable_difference,
    expected_parts,
    power,
    seeds_needed,
)
from eval.statistics.pooled import Contrast, Term, contrast
from eval.statistics.power import POWER

NUM_STUDIES = 1500
PROMPT_SPREAD, ARM_SPREAD = 0.2, 0.1
"""Half-widths of the uniform rates of right replies: the part that arms share, and an arm's own."""


def components(seed_sd: float, *, against_start: bool, difference: float = 0.0) -> Components:
    """Returns the variances of `simulate`: of uniform rates, and of replies that are right with these rates."""
    shared, own = PROMPT_SPREAD**2 / 3, ARM_SPREAD**2 / 3
    replies = 0.25 - (difference / 2) ** 2 - shared - own
    return Components(
        seed=seed_sd**2, residual=replies - seed_sd**2, prompts=2 * own + (replies if against_start else 0.0)
    )


def simulate(size: Size, seed_sd: float, difference: float, *, seed: int) -> Contrast:
    """Returns the contrasts of many studies, one a column; the replies are right or wrong."""
    rng = np.random.default_rng(seed)
    shared = rng.uniform(-PROMPT_SPREAD, PROMPT_SPREAD, (1, size.num_prompts, NUM_STUDIES))
    terms = []
    for sign, num_seeds in ((1.0, size.num_seeds), (-1.0, size.num_seeds_against)):
        own = rng.uniform(-ARM_SPREAD, ARM_SPREAD, shared.shape)
        runs = rng.normal(0, seed_sd, (num_seeds, 1, NUM_STUDIES)) if num_seeds else 0.0
        rates = 0.5 + sign * difference / 2 + shared + own + runs
        assert rates.min() > 0 and rates.max() < 1
        values = (rng.random(rates.shape) < rates).astype(float)
        terms.append(Term(coefficient=sign, values=values, trained=num_seeds > 0))
    return contrast(terms, shares=True)


@pytest.mark.parametrize(
    ("num_prompts", "num_seeds", "num_seeds_against", "seed_sd", "level"),
    [
        (150, 2, 2, 0.02, 0.05), (300, 3, 3, 0.03, 0.05), (100, 8, 8, 0.03, 0.05), (400, 4, 4, 0.01, 0.05),
        (200, 4, 4, 0.0, 0.05), (200, 4, 2, 0.03, 0.05), (200, 4, 4, 0.02, 0.05 / 9), (300, 2, 0, 0.01, 0.05),
        (150, 4, 0, 0.03, 0.05), (300, 8, 0, 0.0, 0.05),
    ],
)  # fmt: skip
def test_the_detectable_difference_is_found_in_four_of_five_simulated_studies(
    num_prompts: int, num_seeds: int, num_seeds_against: int, seed_sd: float, level: float
) -> None:
    size = Size(num_prompts=num_prompts, num_seeds=num_seeds, num_seeds_against=num_seeds_against)
    planned = components(seed_sd, against_start=num_seeds_against == 0)
    difference = detectable_difference(planned, size, level=level)
    found = simulate(size, seed_sd, difference, seed=num_prompts + num_seeds)
    share = np.mean(np.abs(found.estimate) > found.half_width(level))
    assert share == pytest.approx(POWER, abs=0.04)
    true = components(seed_sd, against_start=num_seeds_against == 0, difference=difference)
    of_prompts, of_seeds = expected_parts(true, size)
    assert np.mean(found.seeds) == pytest.approx(of_seeds, rel=0.12)
    assert np.var(found.estimate) == pytest.approx(of_prompts + of_seeds, rel=0.15)


def test_without_an_effect_of_prompts_it_is_the_power_of_the_t_test() -> None:
    """With W = 0 the test is Student's, of the means of the runs."""
    only_seeds = Components(seed=0.02**2, residual=0.0, prompts=0.0)
    for num_seeds in (2, 3, 6):
        size = Size(num_prompts=10**7, num_seeds=num_seeds, num_seeds_against=num_seeds)
        degrees, error = 2 * num_seeds - 2, 0.02 * math.sqrt(2 / num_seeds)
        for difference in (0.02, 0.06, 0.2):
            expected = sum(
                scipy.stats.nct.sf(scipy.stats.t.ppf(0.975, degrees), degrees, sign * difference / error)
                for sign in (1, -1)
            )
            assert power(only_seeds, size, difference) == pytest.approx(expected, abs=0.003)


def test_with_many_runs_only_the_part_of_the_prompts_remains() -> None:
    planned = Components(seed=0.02**2, residual=0.1, prompts=0.04)
    size = Size(num_prompts=400, num_seeds=10_000, num_seeds_against=10_000)
    error = math.sqrt(0.04 / 400)
    expected = scipy.optimize.brentq(
        lambda shift: scipy.stats.norm.sf(scipy.stats.t.ppf(0.975, 399) - shift) - 0.8, 0, 10
    )
    assert detectable_difference(planned, size) == pytest.approx(expected * error, rel=0.01)


def test_seeds_needed_are_the_smallest_number_that_suffices() -> None:
    planned = components(0.02, against_start=False)
    for against_start in (False, True):
        for num_prompts, difference in ((300, 0.08), (1000, 0.04), (2000, 0.3)):
            found = seeds_needed(planned, num_prompts, difference, against_start=against_start)
            assert found is not None and found >= 2
            sizes = [
                Size(num_prompts=num_prompts, num_seeds=number, num_seeds_against=0 if against_start else number)
                for number in (found - 1, found)
            ]
            assert detectable_difference(planned, sizes[1]) <= difference
            assert found == 2 or detectable_difference(planned, sizes[0]) > difference


def test_what_the_prompts_alone_hide_is_found_with_no_number_of_seeds() -> None:
    planned = components(0.02, against_start=False)
    limit = 2.8016 * math.sqrt(planned.prompts / 100)
    assert seeds_needed(planned, 100, 0.9 * limit, against_start=False) is None
    assert seeds_needed(planned, 100, 1.1 * limit, against_start=False) is not None


def test_more_seeds_more_prompts_and_fewer_tests_show_smaller_differences() -> None:
    planned = components(0.02, against_start=False)

    def shown(num_prompts: int, num_seeds: int, level: float = 0.05) -> float:
        size = Size(num_prompts=num_prompts, num_seeds=num_seeds, num_seeds_against=num_seeds)
        return detectable_difference(planned, size, level=level)

    assert shown(200, 3) > shown(200, 4) > shown(400, 4)
    assert shown(200, 4, 0.01) > shown(200, 4)


def test_related_prompts_count_as_fewer_for_the_critical_value() -> None:
    planned = components(0.0, against_start=False)
    size = Size(num_prompts=40, num_seeds=8, num_seeds_against=8)
    alone = detectable_difference(planned, size)
    assert detectable_difference(dataclasses.replace(planned, prompts_per_cluster=8), size) > alone


def test_one_seed_an_arm_and_differences_above_100_points_have_no_number() -> None:
    planned = components(0.02, against_start=False)
    assert math.isnan(detectable_difference(planned, Size(num_prompts=500, num_seeds=1, num_seeds_against=1)))
    assert math.isnan(detectable_difference(planned, Size(num_prompts=500, num_seeds=1, num_seeds_against=0)))
    wide = Components(seed=0.3**2, residual=0.2, prompts=0.1)
    assert math.isnan(detectable_difference(wide, Size(num_prompts=500, num_seeds=2, num_seeds_against=2)))
