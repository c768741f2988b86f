"""How does Transformers read each prompt once when it samples several replies? A cache of prompts, copied per reply.

Transformers (5.23) expands a prompt before it reads it, with `num_return_sequences` too. Here the distinct prompts are
read first, all but their last token. `generate` gets the cache, one copy per reply, and continues from it.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig

from train.sharing.batch import Batch, join_pictures
from train.sharing.decoding import can_decode, decode
from train.sharing.models import backbone_of


def generate_from_shared_prompts(
    model: Any,
    generate: Callable[..., Tensor],
    num_pictures: list[int] | None,
    *,
    input_ids: Tensor,
    attention_mask: Tensor,
    generation_config: GenerationConfig,
    pixel_values: Tensor | None = None,
    image_grid_thw: Tensor | None = None,
    mm_token_type_ids: Tensor | None = None,
) -> Tensor:
    """Returns what `model.generate` returns, prompts included; the arguments are those of TRL 1.16.

    Args:
        model: not wrapped by DDP or DeepSpeed.
        generate: its own `generate`.
        num_pictures: pictures, or tiles, per row.
    """
    batch = Batch.of(
        input_ids,
        attention_mask,
        0,
        pixels=pixel_values,
        grids=image_grid_thw,
        num_pictures=num_pictures,
        types=mm_token_type_ids,
    )
    row_groups = batch.groups()
    if len(row_groups) == len(input_ids) or input_ids.shape[1] == 1:
        fields = {"image_grid_thw": image_grid_thw, "pixel_values": pixel_values}
        given = {name: value for name, value in fields.items() if value is not None}
        if mm_token_type_ids is not None:
            given["mm_token_type_ids"] = mm_token_type_ids
        return generate(
            input_ids=input_ids, attention_mask=attention_mask, generation_config=generation_config, **given
        )
    rows = torch.tensor([group.rows[0] for group in row_groups], device=input_ids.device)
    copies = torch.empty(len(input_ids), dtype=torch.long, device=input_ids.device)
    for number, group in enumerate(row_groups):
        copies[list(group.rows)] = number
    cache = read_prompts(model, batch, rows)
    cache.batch_select_indices(copies)
    backbone = backbone_of(model)
    if hasattr(backbone, "rope_deltas"):
        backbone.rope_deltas = backbone.rope_deltas[copies]
    return generate(
        input_ids=input_ids,
        attention_mask=attention_mask,
        past_key_values=cache,
        generation_config=generation_config,
        **({"custom_generate": decode} if can_decode(generation_config, input_ids.device) else {}),
    )


def read_prompts(model: Any, batch: Batch, rows: Tensor) -> DynamicCache:
    """Returns the cache of some rows' prompts without their last token.

    Leaves in `rope_deltas` of a model for pictures how far its positions are from the number of tokens, as `generate`
    expects them (Transformers 5.23).
    """
    backbone = backbone_of(model)
    ids, mask = batch.ids[rows], batch.mask[rows]
    positions = (mask.long().cumsum(-1) - 1).masked_fill(mask == 0, 0)
    pictures = [] if batch.pictures is None else [p for row in rows.tolist() for p in batch.pictures[row]]
    fields = join_pictures(pictures)
    if hasattr(backbone, "rope_deltas"):
        backbone.rope_deltas = torch.zeros(len(ids), 1, dtype=torch.long, device=ids.device)
    if pictures and batch.types is not None:
        positions, backbone.rope_deltas = backbone.get_rope_index(
            ids, batch.types[rows], image_grid_thw=fields["image_grid_thw"], attention_mask=mask
        )
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    model(
        input_ids=ids[:, :-1],
        attention_mask=mask[:, :-1],
        position_ids=positions[..., :-1],
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
        **fields,
    )
    return cache
