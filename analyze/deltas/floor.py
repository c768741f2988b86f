"""What would a change look like that is nothing but rounding? The noise floor of weights stored in few bits.

A weight w is stored to within half an ulp (unit in the last place), the gap between neighbouring numbers of its dtype:
2^(e-7) for bf16, where 2^e <= |w| < 2^(e+1). Rounding one end of a phase alone gives Σ ulp²/12, rounding both Σ ulp²/6.

What a true normal update of r ulps (rms) on weights of std 0.02 measures when both ends are rounded to bf16 (measured;
`tests/analyze/test_floor.py` repeats the ends): below r = 0.4 rounding is most of the squared change.

    r                               0.02   0.05   0.1    0.2    0.3    0.41   0.5    1      3      10
    measured ‖Δ‖ over the true one  5.6    3.5    2.5    1.8    1.5    1.3    1.3    1.08   1.01   1.00
    Σ Δ² over Σ ulp²/6              0.08   0.19   0.38   0.78   1.2    1.8    2.4    7.0    55     600
    ulps (rms) of what changed      1.0    1.0    1.0    1.0    1.1    1.1    1.2    1.5    3.4    10

The last row is sqrt(Σ Δ² / Σ ulp²), both over the changed elements: a mean of steps would be ruled by the few weights
near zero, whose ulps are tiny. It is what tells a few rows that truly moved, in a matrix that did not, from rounding.

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
"""Of a normal number; below it the gap stays the same."""
FP64_EXPONENT = 0x7FF0_0000_0000_0000
ULP_BOUNDS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
"""The greatest number of ulps in each bin of the histogram but the last."""
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
    """Says by `FLOOR_RULE` whether a tensor's change, or a group's, can be told from rounding."""
    if not num_changed:
        return IDENTICAL
    within_energy = delta_squares <= FLOOR_ENERGY_FACTOR * 2 * rounding_squares
    within_steps = delta_squares < FLOOR_STEP_ULPS**2 * changed_ulp_squares
    return AT_FLOOR if within_energy and within_steps else ABOVE


def coarser(first: str, second: str) -> str:
    """Returns the one of two stored dtypes that has fewer digits."""
    return min(first, second, key=lambda dtype: MANTISSA_BITS[dtype])


def ulp(values: "torch.Tensor", dtype: str, out: "torch.Tensor") -> None:
    """Writes the gap between neighbouring numbers of a dtype at each of the fp64 values.

    It is the power of two in |w| less the mantissa's bits; at zero and below the normal numbers the least there is.
    """
    import torch

    torch.bitwise_and(values.view(torch.int64), FP64_EXPONENT, out=out.view(torch.int64))
    out.clamp_(min=math.ldexp(1, LEAST_EXPONENT[dtype])).mul_(math.ldexp(1, -MANTISSA_BITS[dtype]))


def steps_apart(first: Array, second: Array) -> Array:
    """Returns how many representable numbers apart two arrays of one 16-bit dtype are, given as their bits.

    Numbers of either sign are counted through zero; -0 and 0 are none apart.
    """
    one, other = _ordered(first), _ordered(second)
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):  # up to 65,534 steps, so unsigned
        return np.maximum(one, other).view(np.uint16) - np.minimum(one, other).view(np.uint16)
    import torch

    return (torch.as_tensor(one).int() - torch.as_tensor(other).int()).abs_()


def ulps_counts(steps: Array, *, whole: bool) -> list[int]:
    """Returns how many steps exceed each of `ULP_BOUNDS`; those that are no whole numbers are rounded."""
    counts: list[int] = []
    for bound in ULP_BOUNDS:
        counts.append(count(steps > bound + (0 if whole else 0.5)) if not counts or counts[-1] else 0)
    return counts


def histogram(counts: list[int], num_elements: int) -> tuple[int, ...]:
    """Turns `ulps_counts` into the number of elements in each bin of `ULP_LABELS`."""
    edges = [num_elements, *counts, 0]
    return tuple(more - fewer for more, fewer in pairwise(edges))


def _ordered(bits: Array) -> Array:
    """Numbers in the order of their values, one apart for neighbours: sign and magnitude become a signed integer."""
    sign = bits >> 15
    return ((bits & 0x7FFF) ^ sign) - sign
