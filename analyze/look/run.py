"""How is a look executed? One model at a time, one sequence at a time; finished readings are not run again."""

import gc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analyze.look.plan import Look, Plan, Reader
from analyze.look.records import GROUPS, Reading
from models.blocks import BLOCKS, Partition
from models.families import family_of
from tracking.progress import progress
from tracking.records import Record, RecordLog

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from analyze.attention.replies import PromptedReply
    from eval.replies.generation import Processor

assert GROUPS[1:] == BLOCKS
MERGE = "spatial_merge_size"


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
    from eval.replies.subject import open_subject

    with RecordLog(directory / "records.jsonl") as log:
        done = {record["key"] for record in log}
        for reader in plan.readers:
            todo = [look for look in plan.looks if f"{look.key}/{reader.label}" not in done]
            if not todo:
                continue
            gc.collect()
            model, processor = open_subject(reader.model).load(dtype=dtype, attn_implementation="sdpa")
            for look in progress(todo, label=f"{reader.label}: looking", total=len(todo), unit="reply"):
                row = prompted(model, processor, reader, look)
                if row is None:
                    on_skip(look.key, "the reply is empty")
                    continue
                found = read_one(model, processor, row, partition, max_tokens=max_tokens, rollout=rollout, heads=heads)
                log.append(Reading(key=look.key, model=reader.label, **found).record())
            del model
        return list(log)


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


def read_one(
    model: "PreTrainedModel",
    processor: "Processor",
    row: "PromptedReply",
    partition: Partition,
    *,
    max_tokens: int,
    rollout: bool = False,
    heads: bool = False,
) -> dict[str, Any]:
    """Returns what one forward pass over one prompt and reply shows; a second one for the rollout.

    Returns:
        The fields of `Reading` besides `key` and `model`.
    """
    import torch

    from analyze.attention.mass import KEY_SEGMENTS, accumulating
    from analyze.attention.replies import make_inputs
    from analyze.look.maps import AttentionMaps, AttentionRollout
    from eval.replies.generation import tokenizer_of

    inputs, segments, weights = make_inputs([row], model, pad_id=0)
    reply = (segments[0] == KEY_SEGMENTS.index("reply")).nonzero()[:, 0]
    chosen = _chosen_tokens(row.weights[2][reply.cpu()], max_tokens)
    blocks = {block: partition.layers(block) for block in BLOCKS}
    maps = AttentionMaps(segments, weights, blocks=blocks, tokens=chosen, heads=heads)
    with torch.inference_mode(), accumulating(model, maps):
        logits = model(**inputs, use_cache=False, logits_to_keep=reply - 1).logits[0]
    targets = inputs["input_ids"][0, reply]
    logprobs = logits.float().log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    found: dict[str, Any] = {
        "grids": cell_grids(model, row),
        "layers": tuple(maps.layers),
        "parts": maps.parts.numpy(),
        "tokens": maps.tokens.numpy(),
        "positions": tuple(chosen),
        "texts": tuple(tokenizer_of(processor).decode([token]) for token in targets.tolist()),
        "logprobs": logprobs.cpu().numpy(),
        "sum_error": float(maps.sum_errors.max()),
        "heads": maps.heads.numpy() if heads else None,
        "rollout": None,
    }
    if rollout:
        state = AttentionRollout(segments)
        with torch.inference_mode(), accumulating(model, state):
            model(**inputs, use_cache=False, logits_to_keep=1)
        found["rollout"] = state.result[chosen].numpy()
    return found


def _chosen_tokens(in_answer: "torch.Tensor", max_tokens: int) -> list[int]:
    """Returns the numbers of the answer's last tokens, or of the reply's if it has no answer."""
    answer = in_answer.nonzero()[:, 0].tolist() or list(range(len(in_answer)))
    return list(map(int, answer[-max_tokens:]))


def cell_grids(model: "PreTrainedModel", row: "PromptedReply") -> tuple[tuple[int, int], ...]:
    """Returns rows and columns of cells of every picture, in the order of its tokens.

    Raises:
        ValueError: if the family does not say where on the picture its tokens lie.
    """
    vision = model.config.vision_config
    if "image_position_ids" in row.images:  # column and row of each patch, -1 for padding (Gemma 4)
        sides = (row.images["image_position_ids"].amax(1) + 1) // vision.pooling_kernel_size
        grids = tuple((int(rows), int(columns)) for columns, rows in sides)
    elif "image_grid_thw" in row.images:
        merge = int(getattr(vision, MERGE))
        grids = tuple((int(rows) // merge, int(columns) // merge) for _, rows, columns in row.images["image_grid_thw"])
    else:
        raise ValueError(
            f"{family_of(model.config.model_type).model_type}: its processor does not give the grid of a picture's "
            "tokens, so nothing can be drawn; expected a model of the Qwen-VL kind, or Gemma 4"
        )
    num_cells = sum(rows * columns for rows, columns in grids)
    assert num_cells == row.num_vision_tokens, (grids, row.num_vision_tokens)
    return grids


def skipped(looks: Sequence[Look], reasons: dict[str, str]) -> list[dict[str, str]]:
    """Returns a row per reply that was not read."""
    return [
        {"task": look.problem.task, "id": look.problem.prompt.id, "reason": reasons[look.key]}
        for look in looks
        if look.key in reasons
    ]
