"""How are several replies to one prompt read without reading the prompt again? As branches from its keys and values.

A picture fills most of a prompt, and no map needs the attention of the prompt's own tokens. So the prompt is read once,
up to its last token. The replies are read as a batch against its cache, and only their tokens are queries.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from analyze.attention.mass import accumulating
from analyze.attention.replies import REPLY, make_inputs
from eval.replies.decoding import picture_inputs, prompt_positions, token_inputs

if TYPE_CHECKING:
    from analyze.attention.replies import PromptedReply
    from analyze.look.maps import AttentionMaps

FULL_ATTENTION = "full_attention"


def can_branch(model: Any) -> bool:
    """True if every decoder layer keeps keys and values of all tokens: no windows, no recurrent state."""
    kinds = getattr(model.config.get_text_config(), "layer_types", None) or ()
    return all(kind == FULL_ATTENTION for kind in kinds)


def num_prompt_tokens(row: "PromptedReply") -> int:
    return int((row.segments == REPLY).int().argmax())


def same_prompt(one: "PromptedReply", other: "PromptedReply") -> bool:
    """True if two replies answer the same prompt, token by token and pixel by pixel."""
    length = num_prompt_tokens(one)
    return (
        length == num_prompt_tokens(other)
        and torch.equal(one.input_ids[:length], other.input_ids[:length])
        and one.images.keys() == other.images.keys()
        and all(torch.equal(one.images[name], other.images[name]) for name in one.images)
    )


def num_shared(model: Any, rows: Sequence["PromptedReply"]) -> int:
    """Returns the number of tokens that replies to one prompt share, all of it but its last one; 0 if none are shared.

    The last token belongs to the replies: it predicts their first.
    """
    if len(rows) < 2 or not can_branch(model) or not all(same_prompt(rows[0], row) for row in rows[1:]):
        return 0
    return num_prompt_tokens(rows[0]) - 1


def read_branches(
    model: Any, rows: Sequence["PromptedReply"], maps: "AttentionMaps", num_shared: int, *, pad_id: int
) -> torch.Tensor:
    """Reads replies to one prompt.

    Args:
        maps: keeps what the replies attend to; its first `num_shared` tokens are no queries.
        num_shared: as the function of this name returns it.

    Returns:
        The logits [rows, tokens, vocabulary] of the prompt's last token and of the replies.
    """
    from transformers import DynamicCache

    prompt = make_inputs(rows[:1], model, pad_id=pad_id)[0]
    replies = make_inputs([replace(row, images={}) for row in rows], model, pad_id=pad_id)[0]
    positions = prompt_positions(model, prompt)  # [..., 1, tokens]
    first = slice(None, num_shared)
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    with torch.inference_mode():
        model(
            input_ids=prompt["input_ids"][:, first],
            attention_mask=prompt["attention_mask"][:, first],
            position_ids=positions[..., first],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
            **picture_inputs(model, prompt),
            **token_inputs(model, prompt, first),
        )
        cache.batch_repeat_interleave(len(rows))
        own = replies["input_ids"][:, num_shared:]
        steps = torch.arange(own.shape[1], device=own.device)
        following = positions[..., num_shared : num_shared + 1] + steps  # text: every section advances by one
        with accumulating(model, maps):
            logits: torch.Tensor = model(
                input_ids=own,
                attention_mask=replies["attention_mask"],
                position_ids=following.expand(*following.shape[:-2], *own.shape),
                past_key_values=cache,
                use_cache=True,
            ).logits
    return logits
