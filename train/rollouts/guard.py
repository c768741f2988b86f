"""Is what vLLM sampled what the trainer scores? Compared in every pass on the weights that wrote the replies.

The trainer computes the log-probabilities of the sampled tokens anyway, in its loss; vLLM returns its own. They are
compared before the pass's gradients are used, by prompts with and without pictures apart (`gap.py`), and
logged beside what rounding explains: `rollout_gap/KIND`, `rollout_gap_p99/KIND` and `rollout_rounding/KIND`, in nats a
token. The first pass of each kind in an attempt measures what rounding explains, with one more forward pass; so does
one in every `rollout_rounding_steps` steps, and every pass that exceeds what was measured before.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from tracking.processes import any_process
from train.rollouts.gap import GAP_FACTOR, Gap, exceeds, gaps_by_kind, rounding_noise
from train.rollouts.record import IMAGES, KINDS

MAX_UNSCORED = 0.1
"""Share of sampled tokens for which vLLM may give no log-probability; one that computes NaN gives none at all."""
Score = Callable[[], torch.Tensor]
"""Computes the trainer's log-probabilities of a pass once more, [replies, tokens]."""


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One pass of the trainer over replies that vLLM wrote."""

    engine: torch.Tensor
    """Log-probabilities of the sampled tokens, [replies, tokens]."""
    trainer: torch.Tensor
    mask: torch.Tensor
    has_images: list[bool]
    """Of each reply's prompt."""


class RolloutGuard:
    """Compares every pass and stops the run where a gap is more than rounding explains."""

    def __init__(self, *, dtype: str, engine: str, max_gap: float | None, every: int = 50, top_p: float = 1.0) -> None:
        """Args:
        dtype: the coarser of the dtypes in which engine and trainer compute.
        engine: its name and version, for the message.
        max_gap: largest mean gap in nats a token; None: what rounding explains.
        every: steps between measures of what rounding explains.
        top_p: of the sampling.
        """
        self._slack = -math.log(top_p)
        self._every = every
        self._measured_at: int | None = None
        self.dtype = dtype
        self._engine = engine
        self._max_gap = max_gap
        self.noise: dict[str, Gap] = {}
        """What rounding explains, by kind, as last measured."""

    def compare(self, work: Pass, model: Any, score: Score, device: Any, *, step: int) -> dict[str, Gap]:
        """Returns the gaps of a pass by kind; collective where several processes train.

        Args:
            work: the pass.
            model: the trainer's, whose modules err while rounding is measured.
            score: the trainer's log-probabilities of the pass, computed anew.
            device: of the trainer's tensors.
            step: of the run, which every process counts alike.

        Raises:
            RuntimeError: where a gap is more than rounding explains, in every process.
        """
        found = gaps_by_kind(work.engine, work.trainer, work.mask, work.has_images, self._slack)
        due = self._measured_at is None or (step != self._measured_at and step % self._every == 0)
        unknown = any(kind not in self.noise for kind in found)
        if any_process(due or unknown or self._excess(found) is not None, device):
            self._measured_at = step
            with torch.no_grad(), rounding_noise(model, self.dtype):
                noisy = score()
            self.noise |= gaps_by_kind(noisy, work.trainer, work.mask, work.has_images)
        excess = self._unscored(work) or self._excess(found)
        if any_process(excess is not None, device):
            raise RuntimeError(
                excess or "another process found that vLLM and the trainer compute different log-probabilities"
            )
        return found

    def _unscored(self, work: Pass) -> str | None:
        """Says so where too few tokens have a log-probability of the engine's to be compared; else None."""
        mask = work.mask.bool()
        num_tokens, num_unscored = int(mask.sum()), int((mask & torch.isnan(work.engine)).sum())
        if num_unscored <= MAX_UNSCORED * num_tokens:
            return None
        return (
            f"{self._engine} gave no log-probability for {num_unscored} of {num_tokens} sampled tokens, so they cannot "
            "be compared with the trainer's; no step was taken on them"
        )

    def _excess(self, found: dict[str, Gap]) -> str | None:
        """Returns the first gap that is too large, in words; None where none is."""
        for kind in KINDS:
            gap, noise = found.get(kind), self.noise.get(kind)
            if gap is None:
                continue
            if self._max_gap is not None and not gap.mean <= self._max_gap:
                bound = f"rollout_max_gap {self._max_gap:g}"
            elif self._max_gap is None and noise is not None and exceeds(gap, noise):
                bound = (
                    f"{GAP_FACTOR:g} times what rounding to {self.dtype} explains ({noise.mean:.2g}, worst reply "
                    f"{noise.worst_reply:.2g})"
                )
            else:
                continue
            without = "with" if kind == IMAGES else "without"
            return (
                f"{self._engine} and the trainer compute different log-probabilities in prompts {without} pictures: "
                f"those of the sampled tokens differ by {gap.mean:.2g} nats a token (worst reply "
                f"{gap.worst_reply:.2g}), expected at most {bound}; no step was taken on them"
            )
        return None
