"""Steps without modules give the bits of the model's own pass, and are taken only where they do."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from models import single_token
from models.loading import load_model
from models.single_token import can_step, fast_steps

NUM_ROWS, NUM_TOKENS, NUM_STEPS = 6, 7, 5
FAMILIES = ("pocket", "qwen2_vl")


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest) -> Any:
    return load_model(request.getfixturevalue(f"{request.param}_checkpoint"), dtype="float32").eval()


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    single_token._differs.clear()
    with torch.no_grad():
        yield


def replies(model: Any, *, mask_is_ready: bool, num_sections: int) -> list[torch.Tensor]:
    """Returns the logits of some greedy steps; two rows have padding on the left."""
    torch.manual_seed(0)
    ids = torch.randint(20, 200, (NUM_ROWS, NUM_TOKENS))
    mask = torch.ones(NUM_ROWS, NUM_TOKENS, dtype=torch.long)
    mask[:2, :3] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    model(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True)
    found, token = [], ids[:, -1:]
    for step in range(1, NUM_STEPS + 1):
        mask = torch.cat([mask, mask.new_ones(NUM_ROWS, 1)], dim=-1)
        here = positions[:, -1:] + step
        logits = model(
            input_ids=token,
            attention_mask=mask[:, None, None].bool() if mask_is_ready else mask,
            position_ids=here if num_sections == 1 else here.expand(num_sections, -1, -1),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits
        found.append(logits)
        token = logits[:, -1].argmax(-1, keepdim=True)
    return found


@pytest.mark.parametrize("mask_is_ready", [False, True])
@pytest.mark.parametrize("num_sections", [1, 3, 4])
def test_steps_have_the_bits_of_the_models_own_pass(model: Any, mask_is_ready: bool, num_sections: int) -> None:
    expected = replies(model, mask_is_ready=mask_is_ready, num_sections=num_sections)
    layer_passes: list[int] = []
    own = type(model.model.language_model.layers[0]).forward
    with fast_steps(model):
        found = replies(model, mask_is_ready=mask_is_ready, num_sections=num_sections)
        with pytest.MonkeyPatch.context() as patch:
            kind = type(model.model.language_model.layers[0])
            patch.setattr(kind, "forward", lambda *a, **k: layer_passes.append(1) or own(*a, **k))
            again = replies(model, mask_is_ready=mask_is_ready, num_sections=num_sections)
    for one, other, third in zip(expected, found, again, strict=True):
        assert torch.equal(one, other) and torch.equal(one, third)
    assert single_token._differs[model] is False
    assert len(layer_passes) == model.config.get_text_config().num_hidden_layers, "only the prompts used the modules"
    assert "forward" not in vars(model)


def test_generate_takes_steps_also_without_padding_where_it_gives_no_mask(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    own = single_token._Steps.__call__
    monkeypatch.setattr(single_token._Steps, "__call__", lambda *a: steps.append(1) or own(*a))
    ids = torch.randint(20, 200, (NUM_ROWS, NUM_TOKENS))
    options = {"do_sample": False, "max_new_tokens": NUM_STEPS + 1, "min_new_tokens": NUM_STEPS + 1, "pad_token_id": 0}
    expected = model.generate(input_ids=ids, **options)
    with fast_steps(model):
        found = model.generate(input_ids=ids, **options)
    assert torch.equal(found, expected) and len(steps) == NUM_STEPS


def test_a_step_with_other_bits_is_never_used(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = replies(model, mask_is_ready=False, num_sections=3)
    normed = single_token._normed
    monkeypatch.setattr(single_token, "_normed", lambda hidden, norm: normed(hidden, norm) * 1.001)
    with fast_steps(model):
        found = replies(model, mask_is_ready=False, num_sections=3)
    assert all(map(torch.equal, found, expected)) and single_token._differs[model] is True


def test_models_that_are_computed_otherwise_keep_their_own_pass(model: Any, request: pytest.FixtureRequest) -> None:
    assert can_step(model)
    attention = model.model.language_model.layers[1].self_attn
    handle = attention.o_proj.register_forward_hook(lambda *_: None)
    assert not can_step(model), "a hook would not be called"
    handle.remove()
    with torch.autocast("cpu", torch.bfloat16):
        assert not can_step(model)
    assert can_step(model)
    with torch.enable_grad(), fast_steps(model):
        assert "forward" not in vars(model)
    model.set_attn_implementation("eager")
    assert not can_step(model)
    model.set_attn_implementation("sdpa")


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2"])
def test_other_families_keep_their_own_pass(family: str, request: pytest.FixtureRequest) -> None:
    checkpoint: Path = request.getfixturevalue(f"{family}_checkpoint")
    assert not can_step(load_model(checkpoint, dtype="float32"))
