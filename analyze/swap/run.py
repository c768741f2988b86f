"""How do pairs of pictures go through the swap? Variants of several pairs, with their controls, as one batch.

A pair has the variants k = 0 … L of a mode (`plan.py`), and beside them the two that its controls need (`controls.py`).
Batches are formed from all pairs of a mode, done or not, so a continued run batches as an undisturbed one.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from analyze.swap.controls import check_pair, control_swaps
from analyze.swap.pairs import PairOptions, ReadyPair, UnusablePairError, open_pair
from analyze.swap.plan import Asking, Unit, swapped_layers
from analyze.swap.prefix import (
    Continuation,
    ReadyPrompt,
    Reply,
    compose,
    joined_pictures,
    read_prefixes,
    runs_together,
)
from analyze.swap.records import SwappedPair, Variant, pair_record
from analyze.swap.reference import takes_types
from eval.replies.batching import BatchSize
from eval.replies.generation import greedy_settings
from eval.replies.subject import Subject
from tracking.progress import progress
from tracking.records import Record
from tracking.sharding import SharedLog


def measure_units(subject: Subject, units: Sequence[Unit], log: SharedLog, asking: Asking, *, title: str) -> None:
    """Appends the records of this process's share; a batch that was cut short is done again, and so the same."""
    size = asking.batch_size
    by_mode = [[unit for unit in units if unit.mode == mode] for mode in dict.fromkeys(unit.mode for unit in units)]
    batches = [same[start : start + size] for same in by_mode for start in range(0, len(same), size)]
    pending = log.pending_groups([[unit.key for unit in batch] for batch in batches])
    if not pending:
        return
    model, processor = subject.load(dtype=asking.dtype, attn_implementation=asking.attn_implementation)
    settings = greedy_settings(model, processor, asking.max_new_tokens)
    together = BatchSize(size)
    work = partial(swap_units, model, processor, asking=asking, settings=settings)
    for number in progress(pending, label=title, unit="batch"):
        log.append(*(record for _, records in together.run(batches[number], work) for record in records))


def swap_units(
    model: Any, processor: Any, units: Sequence[Unit], *, asking: Asking, settings: dict[str, Any]
) -> list[Record]:
    """Returns the records of several units of one mode, swapped as one batch."""
    options = PairOptions(
        style=asking.prompt_style,
        system_prompt=asking.system_prompt,
        answer_prefix=asking.answer_prefix,
        box_space=asking.box_space,
    )
    ready, left_out = {}, {}
    for unit in units:
        try:
            ready[unit.key] = open_pair(model, processor, unit.pair_set.directory, unit.pair, options)
        except UnusablePairError as error:
            left_out[unit.key] = str(error)
    num_layers = model.config.get_text_config().num_hidden_layers
    swaps = swapped_layers(units[0].mode, num_layers, asking.window)
    results = dict(zip(ready, swap_pairs(model, list(ready.values()), swaps, settings), strict=True)) if ready else {}
    records = []
    for unit in units:
        record = {**unit.head, "left_out": left_out.get(unit.key)}
        if unit.key in ready:
            record |= pair_record(processor, ready[unit.key], results[unit.key])
        records.append(record)
    return records


def make_plan(swaps: Sequence[range], num_layers: int) -> Bool[Tensor, "variants layers"]:
    """Returns the boolean plan of swaps."""
    return torch.tensor([[layer in layers for layer in range(num_layers)] for layers in swaps])


def swap_pairs(
    model: Any, pairs: Sequence[ReadyPair], swaps: Sequence[range], settings: dict[str, Any]
) -> list[SwappedPair]:
    """Swaps several pairs by every variant of a mode, with the controls.

    Args:
        model: any supported model with a vision tower.
        pairs: whose variants form one batch.
        swaps: the layers of k = 0 … L, as `swapped_layers` returns them.
        settings: of greedy generation (`eval.replies.generation.greedy_settings`).
    """
    num_layers = len(swaps) - 1
    variants: list[list[Variant]] = [[] for _ in pairs]
    for places in runs_together(model, [pair.target for pair in pairs]):
        found = run_variants(
            model,
            [pairs[place] for place in places],
            [*swaps, *control_swaps(num_layers)],
            with_itself=[False] * (num_layers + 2) + [True],
            settings=settings,
        )
        for place, own in zip(places, found, strict=True):
            variants[place] = own
    plain = plain_replies(model, [prompt for pair in pairs for prompt in (pair.target, pair.source)], settings)
    results = []
    for number, (pair, (*swapped, full, itself)) in enumerate(zip(pairs, variants, strict=True)):
        plain_target, plain_source = plain[2 * number : 2 * number + 2]
        controls = check_pair(
            unswapped=swapped[-1],
            full=full,
            itself=itself,
            plain_target=plain_target,
            plain_source=plain_source,
            dtype=str(model.dtype).removeprefix("torch."),
            longest_answer_tokens=max(len(answer) for answer in pair.answers),
        )
        results.append(
            SwappedPair(
                variants=tuple(swapped), plain_target=plain_target, plain_source=plain_source, controls=controls
            )
        )
    return results


def run_variants(
    model: Any,
    pairs: Sequence[ReadyPair],
    swaps: Sequence[range],
    *,
    with_itself: Sequence[bool],
    settings: dict[str, Any],
) -> list[list[Variant]]:
    """Runs every swap of every pair as one batch and returns them by pair.

    Args:
        model: any supported model with a vision tower.
        pairs: of any grids and questions.
        swaps: the layers that each variant takes from another reading.
        with_itself: of each variant, whether that is the target's own picture read once more, and not the source's.
        settings: of greedy generation.
    """
    again = any(with_itself)
    read = [[pair.target, pair.source, *([pair.target] if again else [])] for pair in pairs]
    prefixes = read_prefixes(model, [prompt for prompts in read for prompt in prompts])
    num_read, num_variants = len(read[0]), len(swaps)
    target_rows = torch.arange(len(pairs)).repeat_interleave(num_variants) * num_read
    source_rows = target_rows + torch.tensor([2 if itself else 1 for itself in with_itself]).repeat(len(pairs))
    plan = make_plan(swaps, len(prefixes.layers)).repeat(len(pairs), 1)
    rows = Continuation(
        model,
        compose(prefixes, target_rows, source_rows, plan),
        prompts=[pair.target for pair in pairs for _ in swaps],
        prefix_lengths=prefixes.lengths[target_rows],
    )
    del prefixes
    answers = [pair.answers for pair in pairs for _ in swaps]
    num_given = pairs[0].num_given
    of_target = rows.answer_logprobs([target for target, _ in answers], num_given=num_given).tolist()
    of_source = rows.answer_logprobs([source for _, source in answers], num_given=num_given).tolist()
    replies = rows.decode(max_new_tokens=settings["max_new_tokens"], stop_ids=settings["eos_token_id"])
    variants = [
        Variant(reply=reply, logprob_target=target, logprob_source=source)
        for reply, target, source in zip(replies, of_target, of_source, strict=True)
    ]
    return [variants[start : start + num_variants] for start in range(0, len(variants), num_variants)]


@torch.inference_mode()
def plain_replies(model: Any, prompts: Sequence[ReadyPrompt], settings: dict[str, Any]) -> list[Reply]:
    """Returns what the model replies to whole prompts by Transformers' own `generate`, positions left to it."""
    from transformers import GenerationConfig

    longest = max(len(prompt.input_ids) for prompt in prompts)

    def padded(rows: list[Tensor], value: int) -> Tensor:
        return torch.stack([torch.nn.functional.pad(row, (longest - len(row), 0), value=value) for row in rows])

    inputs = {
        "input_ids": padded([prompt.input_ids for prompt in prompts], settings["pad_token_id"]),
        "attention_mask": padded([torch.ones_like(prompt.input_ids) for prompt in prompts], 0),
        **joined_pictures(prompts, model.device),
    }
    if takes_types(model, prompts[0]):
        inputs["mm_token_type_ids"] = padded([prompt.token_types for prompt in prompts], 0)
    model.generation_config = GenerationConfig(**settings)
    output = model.generate(**{name: tensor.to(model.device) for name, tensor in inputs.items()})
    return [trimmed(row, settings["eos_token_id"]) for row in output[:, longest:].tolist()]


def trimmed(tokens: Sequence[int], stop_ids: Sequence[int]) -> Reply:
    """Returns the reply in what `generate` gave: what stands before the end of the turn."""
    end = next((place for place, token in enumerate(tokens) if token in stop_ids), None)
    return Reply(tokens=tuple(tokens[:end]), margins=(), finish_reason="length" if end is None else "stop")
