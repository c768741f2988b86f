"""How many standard errors is half an interval? The critical value of a variance with two parts.

The variance of a difference has a part W of the prompts and a part S of the training seeds (`pooled.py`). S has few
degrees of freedom. The critical value lies between the t quantiles of both parts:

    (1 - x) t[clusters - 1] + x t[seeds],    x = (S / (W + S)) ** k

With k = 1 this is the method of W. Cochran and G. Cox (Experimental Designs, 1957, section 4.14). k was chosen so that
the coverage is right for every ratio of W and S, at 95 % and beyond: k = 1.15 (0.85 at one degree of freedom), times
(level / 0.05) ** 0.2 for levels below 0.05. At two degrees of freedom 95 % intervals cover between 94.8 and 96.7 %, at
one degree between 94.3 and 98.3 %. Satterthwaite's degrees of freedom would cover as little as 92 and 87 %.
`benchmarks/calibration/` measures the coverage of every kind of row.
"""

import numpy as np
from jaxtyping import Float, Int

EXPONENT, EXPONENT_OF_ONE_DEGREE, LEVEL_EXPONENT = 1.15, 0.85, 0.2


def critical_value(
    level: float | Float[np.ndarray, " columns"],
    prompts: Float[np.ndarray, " columns"],
    seeds: Float[np.ndarray, " columns"],
    num_clusters: Int[np.ndarray, " columns"] | Float[np.ndarray, " columns"],
    num_degrees: int,
) -> Float[np.ndarray, " columns"]:
    """Returns the number of standard errors in half an interval; NaN for fewer than two clusters.

    Args:
        level: share of intervals that may miss the truth, such as 0.05.
        prompts: the part W of the variance.
        seeds: the part S of the variance.
        num_clusters: of prompts.
        num_degrees: degrees of freedom of S; 0 if nothing is known about seeds.
    """
    from scipy.special import stdtrit

    tail = np.asarray(level, float) / 2
    # SciPy 1.17 gives +inf where the quantile of a lower tail is below the smallest number.
    of_prompts = np.abs(stdtrit(np.where(num_clusters > 1, num_clusters - 1, np.nan), tail))
    if not num_degrees:
        return np.asarray(of_prompts)
    of_seeds = np.abs(stdtrit(num_degrees, tail))
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(prompts + seeds > 0, seeds / (prompts + seeds), 0.0)
        base = EXPONENT_OF_ONE_DEGREE if num_degrees == 1 else EXPONENT
        share = share ** (base * np.minimum(np.asarray(level, float) / 0.05, 1.0) ** LEVEL_EXPONENT)
    # Not as a difference: far out, one quantile can be so much greater than the other that it would cancel it.
    rest = 1 - share
    with np.errstate(invalid="ignore"):  # zero times infinity
        within = np.where((rest > 0) | np.isnan(of_prompts), rest * of_prompts, 0.0)
    return np.asarray(within + share * of_seeds)
