"""Do vLLM and the trainer agree on the sampled tokens? Compared in every pass with the weights that sampled them.

The trainer computes the log-probabilities of the sampled tokens in its loss anyway; vLLM returns its own. They are
compared before the pass's gradients are used, separately for prompts with and without images (`gap.py`), and logged
together with the effect of rounding: `rollout_gap/KIND`, `rollout_gap_p99/KIND` and `rollout_rounding/KIND`, in nats
per token. The effect of rounding is measured, with one more forward pass, in the first pass of each kind in an attempt,
once every `rollout_rounding_steps` steps, and in every pass that exceeds the last measurement.
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
"""Share of sampled tokens for which vLLM may give no log-probability; an engine that computes NaN gives none at all."""
Score = Callable[[], torch.Tensor]
"""Computes the trainer's log-probabilities of a pass again, [replies, tokens]."""


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One pass of the trainer over vLLM's replies."""

    engine: torch.Tensor
    """Log-probabilities of the sampled tokens, [replies, tokens]."""
    trainer: torch.Tensor
    mask: torch.Tensor
    has_images: list[bool]
    """Whether each reply's prompt has images."""


class RolloutGuard:
    """Compares every pass and stops the run if a gap is more than rounding explains."""

    def __init__(self, *, dtype: str, engine: str, max_gap: float | None, every: int = 50, top_p: float = 1.0) -> None:
        """Args:
        dtype: the coarser of the dtypes of engine and trainer.
        engine: name and version of the engine, for the message.
        max_gap: largest mean gap in nats per token; None: derived from rounding.
        every: steps between measurements of rounding.
        top_p: setting of the sampling.
        """
        self._slack = -math.log(top_p)
        self._every = every
        self._measured_at: int | None = None
        self.dtype = dtype
        self._engine = engine
        self._max_gap = max_gap
        self.noise: dict[str, Gap] = {}
        """Last measured effect of rounding, by kind."""

    def compare(self, work: Pass, model: Any, score: Score, device: Any, *, step: int) -> dict[str, Gap]:
        """Returns the gaps of a pass by kind; collective if several processes train.

        Args:
            work: the pass.
            model: the trainer's model, which is perturbed to measure rounding.
            score: computes the trainer's log-probabilities of the pass again.
            device: device of the trainer's tensors.
            step: step of the run, the same in every process.

        Raises:
            RuntimeError: if a gap is more than rounding explains; in every process.
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
        """Returns a message if the engine scored too few tokens for a comparison; else None."""
        mask = work.mask.bool()
        num_tokens, num_unscored = int(mask.sum()), int((mask & torch.isnan(work.engine)).sum())
        if num_unscored <= MAX_UNSCORED * num_tokens:
            return None
        return (
            f"{self._engine} gave no log-probability for {num_unscored} of {num_tokens} sampled tokens, so they cannot "
            "be compared with the trainer's; no step was taken on them"
        )

    def _excess(self, found: dict[str, Gap]) -> str | None:
        """Returns a message about the first gap that is too large; None if there is none."""
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
                f"those of the sampled tokens differ by {gap.mean:.2g} nats per token (worst reply "
                f"{gap.worst_reply:.2g}), expected at most {bound}; no step was taken on them"
            )
        return None
