"""How far are the engine's log-probabilities from the trainer's?

For a sampled token, gap = |log p_engine - log p_trainer| in nats, both for the same tokens and the same weights. The
effect of rounding is measured on the same batch: the trainer's model runs once more with the output of every linear map
and norm multiplied by 1 + ulp·ε, with ε uniform in [-1, 1] and ulp the spacing of numbers near 1 in the coarser of the
two dtypes. A gap of more than `GAP_FACTOR` times the effect of this noise is not rounding.

Two statistics are compared: the mean over all tokens, and the worst reply, the largest mean over the tokens of one
reply. A fault in one prompt of a batch is visible in the second but not in the first.

With `top_p` = q < 1 the engine's probabilities are those of a truncated distribution, at most 1/q times the trainer's:
log p_engine - log p_trainer may lie anywhere in [0, -log q], and the gap is its distance from there.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float

from train.rollouts.record import IMAGES, TEXT

GAP_FACTOR = 10.0
"""In bfloat16, vLLM's gap was 0.5 to 1.1 times the noise's; planted faults gave far more (docs/log.md, 2026-11-27)."""
NEGLIGIBLE_MEAN, NEGLIGIBLE_REPLY = 1e-3, 1e-2
"""Nats per token. Smaller gaps are not faults: they change no probability by more than 0.1 % or 1 %, and in float32 the
rounding of sums within a map, which the noise does not include, may be tens of times the effect of the noise."""
ULP = {"float32": 2.0**-23, "bfloat16": 2.0**-7, "float16": 2.0**-10}
"""Spacing of numbers between 1 and 2: the maximum difference of two separately rounded results."""
NOISE_SEED = 0
MAX_QUANTILE_TOKENS = 1_000_000
"""`torch.quantile` (2.8 to 2.15) accepts at most 16 million values."""


@dataclass(frozen=True, kw_only=True)
class Gap:
    """The gap over one kind of prompts in a batch, in nats."""

    num_tokens: int
    mean: float
    p99: float
    """99th percentile over tokens."""
    worst_reply: float
    """The largest mean over the tokens of one reply."""


def measure_gap(
    engine: Float[torch.Tensor, "replies tokens"],
    trainer: Float[torch.Tensor, "replies tokens"],
    mask: Bool[torch.Tensor, "replies tokens"],
    slack: float = 0.0,
) -> Gap | None:
    """Compares log-probabilities of the same tokens; None if there is no token.

    Args:
        engine: the engine's log-probabilities; NaN for tokens that it could not score, which are ignored.
        trainer: the trainer's log-probabilities.
        mask: positions of sampled tokens.
        slack: amount in nats by which the engine's may be larger: -log of `top_p`.
    """
    mask = mask & ~torch.isnan(engine)
    above = engine - trainer
    gaps = (torch.maximum(above - slack, -above).clamp(min=0) * mask).nan_to_num(nan=float("inf"))
    lengths = mask.sum(dim=1)
    if not bool(lengths.sum()):
        return None
    means = (torch.where(mask, gaps, 0.0).sum(dim=1) / lengths.clamp(min=1)).masked_fill(lengths == 0, 0.0)
    tokens = gaps[mask]
    return Gap(
        num_tokens=len(tokens),
        mean=float(tokens.mean()),
        p99=float(torch.quantile(tokens[:MAX_QUANTILE_TOKENS].double(), 0.99)),
        worst_reply=float(means.max()),
    )


def gaps_by_kind(
    engine: torch.Tensor,
    trainer: torch.Tensor,
    mask: torch.Tensor,
    has_images: Sequence[bool],
    slack: float = 0.0,
) -> dict[str, Gap]:
    """Returns the gap of prompts without and with images, if there are any."""
    seeing = torch.tensor(list(has_images), dtype=torch.bool, device=mask.device)
    found = {}
    for kind, rows in ((TEXT, ~seeing), (IMAGES, seeing)):
        gap = measure_gap(engine[rows], trainer[rows], mask[rows].bool(), slack) if bool(rows.any()) else None
        if gap is not None:
            found[kind] = gap
    return found


def exceeds(gap: Gap, noise: Gap) -> bool:
    """True if a gap is more than rounding explains, or NaN."""
    return not (
        gap.mean <= max(NEGLIGIBLE_MEAN, GAP_FACTOR * noise.mean)
        and gap.worst_reply <= max(NEGLIGIBLE_REPLY, GAP_FACTOR * noise.worst_reply)
    )


def coarser(*dtypes: str) -> str:
    """Returns the dtype with the widest spacing."""
    return max(dtypes, key=lambda name: ULP[name])


@contextmanager
def rounding_noise(model: torch.nn.Module, dtype: str) -> Iterator[None]:
    """Perturbs the output of every linear map, convolution, embedding and norm like rounding to a dtype.

    The noise has its own generator; other random numbers are unaffected.
    """
    generators: dict[Any, torch.Generator] = {}
    ulp = ULP[dtype]

    def disturb(_: Any, __: Any, output: Any) -> Any:
        if not isinstance(output, torch.Tensor) or not output.is_floating_point():
            return None
        if output.device not in generators:
            generators[output.device] = torch.Generator(output.device).manual_seed(NOISE_SEED)
        noise = torch.rand(output.shape, generator=generators[output.device], device=output.device)
        return (output.float() * (1 + ulp * (2 * noise - 1))).to(output.dtype)

    handles = [module.register_forward_hook(disturb) for module in model.modules() if _computes(module)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _computes(module: torch.nn.Module) -> bool:
    """True for a leaf module with weights: a linear map, a norm, an embedding."""
    return not any(True for _ in module.children()) and any(True for _ in module.parameters(recurse=False))
