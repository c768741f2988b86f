"""When is a reply stopped for repeating itself? The stopping rule, applied to each row of a batch.

A greedy reply that has begun to repeat itself rarely stops doing so and runs to the length limit. It is stopped when
its last `window` tokens are at least four repetitions of one cycle: for some period p <= window / 4, each of them
equals the token p positions earlier. The reply so far is kept, graded like any other, and counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

NUM_ROUNDS = 4
INTERVAL_TOKENS = 8
"""Tokens between two checks; a reply may end that many tokens late, independently of its batch."""


def is_circling(tokens: Int[Tensor, "rows window"]) -> Bool[Tensor, " rows"]:
    """Returns which rows consist entirely of `NUM_ROUNDS` or more repetitions of one cycle."""
    found = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
    for period in range(1, tokens.shape[1] // NUM_ROUNDS + 1):
        found |= (tokens[:, period:] == tokens[:, :-period]).all(dim=1)
    return found


def circles_at(tokens: Sequence[int], window: int) -> int | None:
    """Returns the length at which a finished reply would have been stopped; None if it would not."""
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
    """A stopping criterion for `generate`, evaluated after every token."""

    num_prompt_tokens: int
    window: int
    """Tokens; 0 disables stopping."""
    stopped_at: Int[Tensor, " rows"] | None = None
    """Length of each reply when it was stopped; 0 if it was not."""

    def __call__(self, input_ids: Int[Tensor, "rows tokens"], scores: object, **_: object) -> Bool[Tensor, " rows"]:
        if self.stopped_at is None:
            self.stopped_at = torch.zeros(len(input_ids), dtype=torch.long, device=input_ids.device)
        length = input_ids.shape[1] - self.num_prompt_tokens
        if self.window and length >= self.window and length % INTERVAL_TOKENS == 0:
            newly = is_circling(input_ids[:, -self.window :]) & (self.stopped_at == 0)
            self.stopped_at = torch.where(newly, length, self.stopped_at)
        return self.stopped_at > 0
