"""What would a change caused only by rounding look like? The noise floor of weights stored in low precision.

A weight w is stored to within half an ulp (unit in the last place), the gap between neighbouring numbers of its dtype:
2^(e-7) for bf16, where 2^e <= |w| < 2^(e+1). Rounding one end of a phase gives Σ ulp²/12, rounding both Σ ulp²/6.

Measured values for a true normal update of r ulps (rms) on weights with std 0.02 when both ends are rounded to bf16
(`tests/analyze/deltas/test_floor.py` repeats the first and last columns): below r = 0.4 rounding dominates.

    r                               0.02   0.05   0.1    0.2    0.3    0.41   0.5    1      3      10
    measured ‖Δ‖ over the true one  5.6    3.5    2.5    1.8    1.5    1.3    1.3    1.08   1.01   1.00
    Σ Δ² over Σ ulp²/6              0.08   0.19   0.38   0.78   1.2    1.8    2.4    7.0    55     600
    ulps (rms) of what changed      1.0    1.0    1.0    1.0    1.1    1.1    1.2    1.5    3.4    10

The last row is sqrt(Σ Δ² / Σ ulp²), both over the changed elements: a mean of steps would be dominated by the few
weights near zero, whose ulps are tiny. This value distinguishes a matrix in which only a few rows truly changed from
rounding.

Known limit: weights that were rounded to bf16 and then stored in fp32 are judged by fp32's ulps.
"""

import math
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from analyze.deltas.elements import Array, count

if TYPE_CHECKING:
    import torch

MANTISSA_BITS = {"F64": 52, "F32": 23, "F16": 10, "BF16": 7}
LEAST_EXPONENT = {"F64": -1022, "F32": -126, "F16": -14, "BF16": -126}
"""Smallest exponent of a normal number; below it the gap is constant."""
FP64_EXPONENT = 0x7FF0_0000_0000_0000
ULP_BOUNDS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
"""Upper bounds in ulps of all histogram bins except the last."""
ULP_LABELS = (
    "0", "1", "2", "3-4", "5-8", "9-16", "17-32", "33-64", "65-128", "129-256", "257-512", "513-1024", ">1024",
)  # fmt: skip
IDENTICAL, AT_FLOOR, ABOVE = "identical", "at floor", "above floor"
FLOOR_ENERGY_FACTOR, FLOOR_STEP_ULPS = 2, 2
FLOOR_RULE = (
    f"at floor: the squared change is at most {FLOOR_ENERGY_FACTOR} × Σ ulp²/6, so that rounding both ends could be "
    f"half of it, and the elements that changed moved by less than {FLOOR_STEP_ULPS} ulps (root mean square); "
    "identical: no element changed; above floor: all else"
)


def verdict(*, delta_squares: float, rounding_squares: float, changed_ulp_squares: float, num_changed: int) -> str:
    """Returns the verdict by `FLOOR_RULE`: can a tensor's or group's change be distinguished from rounding?"""
    if not num_changed:
        return IDENTICAL
    within_energy = delta_squares <= FLOOR_ENERGY_FACTOR * 2 * rounding_squares
    within_steps = delta_squares < FLOOR_STEP_ULPS**2 * changed_ulp_squares
    return AT_FLOOR if within_energy and within_steps else ABOVE


def coarser(first: str, second: str) -> str:
    """Returns the stored dtype with fewer digits."""
    return min(first, second, key=lambda dtype: MANTISSA_BITS[dtype])


def ulp(values: "torch.Tensor", dtype: str, out: "torch.Tensor") -> None:
    """Writes the gap between neighbouring numbers of a dtype at each of the fp64 values.

    It is the power of two in |w| minus the mantissa's bits; for zero and subnormal numbers the smallest gap.
    """
    import torch

    torch.bitwise_and(values.view(torch.int64), FP64_EXPONENT, out=out.view(torch.int64))
    out.clamp_(min=math.ldexp(1, LEAST_EXPONENT[dtype])).mul_(math.ldexp(1, -MANTISSA_BITS[dtype]))


def steps_apart(first: Array, second: Array) -> Array:
    """Returns the distance in representable numbers between two arrays of one 16-bit dtype, given as bits.

    The count continues through zero for opposite signs; -0 and 0 have distance 0.
    """
    one, other = _ordered(first), _ordered(second)
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):  # up to 65,534 steps, so unsigned
        return np.maximum(one, other).view(np.uint16) - np.minimum(one, other).view(np.uint16)
    import torch

    return (torch.as_tensor(one).int() - torch.as_tensor(other).int()).abs_()


def ulps_counts(steps: Array, *, whole: bool) -> list[int]:
    """Returns the number of steps above each of `ULP_BOUNDS`, after rounding to integers."""
    counts: list[int] = []
    for bound in ULP_BOUNDS:
        counts.append(count(steps > bound + (0 if whole else 0.5)) if not counts or counts[-1] else 0)
    return counts


def histogram(counts: list[int], num_elements: int) -> tuple[int, ...]:
    """Converts `ulps_counts` to the number of elements in each bin of `ULP_LABELS`."""
    edges = [num_elements, *counts, 0]
    return tuple(more - fewer for more, fewer in pairwise(edges))


def _ordered(bits: Array) -> Array:
    """Maps bits to signed integers in value order, with adjacent integers for neighbouring numbers."""
    sign = bits >> 15
    return ((bits & 0x7FFF) ^ sign) - sign
