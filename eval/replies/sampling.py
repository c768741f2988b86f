"""How is one of many replies drawn? From a seed of its own, whatever stands beside it in the batch.

A reply is drawn, token by token, from softmax(logits / temperature), of which with `top_p` < 1 only the most probable
tokens that together reach `top_p` are kept. The draw is the Gumbel-max trick: argmax(logits / temperature + g), with
independent standard Gumbel g, is such a draw.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class SamplingArguments:
    """How many replies to each prompt, and how they are drawn."""

    num_samples: int = field(default=1, metadata={"help": "replies to each prompt"})
    temperature: float = field(default=0.0, metadata={"help": "of the draws; 0: greedy, for one reply a prompt"})
    top_p: float = field(
        default=1.0, metadata={"help": "the most probable tokens that reach it together are drawn from"}
    )
    seed: int = field(default=0, metadata={"help": "every reply's own seed is drawn from it"})

    def __post_init__(self) -> None:
        if self.num_samples < 1:
            raise ValueError(f"num_samples is {self.num_samples}; it must be at least 1")
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature is {self.temperature}; it must be 0 (greedy) or above")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must be above 0 and at most 1")
        if not self.temperature and self.num_samples > 1:
            raise ValueError(
                f"num_samples is {self.num_samples} at temperature 0, where all replies are equal; give --temperature"
            )
        if not self.temperature and self.top_p < 1:
            raise ValueError(f"top_p is {self.top_p} at temperature 0, where it has no effect; give --temperature")


def reply_seed(seed: int, prompt_id: str, number: int) -> int:
    """Returns the seed of one reply to one prompt, of 63 bits."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{prompt_id}/{number}".encode()).digest()[:8], "big") >> 1


class SeededSampler:
    """Turns the greedy choice into a draw, for each row of a batch by a seed of its own, whatever stands beside it."""

    def __init__(self, seeds: Sequence[int], *, temperature: float, device: "torch.device", top_p: float = 1.0) -> None:
        import torch

        self._temperature = temperature
        self._top_p = top_p
        self._generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def keep(self, rows: Sequence[int]) -> None:
        """Goes on with these rows alone."""
        self._generators = [self._generators[row] for row in rows]

    def __call__(self, input_ids: "torch.Tensor", scores: "torch.Tensor") -> "torch.Tensor":
        import torch

        # scores: [rows, vocabulary]; -log of an exponential variable is a standard Gumbel one
        noise = torch.stack(
            [torch.empty_like(scores[0]).exponential_(generator=generator) for generator in self._generators]
        )
        return _nucleus(scores / self._temperature, self._top_p) - noise.log()


def _nucleus(scores: "torch.Tensor", top_p: float) -> "torch.Tensor":
    """Leaves out every token that those before it, in order of probability, reach `top_p` without."""
    import torch

    if top_p == 1:
        return scores
    ordered, places = scores.sort(dim=-1, descending=True)
    probability = ordered.float().softmax(-1)
    reached = probability.cumsum(-1) - probability >= top_p  # before this token
    return scores.masked_fill(torch.zeros_like(reached).scatter(-1, places, reached), -float("inf"))
