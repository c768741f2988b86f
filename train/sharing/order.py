"""In which order do the replies of a batch go through the passes of an optimizer step? A group's one after the other.

TRL (1.16) shuffles the replies of a generation batch before it divides them into passes. With few replies in a pass,
hardly two of them have the same prompt. Within an optimizer step the order does not change the gradient, unless the
loss is normalized per pass; so there the replies of a group are brought together.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

NORMALIZED_PER_PASS = ("bnpo",)
"""Losses whose mean is taken over the tokens of a pass, not over its replies or over the whole step."""


def together(groups: Sequence[int], rows_per_step: int) -> list[int]:
    """Returns the rows in an order in which each group's are contiguous within a step.

    Args:
        groups: the group of each row; rows of one optimizer step are contiguous.
        rows_per_step: number of rows in an optimizer step.
    """
    order: list[int] = []
    for start in range(0, len(groups), rows_per_step):
        rows = range(start, min(start + rows_per_step, len(groups)))
        first: dict[int, int] = {}
        for row in rows:
            first.setdefault(groups[row], row)
        order += sorted(rows, key=lambda row: (first[groups[row]], row))
    return order


def reordered(batch: dict[str, Any], order: Sequence[int]) -> dict[str, Any]:
    """Returns a batch with its rows in another order; what is not per row stays."""

    def permuted(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value if value.ndim == 0 else value[list(order)]
        return value if value is None else [value[row] for row in order]

    return {name: permuted(value) for name, value in batch.items()}
