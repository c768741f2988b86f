"""Where on the picture does each token of a reply attend? Maps over the picture's cells, without a [T, T] matrix.

    maps = AttentionMaps(segments, weights, blocks=blocks, tokens=tokens)
    with accumulating(model, maps):
        model(**inputs, use_cache=False, logits_to_keep=index)
    maps.parts   # [layers, parts, cells]
    maps.tokens  # [1 + blocks, tokens, cells]

The rows of the reply's tokens are those that `analyze.attention` sums (`AttentionMass`), so its checks apply here too.
Per layer they are averaged over heads, and kept for the parts of the reply and, averaged over blocks of layers, for
single tokens.

*Attention rollout* (S. Abnar and W. Zuidema, ACL 2020) multiplies (A + I) / 2 over the layers, A being the mean over
heads. Only the columns of the picture's cells are kept, so the state is [T, cells]; each layer's rows are computed a
chunk at a time.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from analyze.attention.mass import CHUNK_ELEMENTS, KEY_SEGMENTS, AttentionMass, attention_scores

VISION = KEY_SEGMENTS.index("vision")


class AttentionMaps(AttentionMass):
    """An attention function that computes SDPA's output and keeps what the reply of one sequence attends to."""

    def __init__(
        self,
        segments: Int[torch.Tensor, "1 tokens"],
        weights: Float[torch.Tensor, "1 parts tokens"],
        *,
        blocks: Mapping[str, Sequence[int]],
        tokens: Sequence[int],
        heads: bool = False,
    ) -> None:
        """Prepares for one sequence.

        Args:
            segments: index in `KEY_SEGMENTS` of each token.
            weights: weight of each query in the mean of each part of the reply.
            blocks: name -> layers of a block.
            tokens: numbers of the reply's tokens, counted from its first, whose maps are kept one by one.
            heads: also keep the map of every head, for the first part of the reply.
        """
        super().__init__(segments, weights, top_tokens=1)
        assert len(segments) == 1, "maps are taken of one sequence at a time"
        self._cells = (segments[0] == VISION).nonzero()[:, 0]
        reply = (segments[0] == KEY_SEGMENTS.index("reply")).nonzero()[:, 0]
        self._part_weights = weights[0][:, reply]
        self._chosen = torch.tensor(list(tokens), dtype=torch.long, device=segments.device)
        self._blocks = [list(layers) for layers in blocks.values()]
        self._keep_heads = heads
        self._chunks: list[torch.Tensor] = []
        self._parts: dict[int, torch.Tensor] = {}
        self._heads: dict[int, torch.Tensor] = {}
        self._tokens = torch.zeros(1 + len(blocks), len(tokens), len(self._cells), device=segments.device)

    def __call__(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, None]:
        """Computes SDPA's output and keeps this layer's rows over the picture; the signature is Transformers'."""
        self._chunks = []
        output, _ = super().__call__(module, *args, **kwargs)
        layer = int(module.layer_idx)  # type: ignore[arg-type]
        with torch.no_grad():
            rows = torch.cat(self._chunks, 1)  # [heads, reply tokens, cells]
            mean = rows.mean(0)
            self._parts[layer] = (self._part_weights.to(mean) @ mean).cpu()
            if self._keep_heads:
                self._heads[layer] = (self._part_weights[:1].to(rows) @ rows)[:, 0].cpu()
            kept = mean[self._chosen]
            self._tokens[0] += kept
            for number, layers in enumerate(self._blocks, start=1):
                if layer in layers:
                    self._tokens[number] += kept
        return output, None

    def _summarise(self, scores: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        self._chunks.append(scores[0].softmax(-1)[..., self._cells])
        return super()._summarise(scores, index)

    @property
    def layers(self) -> list[int]:
        """The layers that have an attention map."""
        return sorted(self._parts)

    @property
    def parts(self) -> Float[torch.Tensor, "layers parts cells"]:
        """Each part's mean attention to each cell, mean over heads, on the CPU; zero for a missing part."""
        return torch.stack([self._parts[layer] for layer in self.layers])

    @property
    def tokens(self) -> Float[torch.Tensor, "groups tokens cells"]:
        """Each chosen token's attention, mean over heads and layers: of all layers first, then of each block."""
        counts = [len(self.layers)] + [sum(layer in self._parts for layer in layers) for layers in self._blocks]
        return self._tokens.cpu() / torch.tensor(counts)[:, None, None].clamp(min=1)

    @property
    def heads(self) -> Float[torch.Tensor, "layers heads cells"]:
        """The attention of every head, mean over the whole reply, on the CPU."""
        return torch.stack([self._heads[layer] for layer in self.layers])


class AttentionRollout:
    """An attention function that computes SDPA's output and multiplies the layers' attention to the picture's cells."""

    def __init__(self, segments: Int[torch.Tensor, "1 tokens"]) -> None:
        """Prepares for one sequence.

        Args:
            segments: index in `KEY_SEGMENTS` of each token.
        """
        assert len(segments) == 1, "rollout is taken of one sequence at a time"
        cells = (segments[0] == VISION).nonzero()[:, 0]
        self._reply = (segments[0] == KEY_SEGMENTS.index("reply")).nonzero()[:, 0]
        self._state = torch.zeros(segments.shape[1], len(cells), device=segments.device)
        self._state[cells, torch.arange(len(cells), device=segments.device)] = 1

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
        """Computes SDPA's output and advances the rollout by one layer; the signature is Transformers'."""
        output, _ = ALL_ATTENTION_FUNCTIONS["sdpa"](
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        with torch.no_grad():
            advanced = torch.empty_like(self._state)
            num_tokens = query.shape[2]
            scale = query.shape[-1] ** -0.5 if scaling is None else scaling
            step = max(1, CHUNK_ELEMENTS // (query.shape[1] * num_tokens))
            positions = torch.arange(num_tokens, device=query.device)[None]
            for start in range(0, num_tokens, step):
                index = positions[:, start : start + step]
                scores = attention_scores(query, key.float(), attention_mask, index, scale)
                rows = scores[0].softmax(-1).mean(0)  # [chunk, tokens]
                advanced[start : start + step] = (rows @ self._state + self._state[start : start + step]) / 2
            self._state = advanced
        return output, None

    @property
    def result(self) -> Float[torch.Tensor, "reply_tokens cells"]:
        """The rollout of every token of the reply to each cell, on the CPU."""
        return self._state[self._reply].cpu()
