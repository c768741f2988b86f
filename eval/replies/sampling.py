"""How is one of many replies sampled? With its own seed, independently of the rest of the batch.

Tokens are sampled from softmax(logits / temperature); with `top_p` < 1, only from the most probable tokens whose
probabilities together reach `top_p`. Sampling uses the Gumbel-max trick: argmax(logits / temperature + g), with
independent standard Gumbel g, is such a sample.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class SamplingArguments:
    """The number of replies per prompt, and how they are sampled."""

    num_samples: int = field(default=1, metadata={"help": "replies per prompt"})
    temperature: float = field(default=0.0, metadata={"help": "sampling temperature; 0: greedy, one reply per prompt"})
    top_p: float = field(
        default=1.0,
        metadata={"help": "sample from the most probable tokens whose total probability reaches this value"},
    )
    seed: int = field(default=0, metadata={"help": "seed from which each reply's seed is derived"})

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
    """Returns the 63-bit seed of one reply to one prompt."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{prompt_id}/{number}".encode()).digest()[:8], "big") >> 1


class SeededSampler:
    """Turns greedy decoding into sampling, with a separate seed per row, independently of the other rows."""

    def __init__(self, seeds: Sequence[int], *, temperature: float, device: "torch.device", top_p: float = 1.0) -> None:
        import torch

        self._temperature = temperature
        self._top_p = top_p
        self._generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def keep(self, rows: Sequence[int]) -> None:
        """Continues with these rows only."""
        self._generators = [self._generators[row] for row in rows]

    def __call__(self, input_ids: "torch.Tensor", scores: "torch.Tensor") -> "torch.Tensor":
        import torch

        # scores: [rows, vocabulary]; -log of an exponential variable is standard Gumbel
        noise = torch.stack(
            [torch.empty_like(scores[0]).exponential_(generator=generator) for generator in self._generators]
        )
        return _nucleus(scores / self._temperature, self._top_p) - noise.log()


def _nucleus(scores: "torch.Tensor", top_p: float) -> "torch.Tensor":
    """Masks every token whose more probable tokens already reach `top_p`."""
    import torch

    if top_p == 1:
        return scores
    ordered, places = scores.sort(dim=-1, descending=True)
    probability = ordered.float().softmax(-1)
    reached = probability.cumsum(-1) - probability >= top_p  # before this token
    return scores.masked_fill(torch.zeros_like(reached).scatter(-1, places, reached), -float("inf"))
