"""Which difference would a study of this size find? The power of the test in `eval/statistics/pooled.py`, in advance.

With the variances below, the two parts of the variance of a difference over P prompts are expected to be

    W = prompts / P                           which more seeds do not reduce
    S = (seed + residual / P) (1/s + 1/t)     with s + t - 2 degrees of freedom, for arms of s and t seeds
    S = (seed + residual / P) / s             with s - 1 degrees of freedom, against a model that exists once

`eval/statistics/power.py` has the power of the test with these parts; the column `detectable` of `comparison.csv` uses
the same function, with the parts as estimated. In simulations of replies that are right or wrong, a difference computed
for a power of 80 % is found in 77 to 83 % of the studies from 2 seeds and 100 prompts up
(`tests/eval/statistics/test_design.py`).
"""

import math
from dataclasses import dataclass

from eval.statistics.power import ALPHA, POWER, PlannedTest, planned_test

MOST_SEEDS = 10_000
"""A difference that this many seeds do not show is out of reach: more seeds do not reduce W."""


@dataclass(frozen=True, kw_only=True)
class Components:
    """What varies in a comparison of two models, as variances of values between 0 and 1."""

    seed: float
    """Between training runs of a model: of a run's mean over all prompts there are."""
    residual: float
    """Of one run's value on one prompt beyond the prompt's and the run's mean."""
    prompts: float
    """Between prompts: of the two models' difference. A model that exists once has its own residual in it."""
    prompts_per_cluster: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large a comparison is."""

    num_prompts: int
    num_seeds: int
    num_seeds_against: int
    """Seeds of the comparison model; 0 if it exists once."""

    @property
    def seed_degrees(self) -> int:
        return self.num_seeds - 1 + max(self.num_seeds_against - 1, 0)


def expected_parts(components: Components, size: Size, *, shares: bool = True) -> tuple[float, float]:
    """Returns the expected parts W and S of the variance of a difference.

    Args:
        shares: W is increased as `pooled.contrast` does for values between 0 and 1.
    """
    weights = [1 / size.num_seeds, 1 / size.num_seeds_against if size.num_seeds_against else 0.0]
    residual = components.residual / size.num_prompts * sum(weights)
    of_prompts = components.prompts / size.num_prompts + residual
    if shares:
        flips = (weights[0] + (weights[1] or 1.0)) / 2
        of_prompts = (of_prompts * size.num_prompts**2 + flips) / (size.num_prompts + 2) ** 2
    return max(of_prompts - residual, 0.0), components.seed * sum(weights) + residual


def _test(components: Components, size: Size, level: float) -> PlannedTest:
    assert size.seed_degrees > 0, size
    of_prompts, of_seeds = expected_parts(components, size)
    clusters = size.num_prompts / components.prompts_per_cluster
    return planned_test(of_prompts, of_seeds, num_clusters=clusters, num_degrees=size.seed_degrees, level=level)


def power(components: Components, size: Size, difference: float, *, level: float = ALPHA) -> float:
    """Returns the probability that a true difference is found significant.

    Args:
        difference: of the two models, between -1 and 1.
        level: of the two-sided test.
    """
    return _test(components, size, level).power(difference)


def detectable_difference(components: Components, size: Size, *, level: float = ALPHA, power: float = POWER) -> float:
    """Returns the smallest difference that is found with a given power; NaN if it exceeds 1.

    It is NaN too if no model has two seeds: then nothing is known about how far training runs differ.
    """
    if size.seed_degrees < 1:
        return math.nan
    found = _test(components, size, level).detectable(power)
    return found if found <= 1 else math.nan


def seeds_needed(
    components: Components,
    num_prompts: int,
    difference: float,
    *,
    against_start: bool,
    level: float = ALPHA,
    power: float = POWER,
) -> int | None:
    """Returns the smallest number of seeds of each arm that shows a difference; None if no number does."""

    def enough(num_seeds: int) -> bool:
        size = Size(num_prompts=num_prompts, num_seeds=num_seeds, num_seeds_against=0 if against_start else num_seeds)
        return _test(components, size, level).power(difference) >= power

    if not enough(MOST_SEEDS):
        return None
    low, high = 1, 2
    while not enough(high):
        low, high = high, min(2 * high, MOST_SEEDS)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
