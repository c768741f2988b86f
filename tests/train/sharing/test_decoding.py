"""Replies that are continued token by token here, against Transformers' own loop with the same seed."""

from functools import partial
from typing import Any

import pytest
import torch
from transformers import DynamicCache, GenerationConfig

from models.loading import load_model
from train.sharing.decoding import _RoomyLayer, can_decode, decode

FAMILIES = ("pocket", "qwen2_vl", "qwen3_vl", "qwen2", "internvl")
NUM_ROWS, NUM_TOKENS, LONGEST = 12, 6, 90


@pytest.mark.cases_slow
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("changes", [{}, {"do_sample": False}, {"top_p": 0.8, "min_new_tokens": 4}], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_replies_that_end_at_different_tokens(
    family: str, changes: dict[str, Any], attention: str, request: pytest.FixtureRequest
) -> None:
    checkpoint = request.getfixturevalue(f"{family}_checkpoint")
    model: Any = load_model(checkpoint, dtype="float32", attn_implementation=attention).eval()
    torch.manual_seed(0)
    ids = torch.randint(20, 200, (NUM_ROWS, NUM_TOKENS))
    mask = torch.ones_like(ids)
    mask[::3, :2] = 0
    # A fifth of the vocabulary ends a reply, so the replies end at different tokens.
    ends = list(range(0, model.config.get_text_config().vocab_size, 20))
    settings = {"do_sample": True, "top_k": 0, "max_new_tokens": LONGEST, "eos_token_id": ends, "pad_token_id": 0}
    config = GenerationConfig(**(settings | changes))
    assert can_decode(config, model.device)
    found, computed = [], []
    for custom in ({}, {"custom_generate": decode}):
        cache = DynamicCache(config=model.config.get_text_config(decoder=True))
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        if hasattr(model.base_model, "rope_deltas"):
            model.base_model.rope_deltas = torch.zeros(NUM_ROWS, 1, dtype=torch.long)
        counted: list[int] = []
        with torch.no_grad():
            model(
                input_ids=ids[:, :-1], attention_mask=mask[:, :-1], position_ids=positions[:, :-1],
                past_key_values=cache, use_cache=True,
            )  # fmt: skip
            handle = model.get_input_embeddings().register_forward_hook(partial(count_rows, counted))
            torch.manual_seed(3)
            replies = model.generate(
                input_ids=ids, attention_mask=mask, past_key_values=cache, generation_config=config, **custom
            )
            handle.remove()
        found.append(replies)
        computed.append(sum(counted))
    assert torch.equal(*found)
    lengths = (found[0][:, NUM_TOKENS:] != 0).sum(dim=1)
    if config.do_sample:
        assert lengths.min() < lengths.max() and computed[1] < 0.8 * computed[0]


def count_rows(counted: list[int], _: torch.nn.Module, inputs: tuple[torch.Tensor], __: torch.Tensor) -> None:
    counted.append(len(inputs[0]))


def test_a_cache_with_room_holds_what_was_appended_and_kept() -> None:
    torch.manual_seed(0)
    cache = DynamicCache()
    cache.update(torch.randn(5, 2, 3, 4), torch.randn(5, 2, 3, 4), 0)
    roomy = _RoomyLayer(cache.layers[0])
    for order in ([0, 1, 2, 3, 4], [0, 4, 2, 3], [3, 1], [0, 1], [1]):
        for values in (cache.layers[0], roomy):
            values.batch_select_indices(torch.tensor(order))
        for _ in range(70):
            new = torch.randn(len(order), 2, 1, 4), torch.randn(len(order), 2, 1, 4)
            for ours, theirs in zip(roomy.update(*new), cache.update(*new, 0), strict=True):
                assert torch.equal(ours, theirs)
    assert roomy.get_seq_length() == 3 + 5 * 70


@pytest.mark.parametrize("changes", [{"num_beams": 2}, {"return_dict_in_generate": True}])
def test_other_kinds_of_decoding_are_left_to_transformers(changes: dict[str, Any]) -> None:
    assert not can_decode(GenerationConfig(**changes), torch.device("cpu"))
    assert not can_decode(GenerationConfig(), torch.device("cuda"))
