"""The simulated studies have the truth they state, and an interval that is too narrow is found."""

import numpy as np
import pytest

from benchmarks.calibration.command import all_settings, simulate, summarise
from benchmarks.calibration.kinds import KINDS, Outcome
from eval.statistics.simulation import Setting, World


@pytest.mark.cases_slow
@pytest.mark.parametrize("base_rate", [0.1, 0.4])
@pytest.mark.parametrize("num_seeds", [0, 3])
def test_simulated_models_have_the_stated_accuracy_and_spread_between_runs(base_rate: float, num_seeds: int) -> None:
    setting = Setting(seed_effect=0.05, num_prompts=1000, base_rate=base_rate)
    chances = World(setting, np.random.default_rng(0), 200).chances(base_rate, num_seeds)
    assert chances.mean() == pytest.approx(base_rate, abs=0.01)
    if num_seeds:
        between = chances.mean(1).var(0, ddof=1).mean() ** 0.5
        assert between == pytest.approx(0.05, rel=0.1)


def test_every_kind_of_row_is_simulated() -> None:
    assert {kind for kind, _ in all_settings()} == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_covers_about_as_often_as_it_says(kind: str) -> None:
    setting = next(own for name, own in all_settings() if name == kind and own.num_seeds in (1, 5))
    found = simulate((kind, setting, 300, 0))
    assert 0.91 <= found["covered"] <= 0.99


@pytest.mark.slow
def test_an_interval_that_is_too_narrow_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def narrow(world: World) -> Outcome:
        estimates, halves, p, truth = KINDS["arm - arm"](world)
        return estimates, 0.7 * halves, p, truth

    setting = Setting(num_seeds=3, num_seeds_against=3, seed_effect=0.05)
    (row,) = summarise([simulate(("arm - arm", setting, 300, 0))])
    assert row["holds"]
    monkeypatch.setitem(KINDS, "narrow", narrow)
    (row,) = summarise([simulate(("narrow", setting, 300, 0))])
    assert not row["holds"]
