"""How is one more token of many sequences computed without the overhead of modules? For small models on CPUs.

    with fast_steps(model):
        model.generate(...)

A fifth of a small model's step is the dispatch of its modules, not arithmetic. Within the context, a forward pass over
one new token per row, with a cache, runs the decoder's operations one after the other, in the order of Transformers
(5.23) and with its functions for masks, rotary angles and attention. So the logits are equal bit for bit. The first
step of a model is computed both ways. If the bits differ, as they may with another version of Transformers, the model's
own pass is used from then on. Every other pass is the model's own.

Known limits: the decoders of Qwen2-VL and Qwen2.5-VL, in fp32 on a CPU, with SDPA, without gradients and adapters.
"""

import copy
import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

LAYERS = ("Qwen2VLDecoderLayer", "Qwen2_5_VLDecoderLayer")
"""Classes of decoder layers whose operations `_Steps` repeats; the two are equal but for their names."""
TAKEN = ("input_ids", "attention_mask", "position_ids", "past_key_values", "use_cache", "logits_to_keep", "return_dict")
"""Arguments of the model's forward pass that a step uses or may ignore; with others, the model's own pass is run."""
_differs: "WeakKeyDictionary[nn.Module, bool]" = WeakKeyDictionary()
"""Model -> whether its first step differed from the module's own pass."""


@contextmanager
def fast_steps(model: Any) -> Iterator[None]:
    """Computes single new tokens without the overhead of modules, where this is possible; results do not change."""
    if torch.is_grad_enabled() or not can_step(model):
        yield
        return
    own, before = model.forward, vars(model).get("forward")
    model.forward = _forward(model, own)
    try:
        yield
    finally:
        if before is None:
            del model.forward
        else:
            model.forward = before


def can_step(model: Any) -> bool:
    """True if the model is of a kind whose steps are known here, and nothing was added to its decoder."""
    stack = getattr(getattr(model, "model", None), "language_model", None)
    if stack is None or not all(type(layer).__name__ in LAYERS for layer in stack.layers):
        return False
    parameters = [*stack.parameters(), *model.get_output_embeddings().parameters()]
    return (
        stack.config._attn_implementation == "sdpa"
        and stack.config.hidden_act == "silu"
        and not stack.has_sliding_layers
        and not (stack.training and stack.config.attention_dropout)
        and not torch.is_autocast_enabled("cpu")
        and all(parameter.dtype == torch.float32 and parameter.device.type == "cpu" for parameter in parameters)
        and not any(_is_changed(module) for layer in stack.layers for module in layer.modules())
    )


def _is_changed(module: nn.Module) -> bool:
    """True for a module with hooks or a forward pass of its own, and for a linear map of another kind."""
    hooked = module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
    return bool(hooked) or (isinstance(module, nn.Linear) and type(module) is not nn.Linear)


def _forward(model: Any, own: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a forward pass with steps of its own, and the signature of the model's, which `generate` reads."""
    steps = _Steps(model)

    @functools.wraps(own)
    def forward(**given: Any) -> Any:
        if _differs.get(model) or not _is_step(given):
            return own(**given)
        step = partial(steps, given["input_ids"], given.get("attention_mask"), given["position_ids"])
        if model in _differs:
            return step(given["past_key_values"])
        found = step(copy.deepcopy(given["past_key_values"]))
        expected = own(**given)
        _differs[model] = not torch.equal(found.logits, expected.logits)
        return expected

    forward.__signature__ = inspect.signature(own)  # type: ignore[attr-defined]
    return forward


def _is_step(given: dict[str, Any]) -> bool:
    others = [value for name, value in given.items() if name not in TAKEN and value is not None]
    if any(not isinstance(value, dict) or value for value in others):
        return False
    if any(given.get(name) is None for name in ("input_ids", "position_ids", "past_key_values")):
        return False
    return bool(given["input_ids"].shape[1] == 1 and given["position_ids"].shape[-1] == 1)


class _Steps:
    """The decoder's operations for one new token per row."""

    def __init__(self, model: Any) -> None:
        self._stack = model.model.language_model
        self._head = model.get_output_embeddings()
        self._layers = [(layer, layer.self_attn, layer.mlp) for layer in self._stack.layers]

    def __call__(
        self,
        input_ids: Int[Tensor, "rows 1"],
        attention_mask: Tensor | None,
        position_ids: Int[Tensor, "... rows 1"],
        cache: Any,
    ) -> CausalLMOutputWithPast:
        """Returns the logits [rows, 1, vocabulary] of the next token, and appends this one's keys and values.

        Args:
            input_ids: the new tokens.
            attention_mask: as the model takes it: of all tokens so far, or ready for attention.
            position_ids: of the new tokens; three sections, or four with the text's positions first.
            cache: of all tokens before.
        """
        stack = self._stack
        hidden = stack.embed_tokens(input_ids)
        if position_ids.ndim == 2:
            position_ids = position_ids[None].expand(3, -1, -1)
        text_positions = None
        if len(position_ids) == 4:
            text_positions, position_ids = position_ids[0], position_ids[1:]
        mask = create_causal_mask(
            config=stack.config,
            inputs_embeds=hidden,
            attention_mask=attention_mask,
            past_key_values=cache,
            position_ids=text_positions,
        )
        cosines, sines = (angles.unsqueeze(1) for angles in stack.rotary_emb(hidden, position_ids))
        attend, linear = ALL_ATTENTION_FUNCTIONS["sdpa"], functional.linear
        for number, (layer, attention, mlp) in enumerate(self._layers):
            normed = _normed(hidden, layer.input_layernorm)
            projected = [
                linear(normed, part.weight, part.bias).view(len(hidden), 1, -1, attention.head_dim).transpose(1, 2)
                for part in (attention.q_proj, attention.k_proj, attention.v_proj)
            ]
            # Queries and keys are rotated together: each of their elements as it would be alone.
            both = torch.cat(projected[:2], dim=1)
            first, second = both.chunk(2, dim=-1)
            both = both * cosines + torch.cat((-second, first), dim=-1) * sines
            queries, keys = both.split([part.shape[1] for part in projected[:2]], dim=1)
            keys, values = cache.update(keys, projected[2], number)
            output, _ = attend(attention, queries, keys, values, mask, dropout=0.0, scaling=attention.scaling)
            hidden = hidden + linear(output.reshape(len(hidden), 1, -1), attention.o_proj.weight)
            normed = _normed(hidden, layer.post_attention_layernorm)
            gated = functional.silu(linear(normed, mlp.gate_proj.weight)) * linear(normed, mlp.up_proj.weight)
            hidden = hidden + linear(gated, mlp.down_proj.weight)
        logits = self._head(stack.norm(hidden))
        return CausalLMOutputWithPast(logits=logits, past_key_values=cache)


def _normed(hidden: Float[Tensor, "rows 1 width"], norm: Any) -> Float[Tensor, "rows 1 width"]:
    variance = hidden.pow(2).mean(-1, keepdim=True)
    normed: Tensor = norm.weight * (hidden * torch.rsqrt(variance + norm.variance_epsilon))
    return normed
