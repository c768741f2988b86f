"""How much attention goes where? Attention masses by segment, accumulated without storing attention matrices.

    mass = AttentionMass(segments, weights, top_tokens=5)
    with accumulating(model, mass):
        model(**inputs, use_cache=False)
    mass.result()  # [rows, parts, layers, heads, measures]

During one forward pass the decoder uses Transformers' SDPA. In addition, the softmax rows of reply tokens are computed
in fp32, a chunk of queries at a time, and summed over the segments of the keys, so no [T, T] matrix is stored for any
layer. Queries and keys already include rotary embeddings, and the mask is SDPA's: grouped heads, padding on either side
and mrope need no special treatment. The vision tower's attention is unchanged.

Known limits: one forward pass over whole sequences, without a cache. Layers with a recurrent state (linear attention,
as in three of four layers of Qwen3.5) have no attention weights; their masses are NaN.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from transformers import AttentionMaskInterface
from transformers.masking_utils import sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from analyze.attention.records import MEASURES, SEGMENTS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

KEY_SEGMENTS = ("vision", "question", "template", "sink", "reply")
"""Segment of a key's token; for a query, `reply` is split into earlier tokens and the token itself."""
PADDING = -1
IMPLEMENTATION = "attention_mass"
CHUNK_ELEMENTS = 2**23
"""Attention weights in memory at once: 32 MiB, and a few copies of that size."""

AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
assert (*KEY_SEGMENTS[:-1], "earlier", "self") == SEGMENTS


@dataclass(frozen=True)
class Seen:
    """What the attention of one layer was computed from, and SDPA's output."""

    module: torch.nn.Module
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    attention_mask: torch.Tensor | None
    scale: float
    output: torch.Tensor

    @property
    def layer(self) -> int:
        return int(self.module.layer_idx)  # type: ignore[arg-type]

    @cached_property
    def keys(self) -> torch.Tensor:
        """The keys in fp32."""
        return self.key.float()

    def scores(self, index: Int[torch.Tensor, "rows chunk"]) -> Float[torch.Tensor, "rows heads chunk tokens"]:
        """Returns the scores of some queries before the softmax, in fp32."""
        return attention_scores(self.query, self.keys, self.attention_mask, index, self.scale)


class SdpaObserver(ABC):
    """An attention function of Transformers that computes SDPA's output and looks at what went into it."""

    def __call__(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        """Computes SDPA's output; the signature is Transformers'."""
        output, _ = ALL_ATTENTION_FUNCTIONS["sdpa"](
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        with torch.no_grad():
            scale = query.shape[-1] ** -0.5 if scaling is None else scaling
            self._observe(Seen(module, query, key, value, attention_mask, scale, output))
        return output, None

    @abstractmethod
    def _observe(self, seen: Seen) -> None:
        """Keeps what is wanted of one layer; without gradients."""


class AttentionMass(SdpaObserver):
    """An attention function that computes SDPA's output and accumulates what each layer's reply tokens attend to."""

    def __init__(
        self,
        segments: Int[torch.Tensor, "rows tokens"],
        weights: Float[torch.Tensor, "rows parts tokens"],
        *,
        top_tokens: int,
        rebuild_output: bool = False,
    ) -> None:
        """Prepares for one batch.

        Args:
            segments: index in `KEY_SEGMENTS` of each token, or `PADDING`.
            weights: weight of each query in the mean of each part of the reply; they sum to one, or to zero for a part
                that a row does not have.
            top_tokens: number of most attended vision tokens in `vision_top_share`, determined per query.
            rebuild_output: also compute the attention output from these weights, and compare it with SDPA's.
        """
        is_reply = segments == KEY_SEGMENTS.index("reply")
        assert is_reply.any(1).all(), "a row without a reply token"
        assert not weights[~is_reply[:, None].expand_as(weights)].any(), "a token outside the reply has a weight"
        self._top_tokens = top_tokens
        self._rebuild_output = rebuild_output
        self._members = torch.stack([segments == number for number in range(len(KEY_SEGMENTS))], -1).float()
        self._query_index, counts = chosen_positions(is_reply)  # [rows, queries]
        gathered = weights.gather(2, self._query_index[:, None].expand(-1, weights.shape[1], -1))
        self._weights = (gathered * counts[:, None]).double()  # [rows, parts, queries]
        self._vision_index, self._is_vision = chosen_positions(segments == KEY_SEGMENTS.index("vision"))
        self._layers: dict[int, torch.Tensor] = {}
        self._num_layers = 0
        self._sum_errors = torch.zeros(len(segments), device=segments.device)
        self._output_errors: list[float] = []

    def _observe(self, seen: Seen) -> None:
        """Accumulates this layer's masses."""
        self._num_layers = int(seen.module.config.num_hidden_layers)  # type: ignore[union-attr, arg-type]
        num_tokens = self._members.shape[1]
        assert seen.query.shape[2] == seen.key.shape[2] == num_tokens, "masses need whole sequences without a cache"
        assert seen.layer not in self._layers, (
            f"layer {seen.layer} ran twice; one AttentionMass serves one forward pass"
        )
        self._layers[seen.layer] = self._measure(seen)

    def result(self) -> Float[torch.Tensor, "rows parts layers heads measures"]:
        """Returns the means over each part's tokens, on the CPU; NaN for a missing part, image or attention matrix.

        Entropy and top share within the image are NaN, too, where a token of the part sees nothing of the image, which
        may have left its sliding window.
        """
        nothing = torch.full_like(next(iter(self._layers.values())), float("nan"))
        stacked = torch.stack([self._layers.get(layer, nothing) for layer in range(self._num_layers)], 2)
        absent = ~(self._weights.sum(-1) > 0).cpu()
        stacked[absent] = float("nan")
        return stacked.float()

    @property
    def sum_errors(self) -> Float[torch.Tensor, " rows"]:
        """The largest deviation from one of a query's total mass, over all layers and heads."""
        return self._sum_errors.cpu()

    @property
    def output_error(self) -> float:
        """The largest relative distance, over layers, between the output rebuilt from these weights and SDPA's."""
        return max(self._output_errors)

    def _measure(self, seen: Seen) -> torch.Tensor:
        num_rows, num_heads, num_tokens, _ = seen.query.shape
        device = seen.query.device
        num_parts = self._weights.shape[1]
        total = torch.zeros(num_rows, num_parts, num_heads, len(MEASURES), dtype=torch.float64, device=device)
        squares = torch.zeros(2, dtype=torch.float64, device=device)
        step = max(1, CHUNK_ELEMENTS // (num_rows * num_heads * num_tokens))
        for start in range(0, self._query_index.shape[1], step):
            index = self._query_index[:, start : start + step]  # [rows, chunk]
            scores = seen.scores(index)
            values = self._summarise(scores, index)  # [rows, heads, chunk, measures]
            total += torch.einsum("bhrm,bpr->bphm", values.double(), self._weights[:, :, start : start + step])
            if self._rebuild_output:
                rebuilt = _grouped_matmul(scores.softmax(-1), seen.value.float())
                found = _take(seen.output.transpose(1, 2), index).float()
                squares += torch.stack([(rebuilt - found).square().sum(), found.square().sum()]).double()
        if self._rebuild_output:
            self._output_errors.append(float((squares[0] / squares[1]).sqrt()))
        return total.cpu()

    def _summarise(
        self, scores: Float[torch.Tensor, "rows heads chunk tokens"], index: Int[torch.Tensor, "rows chunk"]
    ) -> Float[torch.Tensor, "rows heads chunk measures"]:
        probabilities = scores.softmax(-1)
        masses = probabilities @ self._members[:, None]  # [rows, heads, chunk, key segments]
        own = probabilities.gather(-1, index[:, None, :, None].expand(*scores.shape[:-1], 1))
        error = (masses.sum(-1) - 1).abs().flatten(1).amax(1)
        self._sum_errors = torch.maximum(self._sum_errors, error)
        earlier = (masses[..., -1:] - own).clamp(min=0)  # negative only by rounding
        entropy = torch.special.entr(probabilities).sum(-1, keepdim=True)
        has_vision = self._is_vision.any(1)[:, None, None, None]
        vision = masses[..., :1].masked_fill(~has_vision, float("nan"))
        return torch.cat([vision, masses[..., 1:-1], earlier, own, entropy, *self._among_vision(scores)], -1)

    def _among_vision(self, scores: torch.Tensor) -> list[torch.Tensor]:
        """Returns entropy and top share of the attention within the vision tokens; NaN if there are none."""
        if self._vision_index.shape[1] == 0:
            return [torch.full_like(scores[..., :1], float("nan"))] * 2
        index = self._vision_index[:, None, None].expand(*scores.shape[:-1], -1)
        among = scores.gather(-1, index).masked_fill(~self._is_vision[:, None, None], float("-inf")).softmax(-1)
        top = among.topk(min(self._top_tokens, among.shape[-1]), dim=-1).values
        return [torch.special.entr(among).sum(-1, keepdim=True), top.sum(-1, keepdim=True)]


@contextmanager
def accumulating(
    model: "PreTrainedModel", mass: Callable[..., tuple[torch.Tensor, torch.Tensor | None]]
) -> Iterator[None]:
    """Uses `mass` as the attention of this model's decoder within the context, for one forward pass."""
    assert IMPLEMENTATION not in ALL_ATTENTION_FUNCTIONS, "masses are taken for one forward pass at a time"
    before = model.config.get_text_config()._attn_implementation
    ALL_ATTENTION_FUNCTIONS[IMPLEMENTATION] = mass
    try:
        set_decoder_attention(model, IMPLEMENTATION)
        yield
    finally:
        set_decoder_attention(model, before)
        del ALL_ATTENTION_FUNCTIONS[IMPLEMENTATION]


def set_decoder_attention(model: "PreTrainedModel", implementation: str) -> None:
    """Sets the attention of the decoder only, not the vision tower's."""
    is_nested = model.config.get_text_config() is not model.config
    model.set_attn_implementation({"text_config": implementation} if is_nested else implementation)


def chosen_positions(chosen: Bool[torch.Tensor, "rows tokens"]) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the selected positions of each row, and a validity mask: shorter rows repeat their last position."""
    counts = chosen.sum(1, keepdim=True)
    order = chosen.int().argsort(dim=1, descending=True, stable=True)
    slots = torch.arange(int(counts.max()), device=chosen.device).expand(len(chosen), -1)
    return order.gather(1, torch.minimum(slots, (counts - 1).clamp(min=0))), slots < counts


def _take(states: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Returns the states [rows, heads, tokens, size] at each row's positions."""
    return states.gather(2, index[:, None, :, None].expand(-1, states.shape[1], -1, states.shape[-1]))


def attention_scores(
    query: Float[torch.Tensor, "rows heads tokens size"],
    keys: Float[torch.Tensor, "rows kv_heads tokens size"],
    attention_mask: torch.Tensor | None,
    index: Int[torch.Tensor, "rows chunk"],
    scale: float,
) -> Float[torch.Tensor, "rows heads chunk tokens"]:
    """Returns the scores of some queries before the softmax, in fp32; minus infinity for keys that are not visible.

    Args:
        query: the layer's queries.
        keys: its keys, in fp32.
        attention_mask: SDPA's boolean mask, or None for a causal one.
        index: positions of the queries of each row.
        scale: factor of the products.
    """
    scores = _grouped_matmul(_take(query, index).float(), keys.transpose(-1, -2)) * scale
    return scores.masked_fill_(~_visible(attention_mask, index, keys.shape[2])[:, None], float("-inf"))


def _grouped_matmul(
    left: Float[torch.Tensor, "rows heads chunk inner"], right: Float[torch.Tensor, "rows kv_heads inner outer"]
) -> Float[torch.Tensor, "rows heads chunk outer"]:
    """Multiplies each head with its group's shared key or value head, without copying it."""
    num_rows, num_heads, chunk, inner = left.shape
    grouped = left.reshape(num_rows, right.shape[1], -1, inner)
    return (grouped @ right).view(num_rows, num_heads, chunk, -1)


def _visible(
    attention_mask: torch.Tensor | None, index: Int[torch.Tensor, "rows chunk"], num_tokens: int
) -> Bool[torch.Tensor, "rows chunk tokens"]:
    """Returns the keys visible to each query: the mask's rows, or the causal mask if SDPA gets none."""
    if attention_mask is None:
        return torch.arange(num_tokens, device=index.device) <= index[..., None]
    assert attention_mask.dtype == torch.bool, f"expected SDPA's boolean mask, found {attention_mask.dtype}"
    return attention_mask[:, 0].gather(1, index[..., None].expand(-1, -1, num_tokens))
