"""Planted updates, small and large, dense and sparse: which of them are distinguished from rounding?"""

import math

import numpy as np
import pytest
import torch

from analyze.deltas.floor import ABOVE, AT_FLOOR, IDENTICAL, ulp, verdict

STD = 0.02
SHAPE = (512, 1024)
NUM_ELEMENTS = math.prod(SHAPE)
SPELLED = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ulps_of(weights: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    result = torch.empty_like(weights)
    ulp(weights, SPELLED[dtype], out=result)
    return result


def judge(masters: torch.Tensor, update: torch.Tensor, dtype: torch.dtype = torch.bfloat16) -> tuple[str, float]:
    """Stores both ends in a dtype; returns the verdict and the measured energy over the true one."""
    start, end = masters.to(dtype).double(), (masters + update).to(dtype).double()
    delta, spacing = end - start, ulps_of(start, dtype)
    changed = delta != 0
    label = verdict(
        delta_squares=float(delta.square().sum()),
        rounding_squares=float(spacing.square().sum()) / 12,
        changed_ulp_squares=float(spacing[changed].square().sum()),
        num_changed=int(changed.sum()),
    )
    return label, float(delta.norm() / update.norm())


@pytest.mark.parametrize("dtype", SPELLED, ids=SPELLED.values())
@pytest.mark.parametrize("own", [True, False], ids=["of each weight's own ulp", "of one size"])
@pytest.mark.parametrize("on_grid", [True, False], ids=["stored start", "masters"])
@pytest.mark.parametrize(
    ("size_ulps", "expected"),
    [(0.02, AT_FLOOR), (0.05, AT_FLOOR), (0.2, AT_FLOOR), (1, ABOVE), (3, ABOVE), (10, ABOVE)],
)
def test_planted_updates(dtype: torch.dtype, own: bool, on_grid: bool, size_ulps: float, expected: str) -> None:
    masters = normal(*SHAPE, seed=0) * STD
    if on_grid:
        masters = masters.to(dtype).double()
    spacing = ulps_of(masters, dtype)
    if not own:
        spacing.fill_(spacing.square().mean().sqrt())
    update = normal(*SHAPE, seed=1) * size_ulps * spacing
    label, _ = judge(masters, update, dtype)
    if own and on_grid and size_ulps < 0.1:
        assert label in (IDENTICAL, AT_FLOOR)  # no update reaches half an ulp
    else:
        assert label == expected


@pytest.mark.parametrize(("size_ulps", "inflation"), [(0.02, 5.6), (0.05, 3.5), (0.2, 1.8), (0.5, 1.26), (3, 1.01)])
def test_rounding_inflates_a_small_updates_energy(size_ulps: float, inflation: float) -> None:
    masters = normal(*SHAPE, seed=0) * STD
    size = ulps_of(masters, torch.bfloat16).square().mean().sqrt() * size_ulps
    assert judge(masters, normal(*SHAPE, seed=1) * size)[1] == pytest.approx(inflation, rel=0.02)


def test_the_papers_rank_one_update_is_at_floor_and_its_energy_grows_by_seven_and_a_half() -> None:
    update = normal(SHAPE[0], 1, seed=1) @ normal(1, SHAPE[1], seed=2)
    update *= 1e-6 / update.square().mean().sqrt()
    label, inflation = judge(normal(*SHAPE, seed=0) * STD, update)
    assert label == AT_FLOOR
    assert inflation == pytest.approx(7.5, rel=0.03)
    label, inflation = judge(normal(*SHAPE, seed=0) * STD, update, torch.float32)
    assert label == ABOVE
    assert inflation == pytest.approx(1, rel=1e-3)


def test_few_elements_that_truly_moved_are_above_the_floor() -> None:
    masters = (normal(*SHAPE, seed=0) * STD).bfloat16().double()
    size = ulps_of(masters, torch.bfloat16).square().mean().sqrt()
    one_row = torch.zeros(SHAPE, dtype=torch.float64)
    one_row[5] = normal(SHAPE[1], seed=1) * 3 * size
    one_percent = 100 * size * (normal(*SHAPE, seed=2) > 2.326)
    one_element = torch.zeros(SHAPE, dtype=torch.float64)
    one_element[7, 7] = 300 * size
    for update in (one_row, one_percent, one_element):
        assert judge(masters, update)[0] == ABOVE


def test_no_change_is_identical_and_a_bias_that_left_zero_is_above_the_floor() -> None:
    zeros = torch.zeros(SHAPE, dtype=torch.float64)
    assert judge(zeros + 1, zeros)[0] == IDENTICAL
    assert judge(zeros, zeros + 1e-6)[0] == ABOVE


@pytest.mark.parametrize("dtype", SPELLED, ids=SPELLED.values())
def test_an_ulp_is_the_gap_to_the_next_number(dtype: torch.dtype) -> None:
    weights = (normal(2000, seed=0).exp() * STD).to(dtype)
    weights[:3] = torch.tensor([1.0, 0.5, 2.0])
    integers = torch.int32 if dtype == torch.float32 else torch.int16
    above = (weights.view(integers) + 1).view(dtype)
    assert torch.equal(ulps_of(weights.double(), dtype), above.double() - weights.double())
    if dtype != torch.bfloat16:  # NumPy has none
        assert np.array_equal(ulps_of(weights.double(), dtype).numpy(), np.spacing(weights.numpy()))
