"""What would a model answer had it seen another picture in some of its layers? Prefixes read once, caches composed.

The picture stands before the question, and in a causal decoder its tokens see only what stands before them. So giving
the picture's tokens, from layer k on, the hidden states that another picture of the same grid has there means giving
every layer >= k the other picture's keys and values at these positions, and nothing else. A swap is therefore a choice
per layer between two caches. Each prefix (the text before the picture, and the picture) is read once, one cache is
composed per variant from a boolean plan `[variants, layers]`, and all variants of several pairs read their questions
and answer as rows of one batch:

    prefixes = read_prefixes(model, [target, source])
    cache = compose(prefixes, target_rows, source_rows, plan)
    rows = Continuation(model, cache, prompts=..., prefix_lengths=...)
    rows.answer_logprobs(answers), rows.decode(max_new_tokens=64, stop_ids=[...])

The same holds for layers with a recurrent state (linear attention, as in Qwen3.5): what later tokens see of a prefix is
the state after its last token, and in a swap from layer k on that state is the source's own in every layer >= k, as the
text before the picture is the same in both. But padding changes such a state, unless it stands before the first token.
So for these models only prompts of equal lengths go through in one batch (`runs_together`).

In Gemma 4 the tokens of a picture may see each other (`use_bidirectional_attention: vision`), but still nothing after
the picture, so the same holds. Its last layers may read the keys and values of earlier ones: at layer k a swap changes
nothing that they see, so from the first of them on a swap is no swap. The per-layer embeddings of the picture's tokens
enter every layer and are made from the picture; a swap from layer k takes the source's along. Layers with a sliding
window count padding between tokens, so prompts of equal lengths go through together, in a cache without windows.

Only the public cache interface is used. Positions are always given: what the model remembers of an earlier prompt (its
rope deltas) never enters.

Qwen3-VL also adds features of the picture to the first layers' outputs (deepstack). These layers' keys and values come
from the source's own pass, so a swap from layer k takes the source's features of layers >= k along: the picture's
tokens carry from layer k on exactly what they carry in the source's own run, and a swap from layer 0 is the source's
own run. (To overwrite the hidden states at layer k alone, and let the target's features be added to them later, would
mix both pictures; `reference.py` has the same definition as this module.)
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from eval.replies.decoding import picture_inputs
from eval.replies.generation import tokenizer_of
from eval.replies.pictures import pixel_limits, resized_size
from models.families import family_of

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import DynamicCache


@dataclass(frozen=True, kw_only=True)
class ReadyPrompt:
    """A prompt with one picture, as the model takes it in; its prefix ends with the picture's last token."""

    input_ids: Int[Tensor, " tokens"]
    position_ids: Int[Tensor, "sections tokens"]
    """Three sections for time, height and width, or one that counts the tokens."""
    token_types: Int[Tensor, " tokens"]
    """1 where a token belongs to the picture."""
    pictures: dict[str, Tensor]
    """The processor's outputs for the picture, by the names of the model's arguments."""
    grid: tuple[int, int, int]
    """Patches of the picture: time, height, width; of all its tiles if it is cut into tiles."""
    num_prefix_tokens: int

    @property
    def num_question_tokens(self) -> int:
        """What follows the picture: the question, and the opening of the reply."""
        return len(self.input_ids) - self.num_prefix_tokens

    @property
    def next_position(self) -> int:
        """The position of the reply's first token, the same in all sections."""
        return int(self.position_ids.max()) + 1


def make_ready(model: Any, processor: Any, text: str, image: "Image") -> ReadyPrompt:
    """Turns a rendered prompt with its picture into what the model takes in.

    Raises:
        ValueError: where the prompt does not have exactly one place for a picture.
    """
    mark = tokenizer_of(processor).convert_ids_to_tokens(model.config.image_token_id)
    if text.count(mark) != 1:
        raise ValueError(f"the prompt has {text.count(mark)} places for a picture; expected one {mark}")
    inputs = processor(text=[text], images=[image], return_tensors="pt")
    input_ids = inputs["input_ids"][0]
    token_types = (input_ids == model.config.image_token_id).long()
    pictures = picture_inputs(model, inputs)
    if family_of(model.config.model_type).position_sections == 1:
        positions = torch.arange(len(input_ids))[None]
    else:
        found, _ = model.base_model.get_rope_index(input_ids[None], mm_token_type_ids=token_types[None], **pictures)
        positions = found[:, 0]
    return ReadyPrompt(
        input_ids=input_ids,
        position_ids=positions,
        token_types=token_types,
        pictures=pictures,
        grid=_grid_of(processor, image, pictures, patch_side(model)),
        num_prefix_tokens=int(token_types.nonzero()[-1]) + 1,
    )


def patch_side(model: Any) -> int:
    """Returns the side of a patch of the vision tower in pixels."""
    side = model.config.vision_config.patch_size
    return int(side if isinstance(side, int) else side[0])


def _grid_of(processor: Any, image: "Image", pictures: dict[str, Tensor], side: int) -> tuple[int, int, int]:
    if "image_grid_thw" in pictures:
        time, height, width = pictures["image_grid_thw"][0].tolist()
        return time, height, width
    limits = pixel_limits(processor, min_pixels=None, max_pixels=None)
    assert limits is not None, "a text-only model was given a picture"
    columns, rows = resized_size(image.size, limits)
    return 1, rows // side, columns // side


def joined_pictures(prompts: Sequence[ReadyPrompt], device: torch.device) -> dict[str, Tensor]:
    """Returns the pictures of several prompts as arguments of the model."""
    return {name: torch.cat([prompt.pictures[name] for prompt in prompts]).to(device) for name in prompts[0].pictures}


def positions_argument(positions: Int[Tensor, "sections rows tokens"]) -> Tensor:
    """Returns positions as the model takes them: without the first axis where they have a single section."""
    return positions[0] if len(positions) == 1 else positions


def types_argument(model: Any, types: Sequence[Int[Tensor, " tokens"]]) -> dict[str, Tensor]:
    """Returns which tokens belong to pictures, as an argument of a model that needs it with positions given."""
    if not family_of(model.config.model_type).token_fields:
        return {}
    return {"mm_token_type_ids": torch.stack(list(types)).to(model.device)}


@dataclass(frozen=True, kw_only=True)
class Prefixes:
    """What the layers keep of several prefixes, a row each; shorter ones are padded on the right."""

    layers: tuple[tuple[Float[Tensor, "rows ..."], Float[Tensor, "rows ..."]], ...]
    """Of each layer that keeps any: keys and values [rows, heads, longest, head_size]; or, with a recurrent state, that
    of the convolution and the recurrent one."""
    is_state: tuple[bool, ...]
    """Of each layer: whether it keeps a recurrent state."""
    lengths: Int[Tensor, " rows"]
    config: Any
    """The decoder's, from which an empty cache is made; None for one that keeps everything."""


def has_state(model: Any) -> bool:
    """True for a model some of whose layers keep a recurrent state, which padding would change."""
    return "linear_attention" in (getattr(model.config.get_text_config(), "layer_types", None) or ())


def has_window(model: Any) -> bool:
    """True for a model some of whose layers see a sliding window, which counts padding between tokens too."""
    return "sliding_attention" in (getattr(model.config.get_text_config(), "layer_types", None) or ())


def runs_together(model: Any, prompts: Sequence[ReadyPrompt]) -> list[list[int]]:
    """Returns which prompts may be rows of one batch: all, or those of equal lengths if padding would change them."""
    if not has_state(model) and not has_window(model):
        return [list(range(len(prompts)))]
    groups: dict[tuple[int, int], list[int]] = {}
    for place, prompt in enumerate(prompts):
        groups.setdefault((prompt.num_prefix_tokens, prompt.num_question_tokens), []).append(place)
    return list(groups.values())


@torch.inference_mode()
def read_prefixes(model: Any, prompts: Sequence[ReadyPrompt]) -> Prefixes:
    """Reads the prefixes of several prompts in one pass. Padding on the right needs no mask: no token looks ahead."""
    from transformers import DynamicCache

    lengths = [prompt.num_prefix_tokens for prompt in prompts]
    input_ids = prompts[0].input_ids[:1].repeat(len(prompts), max(lengths))  # [rows, longest]
    positions = input_ids.new_zeros(len(prompts[0].position_ids), *input_ids.shape)
    for row, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
        input_ids[row, :length] = prompt.input_ids[:length]
        positions[:, row, :length] = prompt.position_ids[:, :length]
    # Without a configuration the cache keeps all of a prefix, also in layers that see a window of it.
    config = None if has_window(model) else model.config.get_text_config(decoder=True)
    cache = DynamicCache(config=config)
    assert len(set(lengths)) == 1 or not has_window(model), "padding after a prefix would count for windows"
    model(
        input_ids=input_ids.to(model.device),
        position_ids=positions_argument(positions).to(model.device),
        **joined_pictures(prompts, model.device),
        **types_argument(model, [prompt.token_types[: max(lengths)] for prompt in prompts]),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    is_state = tuple(cache.is_linear)
    assert len(set(lengths)) == 1 or not any(is_state), "padding after a prefix would change its state"
    return Prefixes(
        layers=tuple(
            (layer.conv_states[0], layer.recurrent_states[0]) if linear else (layer.keys, layer.values)
            for layer, linear in zip(cache.layers, is_state, strict=True)
        ),
        is_state=is_state,
        lengths=torch.tensor(lengths, device=model.device),
        config=config,
    )


@torch.inference_mode()
def compose(
    prefixes: Prefixes,
    target_rows: Int[Tensor, " variants"],
    source_rows: Int[Tensor, " variants"],
    plan: Bool[Tensor, "variants layers"],
) -> "DynamicCache":
    """Returns a cache with a row per variant: the source's keys and values in the layers its plan names.

    Args:
        prefixes: of targets and sources.
        target_rows, source_rows: which prefix is the one, and which the other, of each variant; of equal grids.
        plan: True where a layer takes the source's.
    """
    from transformers import DynamicCache

    assert plan.shape == (len(target_rows), len(prefixes.layers)), (plan.shape, len(prefixes.layers))
    cache = DynamicCache(config=prefixes.config)
    for layer, (first, second) in enumerate(prefixes.layers):
        rows = torch.where(plan[:, layer], source_rows, target_rows).to(first.device)
        if prefixes.is_state[layer]:
            cache.update_conv_state(first[rows], layer)
            cache.update_recurrent_state(second[rows], layer)
        else:
            cache.update(first[rows], second[rows], layer)
    return cache


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What was decoded greedily: the tokens before the end of the turn, and how clear each choice was."""

    tokens: tuple[int, ...]
    margins: tuple[float, ...]
    """Logit of the chosen token less that of the runner-up; one longer than `tokens` where the turn was ended."""
    finish_reason: str
    """`stop` where the model ended its turn, `length` where the limit did."""


class Continuation:
    """Rows that each continue a prefix of their own: they read their questions, then answers or what they decode."""

    logits: Float[Tensor, "rows vocabulary"]
    """Of the reply's first token."""

    def __init__(
        self,
        model: Any,
        cache: "DynamicCache",
        *,
        prompts: Sequence[ReadyPrompt],
        prefix_lengths: Int[Tensor, " rows"],
    ) -> None:
        """Reads the questions.

        Args:
            model: any supported model with a vision tower.
            cache: the rows' prefixes, padded on the right; it grows with what is read.
            prompts: of each row; what follows the picture is read.
            prefix_lengths: how much of each row's cache counts.
        """
        self._model, self._cache = model, cache
        self._restores = has_state(model)
        self._mask = torch.arange(cache.get_seq_length(), device=model.device) < prefix_lengths[:, None]
        self._next = torch.tensor([prompt.next_position for prompt in prompts], device=model.device)
        # Questions are padded on the left, so that all rows decode side by side; what is padded is never attended to.
        longest = max(prompt.num_question_tokens for prompt in prompts)
        input_ids = prompts[0].input_ids[:1].repeat(len(prompts), longest)
        self._num_sections = len(prompts[0].position_ids)
        positions = input_ids.new_zeros(self._num_sections, *input_ids.shape)
        seen = torch.zeros_like(input_ids, dtype=torch.bool)
        for row, prompt in enumerate(prompts):
            start = longest - prompt.num_question_tokens
            input_ids[row, start:] = prompt.input_ids[prompt.num_prefix_tokens :]
            positions[:, row, start:] = prompt.position_ids[:, prompt.num_prefix_tokens :]
            seen[row, start:] = True
        self.logits = self._read(input_ids, positions, seen, logits_to_keep=1)[:, -1]

    @torch.inference_mode()
    def answer_logprobs(
        self, answers: Sequence[Int[Tensor, " tokens"]], *, num_given: int = 0
    ) -> Float[Tensor, " rows"]:
        """Returns log p(answer) of each row's answer as the beginning of its reply; nothing is decoded.

        Args:
            answers: one per row.
            num_given: tokens at their beginning that are taken as said, and not scored.
        """
        longest = max(len(answer) for answer in answers)
        padded = torch.zeros(len(answers), longest, dtype=torch.long)
        for row, answer in enumerate(answers):
            padded[row, : len(answer)] = answer
        padded = padded.to(self._model.device)
        counts = torch.tensor([len(answer) for answer in answers], device=self._model.device)
        total = _logprob(self.logits, padded[:, 0]) * (num_given == 0)
        if longest == 1:
            return total
        mask, read = self._mask, padded[:, :-1]
        before = copy.deepcopy(self._cache) if self._restores else self._cache  # a recurrent state cannot be cropped
        offsets = torch.arange(longest - 1, device=self._model.device)
        # What pads an answer on the right comes after all that counts, so nothing that counts looks at it.
        logits = self._read(
            read, (self._next[:, None] + offsets).expand(self._num_sections, -1, -1), torch.ones_like(read).bool()
        )
        for place in range(1, longest):
            scored = (place < counts) & (place >= num_given)
            total = total + torch.where(scored, _logprob(logits[:, place - 1], padded[:, place]), 0)
        if self._restores:
            self._cache = before
        else:
            self._cache.crop(-(longest - 1))
        self._mask = mask
        return total

    @torch.inference_mode()
    def decode(self, *, max_new_tokens: int, stop_ids: Sequence[int]) -> list[Reply]:
        """Decodes all rows greedily to their ends; rows that have ended leave the batch, and the cache is used up."""
        num_rows = len(self.logits)
        tokens: list[list[int]] = [[] for _ in range(num_rows)]
        margins: list[list[float]] = [[] for _ in range(num_rows)]
        stopped = [False] * num_rows
        stops, active, logits = set(stop_ids), list(range(num_rows)), self.logits
        for step in range(max_new_tokens):
            chosen = logits.argmax(-1)
            best = logits.topk(2).values
            clear = (best[:, 0] - best[:, 1]).tolist()
            going = []
            for place, (row, token) in enumerate(zip(active, chosen.tolist(), strict=True)):
                margins[row].append(clear[place])
                stopped[row] = token in stops
                if not stopped[row]:
                    tokens[row].append(token)
                    going.append(place)
            if not going or step + 1 == max_new_tokens:
                break
            if len(going) < len(active):
                active = [active[place] for place in going]
                kept = torch.tensor(going, device=self._model.device)
                self._cache.reorder_cache(kept)
                self._mask, self._next, chosen = self._mask[kept], self._next[kept], chosen[kept]
            seen = torch.ones_like(chosen[:, None], dtype=torch.bool)
            logits = self._read(chosen[:, None], self._next[None, :, None].expand(self._num_sections, -1, 1), seen)[
                :, -1
            ]
            self._next = self._next + 1
        return [
            Reply(tokens=tuple(row), margins=tuple(clear), finish_reason="stop" if end else "length")
            for row, clear, end in zip(tokens, margins, stopped, strict=True)
        ]

    @torch.inference_mode()
    def _read(
        self,
        input_ids: Int[Tensor, "rows tokens"],
        positions: Int[Tensor, "sections rows tokens"],
        seen: Bool[Tensor, "rows tokens"],
        *,
        logits_to_keep: int = 0,
    ) -> Float[Tensor, "rows kept vocabulary"]:
        device = self._model.device
        self._mask = torch.cat([self._mask, seen.to(device)], dim=1)
        logits: Tensor = self._model(
            input_ids=input_ids.to(device),
            position_ids=positions_argument(positions).to(device),
            attention_mask=self._mask.long(),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=logits_to_keep,
        ).logits
        return logits


def _logprob(logits: Float[Tensor, "rows vocabulary"], tokens: Int[Tensor, " rows"]) -> Float[Tensor, " rows"]:
    """Returns the log-probability of a token a row, summed up in fp32 or finer."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return logits.log_softmax(-1, dtype=dtype).gather(-1, tokens[:, None])[:, 0]
