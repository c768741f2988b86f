"""Variances between runs and prompts: planted ones are found in the rows of eval.compare."""

import numpy as np
import pytest

from eval.statistics.components import (
    ARMS,
    OTHER_ARM,
    SAME,
    SAME_ARM,
    START,
    WITH_START,
    assumed_variation,
    measured_variations,
)
from eval.statistics.design import Size, detectable_difference, expected_parts
from eval.statistics.pairing import ACCURACY
from tests.eval.statistics.drawn import OWN, SEED_SD, SHARED, comparison


def test_planted_variances_are_found() -> None:
    table = comparison({"base": 0, "sft": 0, "full": 40, "mid": 40, "late": 40}, n=6000, seed=0)
    (found,) = measured_variations(table, metric=ACCURACY)
    residual = 0.25 - SHARED**2 / 3 - OWN**2 / 3 - SEED_SD**2
    for kind in (ARMS, START):
        assert found.kinds[kind].seed == pytest.approx(SEED_SD**2, rel=0.3)  # 117 degrees of freedom
        assert found.kinds[kind].residual == pytest.approx(residual, rel=0.02)
        assert found.kinds[kind].prompts_per_cluster == 1
    assert found.kinds[ARMS].prompts == pytest.approx(2 * OWN**2 / 3, rel=0.1)
    assert found.kinds[START].prompts == pytest.approx(2 * OWN**2 / 3 + residual + SEED_SD**2, rel=0.05)
    assert (found.seed_degrees, found.num_prompts) == (117, 6000)
    same, other = (SHARED**2 + OWN**2) / 3 / 0.25, SHARED**2 / 3 / 0.25
    assert found.correlations == pytest.approx({SAME: same, ARMS: other, START: other}, abs=0.02)
    assert found.seed_sd is not None and found.seed_sd.low < SEED_SD < found.seed_sd.high


@pytest.mark.parametrize("against_start", [True, False])
def test_a_study_of_the_measured_size_is_expected_to_have_the_measured_errors(against_start: bool) -> None:
    seeds = {"sft": 0, "full": 4} if against_start else {"sft": 3, "full": 4}
    table = comparison(seeds, n=300, seed=1, seed_sd=0.1, reference=None)
    row = table[table["seed"] == "pooled"].iloc[0]
    (found,) = measured_variations(table, metric=ACCURACY)
    kind = START if against_start else ARMS
    size = Size(num_prompts=300, num_seeds=4, num_seeds_against=seeds["sft"])
    assert expected_parts(found.kinds[kind], size, shares=False) == pytest.approx(
        (row["prompt_error"] ** 2, row["seed_error"] ** 2)
    )
    assert detectable_difference(found.kinds[kind], size) == pytest.approx(row["detectable"], rel=0.01)


def test_prompts_that_belong_together_are_counted_as_such() -> None:
    table = comparison({"sft": 0, "full": 3}, n=300, seed=2, clusters=np.repeat(np.arange(100), 3))
    (found,) = measured_variations(table, metric=ACCURACY)
    assert found.kinds[START].prompts_per_cluster == pytest.approx(3)


@pytest.mark.slow
def test_the_interval_of_the_variance_between_runs_covers_it_about_as_often_as_it_says() -> None:
    """Three models of two seeds in each of many small studies."""
    covered = []
    for seed in range(100):
        table = comparison({"sft": 0, "full": 2, "mid": 2, "late": 2}, n=100, seed=seed, seed_sd=0.08, reference=None)
        (found,) = measured_variations(table, metric=ACCURACY)
        assert found.seed_sd is not None and found.seed_degrees == 3
        covered.append(found.seed_sd.low <= 0.08 <= found.seed_sd.high)
    assert np.mean(covered) == pytest.approx(0.95, abs=0.065)  # three binomial standard errors


def test_assumed_variances_give_the_correlations_they_are_made_from() -> None:
    """The variance of the difference of two replies with correlation r and variance v is 2 (1 - r) v."""
    found = assumed_variation(seed_sd=0.02, base_rate=0.3).kinds
    variance = 0.3 * 0.7
    residual = found[ARMS].residual
    assert 2 * residual == pytest.approx(2 * (1 - SAME_ARM) * variance)
    assert found[ARMS].prompts + 2 * residual == pytest.approx(2 * (1 - OTHER_ARM) * variance)
    assert found[START].prompts + residual == pytest.approx(2 * (1 - WITH_START) * variance)
    assert found[ARMS].seed == found[START].seed == pytest.approx(0.02**2)


def test_given_standard_deviations_replace_the_measured_ones() -> None:
    (found,) = measured_variations(comparison({"sft": 0, "full": 3, "mid": 2}, n=90, seed=3), metric=ACCURACY)
    changed = found.given(seed_sd=0.05, start_prompt_sd=0.2)
    assert changed.kinds[ARMS].seed == changed.kinds[START].seed == pytest.approx(0.0025)
    assert changed.kinds[START].prompts == pytest.approx(0.04)
    assert changed.kinds[ARMS].prompts == found.kinds[ARMS].prompts
    assert changed.seed_sd is None and found.seed_sd is not None


def test_a_start_beside_the_reference_does_not_count_as_an_arm() -> None:
    """base against full is a start against an arm: a third kind of prompts, which no row of an arm has."""
    more: tuple[dict[str, int], ...] = ({"base": 0}, {})
    with_base, without = (comparison({"sft": 0, **base, "full": 3, "mid": 3}, n=200, seed=4) for base in more)
    rows = with_base[(with_base["arm"] != "base")]
    assert measured_variations(with_base, metric=ACCURACY) == measured_variations(rows, metric=ACCURACY)
    assert set(measured_variations(without, metric=ACCURACY)[0].kinds) == {ARMS, START}


def test_tables_without_what_is_needed_are_refused() -> None:
    table = comparison({"sft": 0, "full": 3}, n=60, seed=5)
    with pytest.raises(ValueError, match="no ability 'sight'; expected one of vision"):
        measured_variations(table, metric=ACCURACY, ability="sight")
    with pytest.raises(ValueError, match="no metric 'ability'; expected one of accuracy"):
        measured_variations(table, metric="ability")
    with pytest.raises(ValueError, match="no model with two seeds"):
        measured_variations(comparison({"sft": 0, "full": 1}, n=60, seed=6), metric=ACCURACY)
