"""What does a swap mean, step by step? The plain procedure: hidden states replaced by hooks, one `generate` a layer.

The definition that the fast path (`prefix.py`) is held against, in tests, and that it is timed against, in
`benchmarks/probes.py`. During the prefill the picture's hidden states at the first swapped layer's input become the
source's; where the swapped layers end before the decoder does, the target's own are put back. Qwen3-VL's first layers
add features of the picture to their outputs (deepstack): inside the swapped layers these are the source's too. So are
the per-layer embeddings of Gemma 4, which are made from the picture as well and enter every layer.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from analyze.swap.prefix import ReadyPrompt
from models.families import family_of
from models.layout import config_value


def decoder_layers(model: Any) -> Sequence[torch.nn.Module]:
    layers: Sequence[torch.nn.Module] = model.get_submodule(family_of(model.config.model_type).layers.removesuffix("."))
    return layers


def model_inputs(model: Any, prompt: ReadyPrompt) -> dict[str, Any]:
    """Returns a prompt as the model's own `forward` and `generate` take it; positions are left to them."""
    inputs = {
        "input_ids": prompt.input_ids[None],
        "attention_mask": torch.ones_like(prompt.input_ids)[None],
        **({"mm_token_type_ids": prompt.token_types[None]} if takes_types(model, prompt) else {}),
        **prompt.pictures,
    }
    return {name: tensor.to(model.device) for name, tensor in inputs.items()}


def takes_types(model: Any, prompt: ReadyPrompt) -> bool:
    """True if a model must be told which tokens belong to pictures, for their positions or for what they see."""
    return len(prompt.position_ids) > 1 or bool(family_of(model.config.model_type).token_fields)


@torch.inference_mode()
def picture_states(model: Any, prompt: ReadyPrompt) -> list[Float[Tensor, "pictured hidden"]]:
    """Returns the hidden states of the picture's tokens at every decoder layer's input, from one full pass."""
    pictured = (prompt.token_types == 1).to(model.device)
    states: list[Tensor] = []

    def keep(module: torch.nn.Module, args: tuple[Tensor, ...]) -> None:
        states.append(args[0][0, pictured])

    handles = [layer.register_forward_pre_hook(keep) for layer in decoder_layers(model)]
    try:
        # A tensor, not a number: given a number, Gemma 4 computes only so many last tokens in its last layers.
        last = torch.tensor([len(prompt.input_ids) - 1], device=model.device)
        model(**model_inputs(model, prompt), use_cache=False, logits_to_keep=last)
    finally:
        for handle in handles:
            handle.remove()
    return states


@contextmanager
def swapped(
    model: Any,
    prompt: ReadyPrompt,
    layers: range,
    *,
    own: Sequence[Float[Tensor, "pictured hidden"]],
    source: Sequence[Float[Tensor, "pictured hidden"]],
) -> Iterator[None]:
    """Inside the block, the given layers see the source's picture when the prompt is read; decoding is left alone.

    Args:
        model: any supported model with a vision tower.
        prompt: the target's.
        layers: consecutive decoder layers; none is no swap.
        own, source: the hidden states of both pictures at every layer's input.
    """
    replaced: dict[int, Tensor] = {}
    if len(layers):
        replaced[layers.start] = source[layers.start]
        last = len(own) if not family_of(model.config.model_type).plain_layers else num_deepstack_layers(model)
        replaced |= {layer: source[layer] for layer in layers[1:] if layer <= last}
        if layers.stop < len(own):
            replaced[layers.stop] = own[layers.stop]
    pictured = prompt.token_types.nonzero().flatten().to(model.device)

    def replacement(states: Tensor) -> Any:
        def replace(module: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            if args[0].shape[1] < len(prompt.input_ids):
                return None  # a step of decoding
            hidden = args[0].clone()
            hidden[:, pictured] = states
            return (hidden, *args[1:])

        return replace

    handles = [
        decoder_layers(model)[layer].register_forward_pre_hook(replacement(states))
        for layer, states in replaced.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def num_deepstack_layers(model: Any) -> int:
    """Returns how many of the first decoder layers add features of the picture to their outputs."""
    key = family_of(model.config.model_type).deepstack_key
    return len(config_value(model.config.to_dict(), *key)) if key else 0


def generate_swapped(
    model: Any, target: ReadyPrompt, source: ReadyPrompt, swaps: Sequence[range], settings: dict[str, Any]
) -> list[list[int]]:
    """Returns the tokens that follow the target's prompt under each swap: one `generate` of a single row each."""
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig(**settings)
    own, other = picture_states(model, target), picture_states(model, source)
    inputs = model_inputs(model, target)
    replies = []
    for layers in swaps:
        with swapped(model, target, layers, own=own, source=other), torch.inference_mode():
            output = model.generate(**inputs)
        replies.append(output[0, len(target.input_ids) :].tolist())
    return replies
