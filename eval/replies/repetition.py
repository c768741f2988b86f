"""When is a reply going round in circles? The rule by which it is ended, row by row of a batch.

A greedy reply that has begun to repeat itself hardly ever finds out of it, and runs to the limit. It is ended when its
last `window` tokens are four or more rounds of one cycle: for some period p <= window / 4, each of them equals the one
p places before it. The reply so far is kept and graded like any other, and it is counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

NUM_ROUNDS = 4
INTERVAL_TOKENS = 8
"""How often a batch is looked at; a reply ends up to so many tokens late, the same in every batch."""


def is_circling(tokens: Int[Tensor, "rows window"]) -> Bool[Tensor, " rows"]:
    """Returns which rows are `NUM_ROUNDS` or more rounds of one cycle from end to end."""
    found = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
    for period in range(1, tokens.shape[1] // NUM_ROUNDS + 1):
        found |= (tokens[:, period:] == tokens[:, :-period]).all(dim=1)
    return found


def circles_at(tokens: Sequence[int], window: int) -> int | None:
    """Returns how many tokens a finished reply would have had if it had been ended; None where it would not."""
    if not window:
        return None
    reply = torch.tensor([list(tokens)])
    first = -(-window // INTERVAL_TOKENS) * INTERVAL_TOKENS
    for length in range(first, len(tokens) + 1, INTERVAL_TOKENS):
        if is_circling(reply[:, length - window : length]):
            return length
    return None


@dataclass
class RepetitionStop:
    """A stopping criterion for `generate`, which asks it after every token."""

    num_prompt_tokens: int
    window: int
    """Tokens; 0 never stops."""
    stopped_at: Int[Tensor, " rows"] | None = None
    """How many tokens each reply had when it was ended; 0 for one that was not."""

    def __call__(self, input_ids: Int[Tensor, "rows tokens"], scores: object, **_: object) -> Bool[Tensor, " rows"]:
        if self.stopped_at is None:
            self.stopped_at = torch.zeros(len(input_ids), dtype=torch.long, device=input_ids.device)
        length = input_ids.shape[1] - self.num_prompt_tokens
        if self.window and length >= self.window and length % INTERVAL_TOKENS == 0:
            newly = is_circling(input_ids[:, -self.window :]) & (self.stopped_at == 0)
            self.stopped_at = torch.where(newly, length, self.stopped_at)
        return self.stopped_at > 0
