"""How are many replies continued token by token? Transformers' sampling loop, without what it repeats for every token.

`generate` (Transformers 5.23) builds positions and masks anew for every token, copies the whole cache to append one
entry, and computes replies that have ended until the last one ends. Here positions and mask are extended, the cache has
room to grow, and replies that have ended are dropped. Random numbers are drawn for all replies, as `generate` draws
them, so the same seed gives the same replies, except where rounding decides.

Known limit: only on CPUs, where this was measured; on GPUs `generate` overlaps the host with the device.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import Cache, DynamicCache, GenerationConfig
from transformers.cache_utils import DynamicLayer
from transformers.generation import GenerationMode, LogitsProcessorList, StoppingCriteriaList

KEPT_FRAC = 0.95
"""Replies that have ended are dropped once no more than this share of the computed ones is unfinished."""
MIN_ROOM_TOKENS = 64
"""Entries by which a full cache grows, at least; a longer one grows by half."""


def can_decode(config: GenerationConfig, device: torch.device) -> bool:
    """True if `decode` computes what `generate` would."""
    return (
        device.type == "cpu"
        and config.get_generation_mode() in (GenerationMode.SAMPLE, GenerationMode.GREEDY_SEARCH)
        and not config.return_dict_in_generate
    )


def decode(
    model: Any,
    input_ids: Int[Tensor, "rows tokens"],
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: Any,
    **given: Any,
) -> Int[Tensor, "rows tokens"]:
    """Returns the prompts with their replies; `generate` calls it as its `custom_generate`.

    Args:
        model: the language model.
        input_ids: the prompts, padded on the left.
        logits_processor: changes the scores, as `generate` prepared it.
        stopping_criteria: decides which replies have ended.
        generation_config: of Transformers, with its prepared padding token.
        given: the model's arguments: `past_key_values`, a cache of all tokens of the prompts but the last;
            `position_ids`, [..., rows, tokens]; `attention_mask`, [rows, tokens], zero for padding, or None. They are
            no parameters: Transformers 5.23 would take arguments of these names away from the model's.
    """
    with torch.inference_mode():
        replies = _continue(
            model,
            input_ids,
            logits_processor,
            stopping_criteria,
            generation_config,
            _with_room(given["past_key_values"]),
            given["position_ids"][..., -1:],
            None if given["attention_mask"] is None else _additive(given["attention_mask"], model.dtype),
        )
    return replies.clone()  # a tensor made in inference mode cannot take part in training


def _continue(
    model: Any,
    input_ids: Int[Tensor, "rows tokens"],
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: Any,
    cache: Cache,
    position: Int[Tensor, "... rows 1"],
    mask: Float[Tensor, "rows 1 1 tokens"] | None,
) -> Int[Tensor, "rows tokens"]:
    """Returns the prompts with their replies.

    Args:
        position: of the prompts' last tokens.
        mask: added to the scores of the prompts' tokens.
    """
    num_rows, padding = len(input_ids), generation_config._pad_token_tensor
    pads = any(hasattr(criterion, "eos_token_id") for criterion in stopping_criteria)
    unfinished = torch.ones(num_rows, dtype=torch.bool, device=input_ids.device)
    rows = torch.arange(num_rows, device=input_ids.device)
    while True:
        logits = model(
            input_ids=input_ids[rows, -1:],
            attention_mask=mask,
            position_ids=position,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        tokens = _choose(logits, rows, input_ids, logits_processor, sample=generation_config.do_sample)
        if pads:
            tokens = torch.where(unfinished, tokens, padding)
        input_ids = torch.cat([input_ids, tokens[:, None]], dim=-1)
        unfinished = unfinished & ~stopping_criteria(input_ids, None)
        num_unfinished = int(unfinished.sum())
        if num_unfinished == 0:
            return input_ids
        position = position + 1
        mask = mask if mask is None else torch.cat([mask, mask.new_zeros(len(mask), 1, 1, 1)], dim=-1)
        if num_unfinished <= KEPT_FRAC * len(rows):
            order = _fill_gaps(unfinished[rows])
            rows, position = rows[order], position.index_select(-2, order)
            mask = mask if mask is None else mask[order]
            cache.batch_select_indices(order)


def _choose(
    logits: Float[Tensor, "computed vocabulary"],
    rows: Int[Tensor, " computed"],
    input_ids: Int[Tensor, "rows tokens"],
    logits_processor: LogitsProcessorList,
    *,
    sample: bool,
) -> Int[Tensor, " rows"]:
    """Returns the next token of every row, from the logits of those that are computed."""
    scores = logits.to(torch.float32, copy=True)
    if len(rows) < len(input_ids):
        scores = scores.new_zeros(len(input_ids), scores.shape[1]).index_copy_(0, rows, scores)
    scores = logits_processor(input_ids, scores)
    tokens: Tensor
    tokens = torch.multinomial(scores.softmax(dim=-1), num_samples=1)[:, 0] if sample else scores.argmax(dim=-1)
    return tokens


def _additive(mask: Int[Tensor, "rows tokens"], dtype: torch.dtype) -> Float[Tensor, "rows 1 1 tokens"]:
    """Returns a mask as a summand of the attention's scores, which both `sdpa` and `eager` take."""
    seen = mask[:, None, None].bool()
    zeros = torch.zeros(seen.shape, dtype=dtype, device=mask.device)
    return zeros.masked_fill(~seen, torch.finfo(dtype).min)


def _fill_gaps(kept: Bool[Tensor, " rows"]) -> Int[Tensor, " kept"]:
    """Returns the kept rows in an order in which few change their place: the last ones fill the gaps."""
    num_kept = int(kept.sum())
    order = torch.arange(num_kept, device=kept.device)
    order[~kept[:num_kept]] = num_kept + kept[num_kept:].nonzero()[:, 0]
    return order


def _with_room(cache: DynamicCache) -> Cache:
    return Cache(layers=[_RoomyLayer(layer) for layer in cache.layers])


class _RoomyLayer(DynamicLayer):
    """One layer's keys and values at the beginning of larger tensors, so that appending copies only what is new."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.dtype, self.device, self.is_initialized = layer.keys.dtype, layer.keys.device, True
        self.keys, self.values = layer.keys, layer.values
        self._storage = self.keys, self.values

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Appends and returns keys and values, [rows, heads, tokens, width]."""
        num_rows, _, start, _ = self.keys.shape
        end = start + key_states.shape[-2]
        if end > self._storage[0].shape[-2]:
            self._grow(end + max(MIN_ROOM_TOKENS, end // 2))
        for stored, new in zip(self._storage, (key_states, value_states), strict=True):
            stored[:num_rows, :, start:end] = new
        self.keys, self.values = (stored[:num_rows, :, :end] for stored in self._storage)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps some of the rows, each at most once; only those that change their place are copied."""
        num_rows = len(indices)
        places = (indices != torch.arange(num_rows, device=indices.device)).nonzero()[:, 0]
        for values in (self.keys, self.values):
            values[places] = values[indices[places]]
        self.keys, self.values = self.keys[:num_rows], self.values[:num_rows]

    def _grow(self, room: int) -> None:
        """Moves keys and values into tensors with room for so many tokens."""
        num_rows, heads, num_tokens, width = self.keys.shape
        grown = [values.new_empty(num_rows, heads, room, width) for values in (self.keys, self.values)]
        for storage, values in zip(grown, (self.keys, self.values), strict=True):
            storage[:, :, :num_tokens] = values
        self._storage = grown[0], grown[1]
