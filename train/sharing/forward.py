"""What are the log-probabilities of replies whose prompts are read once? One ordinary forward pass, taken apart again.

The pass has a mask and positions of its own and no cache, so it works under gradient checkpointing, DDP and ZeRO as any
other pass does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from train.sharing.batch import Batch, join_pictures
from train.sharing.layout import ATTENTION_SCALE, Group, Layout, lay_out


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Log-probability and entropy of each reply token; zero where the token is masked."""

    logps: Float[Tensor, "rows reply"]
    entropies: Float[Tensor, "rows reply"] | None


def layout_if_cheaper(batch: Batch, *, hidden_size: int) -> tuple[list[Group], Layout] | None:
    """Returns how a batch is packed, or None if reading every row by itself costs no more."""
    groups = batch.groups()
    if len(groups) == len(batch.ids):
        return None
    layout = lay_out(groups, batch.ids.shape[1], hidden_size=hidden_size, device=batch.ids.device)
    plain, packed = (
        rows * width * (ATTENTION_SCALE * hidden_size + width) for rows, width in (batch.ids.shape, layout.source.shape)
    )
    return (groups, layout) if packed < plain else None


def model_inputs(batch: Batch, groups: list[Group], layout: Layout, backbone: Any) -> dict[str, Any]:
    """Returns the arguments of the forward pass, with labels at reply tokens only.

    Args:
        backbone: the model inside the head, as `backbone_of` returns it.
    """
    ids = batch.ids.reshape(-1)[layout.source]
    labels = torch.full_like(ids, -100)
    labels.view(-1)[layout.scored] = batch.ids.reshape(-1)[layout.scored_source]
    attention: Tensor = layout.attention()
    if backbone.config.get_text_config()._attn_implementation == "eager":  # adds its mask, which cannot be boolean
        dtype = backbone.get_input_embeddings().weight.dtype
        blocked = torch.finfo(dtype).min
        attention = torch.zeros(attention.shape, dtype=dtype, device=ids.device).masked_fill(~attention, blocked)
    pictures = [] if batch.pictures is None else [p for g in layout.groups for p in batch.pictures[groups[g].rows[0]]]
    return {
        "input_ids": ids,
        "attention_mask": attention,
        "position_ids": _positions(batch, groups, layout, backbone),
        "labels": labels,
        **join_pictures(pictures),
    }


def scores(outputs: Any, batch: Batch, layout: Layout, *, entropy: bool) -> Scores:
    """Returns the scores in the batch's rows and columns.

    Args:
        outputs: of TRL's fused head (1.16), whose column i scores the token in column i + 1.
        entropy: whether entropies are wanted.
    """
    rows = layout.scored // layout.source.shape[1]
    places = layout.scored - rows - 1  # the head's rows are one column shorter
    columns = batch.ids.shape[1]

    def unpacked(values: Tensor) -> Tensor:
        whole = values.new_zeros(batch.ids.numel()).scatter(0, layout.scored_source, values.reshape(-1)[places])
        return whole.view(-1, columns)[:, batch.num_prompt_columns :]

    return Scores(logps=unpacked(outputs.log_probs), entropies=unpacked(outputs.entropy) if entropy else None)


def together_again(one: Scores, other: Scores, rows: Sequence[int], other_rows: Sequence[int]) -> Scores:
    """Returns the scores of a batch from those of two parts.

    Args:
        one: scores of the batch's `rows`.
        other: scores of its `other_rows`.
    """
    places = torch.tensor([*rows, *other_rows], device=one.logps.device).argsort()

    def joined(ours: Tensor, theirs: Tensor) -> Tensor:
        return torch.cat([ours, theirs])[places]

    entropies = None
    if one.entropies is not None and other.entropies is not None:
        entropies = joined(one.entropies, other.entropies)
    return Scores(logps=joined(one.logps, other.logps), entropies=entropies)


def _positions(batch: Batch, groups: list[Group], layout: Layout, backbone: Any) -> Int[Tensor, "... rows width"]:
    """Returns the positions that the tokens have in TRL's batch.

    A model for pictures counts a prompt's positions itself, if the batch has pictures. Otherwise Transformers (5.23)
    counts columns, those of the padding included.
    """
    num_columns = batch.ids.shape[1]
    if batch.pictures is None or batch.types is None or not hasattr(backbone, "get_rope_index"):
        return layout.source % num_columns
    first = torch.tensor([group.rows[0] for group in groups], device=batch.ids.device)
    num_prompt_columns = batch.num_prompt_columns
    pictures = [picture for group in groups for picture in batch.pictures[group.rows[0]]]
    prompts, _ = backbone.get_rope_index(
        batch.ids[first, :num_prompt_columns],
        batch.types[first, :num_prompt_columns],
        image_grid_thw=join_pictures(pictures)["image_grid_thw"],
        attention_mask=batch.mask[first, :num_prompt_columns],
    )  # [3, groups, columns]
    ends = prompts.masked_fill(batch.mask[first, :num_prompt_columns] == 0, -1).amax(dim=(0, 2))  # [groups]
    group = layout.group.clamp(min=0)
    column = (layout.source % num_columns).clamp(max=num_prompt_columns - 1)
    behind = ends[group] + layout.offset
    return torch.where(layout.offset > 0, behind, prompts[:, group, column])
