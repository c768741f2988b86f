"""How is a batch decoded? Prompts are prefilled once, finished rows are removed, and repetitive replies are stopped.

The shared part of several rows of one prompt is computed once: prompts are prefilled up to their last token
(`read_prompts`), and the cache is expanded to the rows. Transformers' `generate` decodes. When half of the rows have
ended, it is stopped and continues with only the remaining rows and their cache: a step computes at most twice the
number of active rows. Positions are passed explicitly, as `generate` itself computes them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from models.families import family_of

if TYPE_CHECKING:
    from torch import Tensor

    from eval.replies.sampling import SeededSampler

STOP, LENGTH, REPETITION = "stop", "length", "repetition"
"""Why a reply ended: end token, length limit, or repetition."""
MIN_REPETITION_WINDOW = 16
"""Four repetitions of a cycle of four tokens; a smaller window would stop numbers and lists."""

REPETITION_ARGUMENT = {"help": "stop a reply if its last N tokens repeat one sequence four or more times; 0: never"}
"""Metadata of the field `repetition_window` of all commands."""


def check_repetition_window(window: int) -> None:
    """Refuses a window so short that it would end sound replies; 0 ends none."""
    if window and window < MIN_REPETITION_WINDOW:
        raise ValueError(
            f"repetition_window is {window}; so few tokens repeat in sound replies too, it must be at least "
            f"{MIN_REPETITION_WINDOW}, or 0 to end no reply"
        )


@dataclass(frozen=True)
class Reply:
    """The tokens of one reply, without the end token."""

    tokens: list[int]
    finish_reason: str


@dataclass
class Rows:
    """The state that `generate` needs to continue, for the active rows."""

    input_ids: "Tensor"
    """[rows, tokens], all so far; the cache contains all but the last."""
    attention_mask: "Tensor"
    position_ids: "Tensor"
    """[rows, tokens], or [4, rows, tokens] for models with multimodal positions."""
    cache: Any

    def take(self, rows: "Tensor") -> None:
        """Selects these rows, in this order; a row may be repeated."""
        self.input_ids = self.input_ids[rows]
        self.attention_mask = self.attention_mask[rows]
        self.position_ids = self.position_ids.index_select(-2, rows)
        self.cache.reorder_cache(rows)  # also layers that keep a state instead of keys and values

    def extend(self, sequences: "Tensor") -> None:
        """Adds newly decoded tokens."""
        import torch

        num_new = sequences.shape[1] - self.input_ids.shape[1]
        ones = self.attention_mask.new_ones(len(sequences), num_new)
        self.attention_mask = torch.cat([self.attention_mask, ones], dim=1)
        steps = torch.arange(1, num_new + 1, device=sequences.device)
        self.position_ids = torch.cat([self.position_ids, self.position_ids[..., -1:] + steps], dim=-1)
        self.input_ids = sequences


class _Pause:
    """A stopping criterion that tracks finished rows and stops the batch when half of them have ended."""

    def __init__(self, ends: Sequence[int], num_prompt_tokens: int, window: int) -> None:
        from eval.replies.repetition import RepetitionStop

        self._ends = ends
        self._ended: Tensor | None = None
        self.repetition = RepetitionStop(num_prompt_tokens, window)

    def __call__(self, input_ids: "Tensor", scores: object, **_: object) -> "Tensor":
        import torch

        last = torch.isin(input_ids[:, -1], torch.tensor(self._ends, device=input_ids.device))
        self._ended = last if self._ended is None else self._ended | last
        over = self._ended | self.repetition(input_ids, scores)
        return torch.ones_like(over) if 2 * int(over.sum()) >= len(over) else over


def read_prompts(model: Any, inputs: Any) -> Rows:
    """Prefills prompts up to their last token; returns one row per prompt.

    Args:
        inputs: the processor's output, left-padded.
    """
    from transformers import DynamicCache

    input_ids, mask = inputs["input_ids"], inputs["attention_mask"]
    positions = prompt_positions(model, inputs)
    cache = DynamicCache(config=model.config)
    model(
        input_ids=input_ids[:, :-1],
        attention_mask=mask[:, :-1],
        position_ids=positions[..., :-1],
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
        **picture_inputs(model, inputs),
        **token_inputs(model, inputs, slice(None, -1)),
    )
    return Rows(input_ids, mask, positions, cache)


def picture_inputs(model: Any, inputs: Any) -> dict[str, Any]:
    """Returns those of a processor's outputs that hold pictures, as arguments of the model."""
    fields = family_of(model.config.model_type).picture_fields
    return {name: inputs[name] for name in fields if name in inputs}


def token_inputs(model: Any, inputs: Any, tokens: slice) -> dict[str, Any]:
    """Returns those of a processor's outputs that the model needs for each of some tokens, as its arguments."""
    fields = family_of(model.config.model_type).token_fields
    return {name: inputs[name][:, tokens] for name in fields if name in inputs}


def prompt_positions(model: Any, inputs: Any) -> "Tensor":
    """Returns positions as `generate` computes them: [prompts, tokens] for models that count tokens, or
    [4, prompts, tokens] with the three multimodal sections after the text positions.
    """
    import torch

    mask: Tensor = inputs["attention_mask"]
    text = (mask.long().cumsum(-1) - 1).masked_fill(mask == 0, 0)
    if family_of(model.config.model_type).position_sections == 1:
        return text
    if "image_grid_thw" not in inputs:
        return text.expand(4, *text.shape)
    seen, _ = model.base_model.get_rope_index(
        inputs["input_ids"],
        mm_token_type_ids=inputs["mm_token_type_ids"],
        image_grid_thw=inputs["image_grid_thw"],
        attention_mask=mask,
    )
    return torch.cat([text[None], seen])


def decode(
    model: Any,
    rows: Rows,
    settings: dict[str, Any],
    *,
    repetition_window: int = 0,
    sampler: "SeededSampler | None" = None,
) -> list[Reply]:
    """Decodes the replies of all rows.

    Args:
        rows: as returned by `read_prompts`, repeated once per requested reply; consumed.
        settings: a complete generation configuration, as from `eval.replies.generation.greedy_settings`.
        repetition_window: a reply is stopped when this many tokens repeat one cycle; 0 disables this.
        sampler: samples each row; greedy if None.
    """
    import torch
    from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

    num_prompt_tokens = rows.input_ids.shape[1]
    limit = num_prompt_tokens + settings["max_new_tokens"]
    ends = settings["eos_token_id"]
    places = list(range(len(rows.input_ids)))
    replies: dict[int, Reply] = {}
    while places:
        pause = _Pause(ends, num_prompt_tokens, repetition_window)
        model.generation_config = GenerationConfig(**{**settings, "max_new_tokens": limit - rows.input_ids.shape[1]})
        sequences = model.generate(
            input_ids=rows.input_ids,
            attention_mask=rows.attention_mask,
            position_ids=rows.position_ids,
            past_key_values=rows.cache,
            logits_processor=LogitsProcessorList([sampler] if sampler else []),
            stopping_criteria=StoppingCriteriaList([pause]),
        )
        assert pause.repetition.stopped_at is not None
        rows.extend(sequences)
        going = []
        written = sequences[:, num_prompt_tokens:].tolist()
        for row, (tokens, stopped_at) in enumerate(zip(written, pause.repetition.stopped_at.tolist(), strict=True)):
            reply = _ended(tokens, ends, stopped_at, settings["max_new_tokens"])
            if reply is None:
                going.append(row)
            else:
                replies[places[row]] = reply
        places = [places[row] for row in going]
        if places:
            rows.take(torch.tensor(going, device=sequences.device))
            if sampler is not None:
                sampler.keep(going)
    return [replies[place] for place in range(len(replies))]


def _ended(tokens: list[int], ends: Sequence[int], stopped_at: int, limit: int) -> Reply | None:
    """Returns a row's reply; None if it is unfinished."""
    length = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
    if 0 < stopped_at <= length:
        return Reply(tokens[:stopped_at], REPETITION)
    if length < len(tokens):
        return Reply(tokens[:length], STOP)
    return Reply(tokens, LENGTH) if length == limit else None
