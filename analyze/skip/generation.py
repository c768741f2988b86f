"""What does the model answer with parts of it left out? Many prompts, each under many plans, as rows of one batch.

Prompts are prefilled together, up to their last token, with what their rows share computed once (`Branches`); the cache
is spread over the rows, and Transformers' own `generate` reads the last token and decodes, greedily. Positions are
given explicitly: what the model remembers of an earlier prompt (its rope deltas) never enters.

A family with deepstack (Qwen3-VL) adds features of the picture between its first layers, at places it knows by their
row. Its prompts are therefore prefilled row by row. Those features are no part of a layer: a layer that is skipped
still has them added after it.

Gemma 4's layers take per-layer embeddings with a row per prompt, and some read the keys and values of an earlier
layer: its prompts are prefilled row by row too. A layer that is skipped still computes the keys and values that later
layers read.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from analyze.skip.layers import Branches, Plan, RowwiseSkip
from data_builders.prompt_sets.depth import eight_bits
from eval.replies.decoding import LENGTH, REPETITION, STOP, picture_inputs, prompt_positions
from eval.replies.generation import Generation, tokenizer_of
from eval.replies.repetition import RepetitionStop
from models.families import family_of


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What one batch is to answer: prompts, and the rows that put them to the model."""

    texts: Sequence[str]
    """Rendered prompts, each once."""
    images: Sequence[Sequence[Path]]
    """Of each prompt."""
    prompts: Sequence[int]
    """Of each row: the number of its prompt."""
    plan: Plan
    """What each row leaves out."""


def answer_rows(
    model: Any, processor: Any, skip: RowwiseSkip, rows: Rows, settings: dict[str, Any], *, repetition_window: int
) -> list[Generation]:
    """Generates a greedy reply in every row.

    Args:
        settings: a whole generation configuration, as `eval.replies.generation.greedy_settings` makes it.
        repetition_window: tokens that must be rounds of one cycle for a reply to be ended; 0 never ends one.
    """
    from transformers import GenerationConfig, StoppingCriteriaList

    family = family_of(model.config.model_type)
    plan = rows.plan.to(model.device)
    model.generation_config = GenerationConfig(**settings)
    with torch.inference_mode():
        if family.deepstack_key or not family.plain_layers:
            every = _tokenize(processor, rows.texts, rows.images, rows.prompts).to(model.device)
            inputs = dict(every)
        else:
            inputs = _prefill(model, processor, skip, rows, plan)
        stop = RepetitionStop(inputs["input_ids"].shape[1], repetition_window)
        skip.leave_out(plan)
        output = model.generate(**inputs, stopping_criteria=StoppingCriteriaList([stop]))
        skip.leave_out(None)
    assert stop.stopped_at is not None
    tokens = output[:, inputs["input_ids"].shape[1] :].tolist()
    ends = set(settings["eos_token_id"])
    return [
        _reply(processor, reply, ends, stopped_at)
        for reply, stopped_at in zip(tokens, stop.stopped_at.tolist(), strict=True)
    ]


def _tokenize(
    processor: Any, texts: Sequence[str], image_paths: Sequence[Sequence[Path]], chosen: Sequence[int]
) -> Any:
    from PIL import Image

    images = [[eight_bits(Image.open(path)).convert("RGB") for path in image_paths[number]] for number in chosen]
    given = {"images": images} if any(images) else {}
    return processor(text=[texts[number] for number in chosen], padding=True, return_tensors="pt", **given)


def _prefill(model: Any, processor: Any, skip: RowwiseSkip, rows: Rows, plan: Plan) -> dict[str, Any]:
    """Reads all prompts but for their last token and returns what `generate` needs to go on with all rows."""
    from transformers import DynamicCache

    inputs = _tokenize(processor, rows.texts, rows.images, range(len(rows.texts))).to(model.device)
    input_ids, attention_mask = inputs["input_ids"], inputs["attention_mask"]
    positions = prompt_positions(model, inputs)
    branches = Branches(rows.prompts, plan)
    cache = DynamicCache(config=model.config)
    skip.branch(branches)
    model(
        input_ids=input_ids[:, :-1],
        attention_mask=attention_mask[:, :-1],
        position_ids=positions[..., :-1],
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
        **picture_inputs(model, inputs),
    )
    for layer, states in zip(cache.layers, branches.of_row, strict=True):
        layer.reorder_cache(states)  # also a layer that keeps a state instead of keys and values
    prompts = torch.tensor(rows.prompts, device=model.device)
    return {
        "input_ids": input_ids[prompts],
        "attention_mask": attention_mask[prompts],
        "position_ids": positions.index_select(-2, prompts),
        "past_key_values": cache,
    }


def _reply(processor: Any, tokens: list[int], ends: set[int], stopped_at: int) -> Generation:
    length = next((position for position, token in enumerate(tokens) if token in ends), len(tokens))
    reason = LENGTH if length == len(tokens) else STOP
    if 0 < stopped_at <= length:
        length, reason = stopped_at, REPETITION
    text = tokenizer_of(processor).decode(tokens[:length], skip_special_tokens=True)
    return Generation(text, num_tokens=length, finish_reason=reason)
