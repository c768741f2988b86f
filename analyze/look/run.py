"""How is a look executed? One model at a time, in small batches; finished readings are not run again.

Batches are formed from all replies in the order of the plan, so that they do not depend on interruptions: where one
reply of a batch is missing, the batch is run again. The replies to one prompt follow each other, so its pictures go
through the vision tower once (`remembering_pictures`), and a long prompt through the decoder (`branches.py`).
"""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from analyze.look.plan import Look, Plan, Reader
from analyze.look.records import GROUPS, Reading
from models.blocks import BLOCKS, Partition
from tracking.progress import progress
from tracking.records import Record, RecordLog

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from analyze.attention.replies import PromptedReply
    from analyze.look.grids import Cells
    from eval.replies.generation import Processor

assert GROUPS[1:] == BLOCKS
BATCH_TOKENS = 1024
"""Tokens of a batch with its padding. A longer sequence is a batch by itself: larger batches would not be faster."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """One reply to read, tokenised for one model."""

    look: Look
    row: "PromptedReply"
    cells: "Cells"


def read_all(
    plan: Plan,
    directory: Path,
    partition: Partition,
    *,
    max_tokens: int,
    rollout: bool = False,
    heads: bool = False,
    dtype: str = "auto",
    on_skip: Callable[[str, str], None],
) -> list[Record]:
    """Lets every model read every reply that it has not read yet, and returns all records.

    Args:
        directory: where `records.jsonl` is kept.
        max_tokens: number of tokens of a reply whose maps are kept one by one: those of the answer, or the last.
        on_skip: called with the key and the reason for a reply that cannot be read.
    """
    from analyze.look.branches import can_branch
    from eval.replies.subject import open_subject

    with RecordLog(directory / "records.jsonl") as log:
        done = {record["key"] for record in log}
        for reader in plan.readers:
            if all(f"{look.key}/{reader.label}" in done for look in plan.looks):
                continue
            gc.collect()
            model, processor = open_subject(reader.model).load(dtype=dtype, attn_implementation="sdpa")
            rows = prepare(model, processor, reader, plan.looks, on_skip=on_skip)
            with remembering_pictures(model):
                for batch in batches(rows, branching=can_branch(model)):
                    if all(f"{one.look.key}/{reader.label}" in done for one in batch):
                        continue
                    found = read_batch(
                        model, processor, batch, partition, max_tokens=max_tokens, rollout=rollout, heads=heads
                    )
                    for one, fields in zip(batch, found, strict=True):
                        reading = Reading(key=one.look.key, model=reader.label, **fields).record()
                        if reading["key"] not in done:
                            log.append(reading)
            del model
        return list(log)


def prepare(
    model: "PreTrainedModel",
    processor: "Processor",
    reader: Reader,
    looks: Sequence[Look],
    *,
    on_skip: Callable[[str, str], None],
) -> Iterator[Prepared]:
    """Yields the replies, tokenised; an empty one is skipped."""
    from PIL import Image

    from analyze.look.grids import picture_cells

    for look in progress(looks, label=f"{reader.label}: looking", total=len(looks), unit="reply"):
        row = prompted(model, processor, reader, look)
        if row is None:
            on_skip(look.key, "the reply is empty")
            continue
        sizes = []
        for path in look.problem.image_paths:
            with Image.open(path) as opened:
                sizes.append(opened.size)
        yield Prepared(look=look, row=row, cells=picture_cells(model, processor, row, sizes))


def batches(
    rows: Iterator[Prepared], max_tokens: int = BATCH_TOKENS, *, branching: bool = False
) -> Iterator[list[Prepared]]:
    """Yields neighbouring replies that have at most so many tokens together, with padding; or a longer one alone.

    Args:
        branching: whether longer ones are together where they answer one prompt, which is read once; then the tokens
            are those of the replies.
    """
    from analyze.look.branches import same_prompt

    waiting: list[Prepared] = []
    for row in rows:
        together = [*waiting, row]
        fits = len(together) * max(len(one.row.input_ids) for one in together) <= max_tokens
        if branching and not fits and waiting:
            fits = len(together) * max(one.row.num_reply_tokens for one in together) <= max_tokens and all(
                same_prompt(one.row, row.row) for one in waiting
            )
        if waiting and not fits:
            yield waiting
            waiting = []
        waiting.append(row)
    if waiting:
        yield waiting


@contextmanager
def remembering_pictures(model: Any) -> Iterator[None]:
    """Within it, pictures that follow themselves in the next forward pass do not go through the vision tower again."""
    import torch

    backbone = model.model
    compute = backbone.get_image_features
    last: list[Any] = []

    def features(*arguments: Any, **options: Any) -> Any:
        given = [one for one in (*arguments, *options.values()) if isinstance(one, torch.Tensor)]
        if last and len(last[0]) == len(given) and all(map(torch.equal, last[0], given)):
            return last[1]
        last[:] = []  # the old ones are freed before the new ones are computed
        last[:] = [given, compute(*arguments, **options)]
        return last[1]

    backbone.get_image_features = features
    try:
        yield
    finally:
        del backbone.get_image_features


def prompted(model: "PreTrainedModel", processor: "Processor", reader: Reader, look: Look) -> "PromptedReply | None":
    """Returns the prompt as the evaluation rendered it, with the reply; None for an empty reply."""
    from analyze.attention.replies import read_reply_of
    from eval.replies.generation import render_prompt

    settings = reader.run["settings"]
    text = render_prompt(
        processor, look.problem.prompt, style=settings["prompt_style"], system_prompt=settings["system_prompt"]
    )
    return read_reply_of(
        model,
        processor,
        text=text,
        question=look.problem.prompt.question,
        image_paths=look.problem.image_paths,
        reply=look.reply,
    )


def read_batch(
    model: "PreTrainedModel",
    processor: "Processor",
    batch: Sequence[Prepared],
    partition: Partition,
    *,
    max_tokens: int,
    rollout: bool = False,
    heads: bool = False,
) -> list[dict[str, Any]]:
    """Returns what one forward pass over prompts and replies shows; a second one per reply for the rollout.

    Returns:
        Per reply the fields of `Reading` besides `key` and `model`.
    """
    import torch

    from analyze.attention.mass import accumulating
    from analyze.attention.records import PARTS
    from analyze.attention.replies import make_inputs
    from analyze.look.branches import num_shared, read_branches
    from analyze.look.maps import REPLY, AttentionMaps
    from eval.replies.generation import tokenizer_of

    tokenizer = tokenizer_of(processor)
    rows = [one.row for one in batch]
    pad_id = int(tokenizer.pad_token_id or 0)
    shared = num_shared(model, rows)
    whole = [replace(row, images={}) for row in rows] if shared else rows  # the pictures are those of the first
    inputs, segments, weights = make_inputs(whole, model, pad_id=pad_id)
    is_reply = segments == REPLY
    answer = PARTS.index("answer")
    chosen = [_chosen_tokens(row.weights[answer][row.segments == REPLY], max_tokens) for row in rows]
    blocks = {block: partition.layers(block) for block in BLOCKS}
    maps = AttentionMaps(segments, weights, blocks=blocks, tokens=chosen, heads=heads, num_cached=shared)
    before = is_reply.any(0).nonzero()[:, 0] - 1  # positions whose logits any reply needs
    if shared:
        logits = read_branches(model, rows, maps, shared, pad_id=pad_id)[:, : len(before)]
    else:
        with torch.inference_mode(), accumulating(model, maps):
            logits = model(**inputs, use_cache=False, logits_to_keep=before).logits
    found = []
    for number, one in enumerate(batch):
        targets = inputs["input_ids"][number, is_reply[number]]
        own = logits[number, is_reply[number, before + 1]].float().log_softmax(-1)
        read = maps.of_row(number)
        order = one.cells.order
        found.append(
            {
                "grids": one.cells.grids,
                "pictures": one.cells.pictures,
                "layers": tuple(maps.layers),
                "parts": read.parts.numpy()[..., order],
                "tokens": read.tokens.numpy()[..., order],
                "positions": tuple(chosen[number]),
                "texts": tuple(tokenizer.decode([token]) for token in targets.tolist()),
                "logprobs": own.gather(-1, targets[:, None])[:, 0].cpu().numpy(),
                "sum_error": read.sum_error,
                "heads": None if read.heads is None else read.heads.numpy()[..., order],
                "rollout": _rollout(model, one.row, chosen[number])[..., order] if rollout else None,
            }
        )
    return found


def _rollout(model: "PreTrainedModel", row: "PromptedReply", chosen: Sequence[int]) -> np.ndarray:
    """Returns the rollout [tokens, cells] of some tokens of a reply, in the order of the vision tokens."""
    import torch

    from analyze.attention.mass import accumulating
    from analyze.attention.replies import make_inputs
    from analyze.look.maps import AttentionRollout

    inputs, segments, _ = make_inputs([row], model, pad_id=0)
    state = AttentionRollout(segments)
    # A tensor, not a number: given a number, Gemma 4 computes only so many last tokens in its last layers.
    last = torch.tensor([segments.shape[1] - 1], device=model.device)
    with torch.inference_mode(), accumulating(model, state):
        model(**inputs, use_cache=False, logits_to_keep=last)
    return state.result[list(chosen)].numpy()


def _chosen_tokens(in_answer: "torch.Tensor", max_tokens: int) -> list[int]:
    """Returns the numbers of the answer's last tokens, or of the reply's if it has no answer."""
    answer = in_answer.nonzero()[:, 0].tolist() or list(range(len(in_answer)))
    return list(map(int, answer[-max_tokens:]))


def skipped(looks: Sequence[Look], reasons: dict[str, str]) -> list[dict[str, str]]:
    """Returns a row per reply that was not read."""
    return [
        {"task": look.problem.task, "id": look.problem.prompt.id, "reason": reasons[look.key]}
        for look in looks
        if look.key in reasons
    ]
