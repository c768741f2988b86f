"""How many tokens a second does a GPU take, where nobody has measured it? An estimate from its peak, said as one.

    tokens/s = UTILISATION · peak / (FLOPs a parameter and token · parameters)

A token is sampled (2 FLOPs a parameter) and passed forward (2) and backward (4); gradient checkpointing passes it
forward once more (2). Attention's own FLOPs, image patches and a reference model are left out, and a frozen arm is
counted as if all of it trained. UTILISATION is an assumption: sampling is bound by memory and uses little of the peak,
the passes of training use more. Measure a step and give `--tokens_per_s`.
"""

from dataclasses import dataclass

from train.planning.recipe import Recipe

PEAK_FLOPS = {
    "a100-40gb": 312e12,
    "a100-80gb": 312e12,
    "h100-80gb": 989e12,
    "h200-141gb": 989e12,
    "rtx-4090-24gb": 165e12,
}
"""Dense bf16 with fp32 accumulation, SXM modules: NVIDIA's data sheets of A100, H100 and H200 (without sparsity), and
the Ada architecture's white paper (appendix A) for the RTX 4090."""
UTILISATION, LEAST, MOST = 0.10, 0.05, 0.20
"""Share of the peak over a whole GRPO step, sampling included: an assumption, with the range it may lie in."""
PASSES_FLOPS, RECOMPUTED_FLOPS = 8, 2


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Tokens of prompts and replies that one GPU takes through sampling and training in a second."""

    tokens_per_s: float
    source: str
    """Where the number is from, in words."""
    is_assumed: bool

    def hours(self, num_tokens: int) -> float:
        """Returns the GPU-hours of a number of tokens."""
        return num_tokens / self.tokens_per_s / 3600


def assumed_speed(gpu: str, num_elements: int, recipe: Recipe) -> Speed | None:
    """Returns an estimate for a GPU of the table, None for another.

    Args:
        gpu: its name.
        num_elements: parameters of the model.
        recipe: of the run.
    """
    if gpu not in PEAK_FLOPS:
        return None
    flops = PASSES_FLOPS + (RECOMPUTED_FLOPS if recipe.checkpointing else 0)
    return Speed(
        tokens_per_s=UTILISATION * PEAK_FLOPS[gpu] / (flops * num_elements),
        source=f"{UTILISATION:.0%} of {PEAK_FLOPS[gpu] / 1e12:,.0f} bf16 TFLOPS (data sheet), {flops} FLOPs per "
        "parameter and token",
        is_assumed=True,
    )
