"""Which groups teach nothing because all their rewards are equal? Their advantages have to be exactly zero.

TRL (1.16) subtracts the group's mean and divides by the standard deviation plus 1e-4. In fp32 the mean of eight
rewards of 0.9 is not 0.9, so an advantage of about 1e-4 remains where it should be zero. AdamW divides the gradient by
its own size, so with fresh moments such a step is as long as any other.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def equal_groups(
    rewards: Float[Tensor, "rows functions"],
    weights: Float[Tensor, " functions"],
    num_generations: int,
    *,
    per_function: bool = False,
) -> Bool[Tensor, " rows"]:
    """Returns the rows whose group's rewards differ by no more than rounding.

    Args:
        rewards: of every reply, group after group; NaN where a function does not apply.
        weights: of the functions in the sum.
        num_generations: replies per group.
        per_function: True if each function's rewards have to be equal (`normalize_then_sum`), not only their sum.
    """
    weighted = rewards * weights
    magnitude = weighted.abs().nansum(dim=1).max()
    rounding = 4 * rewards.shape[1] * torch.finfo(rewards.dtype).eps * magnitude
    if per_function:
        values = weighted
    else:
        unscored = torch.isnan(rewards).all(dim=1, keepdim=True)
        values = weighted.nansum(dim=1, keepdim=True).masked_fill(unscored, torch.nan)
    grouped = values.view(-1, num_generations, values.shape[1])
    missing = torch.isnan(grouped)
    highest = grouped.masked_fill(missing, -torch.inf).amax(dim=1)
    lowest = grouped.masked_fill(missing, torch.inf).amin(dim=1)
    equal = (highest - lowest <= rounding) | missing.all(dim=1)
    return equal.all(dim=1).repeat_interleave(num_generations)
