"""Do the engine that writes replies and the trainer that scores them see the same? Their log-probabilities, compared.

For a sampled token, gap = |log p_engine - log p_trainer| in nats, both for the same tokens and the same weights. What
rounding alone explains is measured, on the same batch: the trainer's model runs once more while the output of every
linear map and norm is multiplied by 1 + ulp·ε, with ε uniform in [-1, 1] and ulp the spacing of numbers near 1 in the
coarser of the two dtypes. A gap of more than `GAP_FACTOR` times what that noise does is no rounding.

Two statistics are compared: the mean over all tokens, and the worst reply, which is the largest mean over the tokens of
one reply. A fault in one prompt of a batch shows in the second and hides in the first.

With `top_p` = q < 1 the engine's probabilities are those of a cut distribution, each at most 1/q times the trainer's:
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
"""In bfloat16, vLLM's gap was 0.5 to 1.1 times the noise's, planted faults' far above (docs/log.md, 2026-11-27)."""
NEGLIGIBLE_MEAN, NEGLIGIBLE_REPLY = 1e-3, 1e-2
"""Nats a token. Below, no gap is a fault: it changes no probability by more than a thousandth or a hundredth, and in
float32 the rounding of sums inside a map, which the noise leaves out, may be tens of times what it explains."""
ULP = {"float32": 2.0**-23, "bfloat16": 2.0**-7, "float16": 2.0**-10}
"""Spacing of numbers between 1 and 2: two results that were rounded each by itself differ by no more."""
NOISE_SEED = 0
MAX_QUANTILE_TOKENS = 1_000_000
"""`torch.quantile` (2.8 to 2.15) refuses more than 16 million values."""


@dataclass(frozen=True, kw_only=True)
class Gap:
    """The gap over a batch's prompts of one kind, in nats."""

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
    """Compares log-probabilities of the same tokens; None where there is no token.

    Args:
        engine: log-probabilities under the engine; tokens that it could not score are NaN and left out.
        trainer: the same under the trainer.
        mask: which places hold a sampled token.
        slack: how much larger, in nats, the engine's may be: -log of `top_p`.
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
    """Returns the gap of prompts without and with pictures, where there are any."""
    seeing = torch.tensor(list(has_images), dtype=torch.bool, device=mask.device)
    found = {}
    for kind, rows in ((TEXT, ~seeing), (IMAGES, seeing)):
        gap = measure_gap(engine[rows], trainer[rows], mask[rows].bool(), slack) if bool(rows.any()) else None
        if gap is not None:
            found[kind] = gap
    return found


def exceeds(gap: Gap, noise: Gap) -> bool:
    """True where a gap is more than rounding explains; NaN is."""
    return not (
        gap.mean <= max(NEGLIGIBLE_MEAN, GAP_FACTOR * noise.mean)
        and gap.worst_reply <= max(NEGLIGIBLE_REPLY, GAP_FACTOR * noise.worst_reply)
    )


def coarser(*dtypes: str) -> str:
    """Returns the dtype with the widest spacing."""
    return max(dtypes, key=lambda name: ULP[name])


@contextmanager
def rounding_noise(model: torch.nn.Module, dtype: str) -> Iterator[None]:
    """Lets every linear map, convolution, embedding and norm of a model err as rounding to a dtype does.

    The noise has a generator of its own; every other random number stays as it is.
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
    """True for a module that has weights and no modules below it: a linear map, a norm, an embedding."""
    return not any(True for _ in module.children()) and any(True for _ in module.parameters(recurse=False))
