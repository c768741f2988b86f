"""Where on the picture does each token of a reply attend? Maps over the picture's cells, without a [T, T] matrix.

    maps = AttentionMaps(segments, weights, blocks=blocks, tokens=tokens)
    with accumulating(model, maps):
        model(**inputs, use_cache=False, logits_to_keep=index)
    maps.of_row(0).parts   # [layers, parts, cells]
    maps.of_row(0).tokens  # [1 + blocks, tokens, cells]

The decoder uses Transformers' SDPA. In addition, the softmax rows of the reply's tokens are computed in fp32, a
chunk of queries at a time. Per layer they are averaged over heads, and kept for the parts of the reply and, averaged
over blocks of layers, for single tokens.

*Attention rollout* (S. Abnar and W. Zuidema, ACL 2020) multiplies (A + I) / 2 over the layers, A being the mean over
heads. Only the columns of the picture's cells are kept, so the state is [T, cells]; each layer's rows are computed a
chunk at a time. It needs the rows of all tokens, so it takes about as long as eager attention.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int

from analyze.attention.mass import CHUNK_ELEMENTS, KEY_SEGMENTS, SdpaObserver, Seen, chosen_positions

VISION, REPLY = KEY_SEGMENTS.index("vision"), KEY_SEGMENTS.index("reply")


@dataclass(frozen=True, kw_only=True)
class RowMaps:
    """What the tokens of one reply attend to, on the CPU."""

    parts: Float[torch.Tensor, "layers parts cells"]
    """Each part's mean attention to each cell, mean over heads; zero for a missing part."""
    tokens: Float[torch.Tensor, "groups tokens cells"]
    """Each chosen token's attention, mean over heads and layers: of all layers first, then of each block."""
    heads: Float[torch.Tensor, "layers heads cells"] | None
    """The attention of every head, mean over the whole reply."""
    sum_error: float
    """The largest deviation from one of a token's total mass, over all layers and heads."""


class AttentionMaps(SdpaObserver):
    """An attention function that computes SDPA's output and keeps what the replies of a batch attend to."""

    def __init__(
        self,
        segments: Int[torch.Tensor, "rows tokens"],
        weights: Float[torch.Tensor, "rows parts tokens"],
        *,
        blocks: Mapping[str, Sequence[int]],
        tokens: Sequence[Sequence[int]],
        heads: bool = False,
        num_cached: int = 0,
    ) -> None:
        """Prepares for one batch.

        Args:
            segments: index in `KEY_SEGMENTS` of each token, or `PADDING`.
            weights: weight of each query in the mean of each part of the reply.
            blocks: name -> layers of a block.
            tokens: per row, numbers of the reply's tokens, counted from its first, whose maps are kept one by one.
            heads: also keep the map of every head, for the first part of the reply.
            num_cached: number of each row's first tokens that are in a cache, as keys and values only.
        """
        assert len(tokens) == len(segments)
        self._cells, self._is_cell = chosen_positions(segments == VISION)  # [rows, cells]
        self._queries, self._is_query = chosen_positions(segments == REPLY)  # [rows, queries]
        self._num_cached = num_cached
        gathered = weights.gather(2, self._queries[:, None].expand(-1, weights.shape[1], -1))
        self._weights = (gathered * self._is_query[:, None]).float()  # [rows, parts, queries]
        self._chosen = [torch.tensor(list(own), dtype=torch.long, device=segments.device) for own in tokens]
        self._blocks = [list(layers) for layers in blocks.values()]
        self._keep_heads = heads
        self._parts: dict[int, torch.Tensor] = {}
        self._heads: dict[int, torch.Tensor] = {}
        shape = (1 + len(blocks), max(map(len, tokens)), self._cells.shape[1])
        self._tokens = torch.zeros(len(tokens), *shape, device=segments.device)
        self._sum_errors = torch.zeros(len(tokens), device=segments.device)

    def _observe(self, seen: Seen) -> None:
        """Keeps this layer's rows over the picture."""
        layer = seen.layer
        assert layer not in self._parts, f"layer {layer} ran twice; the maps are those of one forward pass"
        assert self._num_cached + seen.query.shape[2] == seen.key.shape[2], "maps need whole sequences"
        assert not self._num_cached or seen.attention_mask is not None, "a causal mask cannot be implied behind a cache"
        means = self._read(seen)
        self._parts[layer] = (self._weights @ means).cpu()
        groups = [0, *(number for number, layers in enumerate(self._blocks, start=1) if layer in layers)]
        for row, chosen in enumerate(self._chosen):
            self._tokens[row, groups, : len(chosen)] += means[row, chosen]

    def _read(self, seen: Seen) -> Float[torch.Tensor, "rows queries cells"]:
        """Returns the attention of every token of the replies to the cells, mean over heads."""
        num_rows, num_heads, _, _ = seen.query.shape
        step = max(1, CHUNK_ELEMENTS // (num_rows * num_heads * seen.key.shape[2]))
        means = []
        for start in range(0, self._queries.shape[1], step):
            part = slice(start, start + step)
            queries = self._queries[:, part] - self._num_cached
            rows = seen.scores(queries).softmax(-1)  # [rows, heads, chunk, tokens]
            errors = (rows.sum(-1) - 1).abs().amax((1, 2))
            self._sum_errors = torch.maximum(self._sum_errors, errors)
            index = self._cells[:, None, None].expand(-1, num_heads, rows.shape[2], -1)
            cells = rows.gather(-1, index) * self._is_cell[:, None, None]
            means.append(cells.mean(1))
            if self._keep_heads:
                found = torch.einsum("bq,bhqc->bhc", self._weights[:, 0, part], cells).cpu()
                heads = self._heads.get(seen.layer)
                self._heads[seen.layer] = found if heads is None else heads + found
        return torch.cat(means, 1)

    @property
    def layers(self) -> list[int]:
        """The layers that have an attention map."""
        return sorted(self._parts)

    def of_row(self, row: int) -> RowMaps:
        """Returns the maps of one reply of the batch."""
        num_cells = int(self._is_cell[row].sum())
        counts = [len(self.layers)] + [sum(layer in self._parts for layer in layers) for layers in self._blocks]
        tokens = self._tokens[row, :, : len(self._chosen[row]), :num_cells].cpu()
        return RowMaps(
            parts=torch.stack([self._parts[layer][row, :, :num_cells] for layer in self.layers]),
            tokens=tokens / torch.tensor(counts)[:, None, None].clamp(min=1),
            heads=torch.stack([self._heads[layer][row, :, :num_cells] for layer in self.layers])
            if self._keep_heads
            else None,
            sum_error=float(self._sum_errors[row]),
        )


class AttentionRollout(SdpaObserver):
    """An attention function that computes SDPA's output and multiplies the layers' attention to the picture's cells."""

    def __init__(self, segments: Int[torch.Tensor, "1 tokens"]) -> None:
        """Prepares for one sequence.

        Args:
            segments: index in `KEY_SEGMENTS` of each token.
        """
        assert len(segments) == 1, "rollout is taken of one sequence at a time"
        cells = (segments[0] == VISION).nonzero()[:, 0]
        self._reply = (segments[0] == REPLY).nonzero()[:, 0]
        self._state = torch.zeros(segments.shape[1], len(cells), device=segments.device)
        self._state[cells, torch.arange(len(cells), device=segments.device)] = 1

    def _observe(self, seen: Seen) -> None:
        """Advances the rollout by one layer."""
        advanced = torch.empty_like(self._state)
        num_tokens = seen.query.shape[2]
        step = max(1, CHUNK_ELEMENTS // (seen.query.shape[1] * num_tokens))
        positions = torch.arange(num_tokens, device=seen.query.device)[None]
        for start in range(0, num_tokens, step):
            index = positions[:, start : start + step]
            rows = seen.scores(index)[0].softmax(-1).mean(0)  # [chunk, tokens]
            advanced[start : start + step] = (rows @ self._state + self._state[start : start + step]) / 2
        self._state = advanced

    @property
    def result(self) -> Float[torch.Tensor, "reply_tokens cells"]:
        """The rollout of every token of the reply to each cell, on the CPU."""
        return self._state[self._reply].cpu()
