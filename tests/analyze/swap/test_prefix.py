"""Composed caches against the direct computation: hidden states replaced by hooks in a full pass."""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from analyze.swap.plan import swapped_layers
from analyze.swap.prefix import Continuation, ReadyPrompt, compose, make_ready, read_prefixes, runs_together
from analyze.swap.reference import (
    generate_swapped,
    model_inputs,
    picture_states,
    swapped,
)
from analyze.swap.run import make_plan, plain_replies, trimmed
from data_builders.pocket.draw import draw_scene, render
from eval.replies.generation import greedy_settings
from eval.replies.prompting import chat_messages
from models.loading import load_processor

MAX_NEW_TOKENS = 6
TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-9}
CASES = [
    ("pocket_checkpoint", 6),
    ("pocket_checkpoint", 4),
    ("pocket_checkpoint", 12),
    ("qwen2_vl_checkpoint", 4),
    ("qwen2_vl_checkpoint", 12),
    ("qwen3_vl_checkpoint", 4),
    ("internvl_checkpoint", 4),
    ("qwen3_5_checkpoint", 4),
]
"""A fixture, and how many layers its model gets; the pocket model is a Qwen2.5-VL."""

Setup = tuple[Any, Any, list[tuple[ReadyPrompt, ReadyPrompt]]]


def open_random(checkpoint: Path, num_layers: int, dtype: torch.dtype) -> tuple[Any, Any]:
    """A random model of the checkpoint's family with so many layers, and its processor."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(checkpoint)
    config.text_config.num_hidden_layers = num_layers
    if kinds := getattr(config.text_config, "layer_types", None):
        config.text_config.layer_types = (kinds * num_layers)[:num_layers]
    torch.manual_seed(1)
    model = transformers.AutoModelForImageTextToText.from_config(config, attn_implementation="sdpa")
    return model.to(dtype).eval(), load_processor(checkpoint)


def ready_pairs(model: Any, processor: Any) -> list[tuple[ReadyPrompt, ReadyPrompt]]:
    """Two pairs that differ in the size of their pictures and in the length of what stands around them."""
    rng = random.Random(0)
    pairs = []
    for question, system_prompt, size in (
        ("How many objects are there ?", None, (96, 96)),
        ("What colour is the object in the centre ?", "Describe the colours shapes .", (128, 64)),
    ):
        messages = chat_messages(question, num_images=1, style="plain", system_prompt=system_prompt)
        text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        images = [render(draw_scene(rng)).resize(size) for _ in range(2)]
        pairs.append(tuple(make_ready(model, processor, text, image) for image in images))
    assert pairs[0][0].grid != pairs[1][0].grid
    return pairs


def start(
    model: Any, pairs: Sequence[tuple[ReadyPrompt, ReadyPrompt]], swaps: Sequence[range]
) -> tuple[Continuation, list[tuple[int, range]]]:
    """All swaps of all pairs as one batch, and what each row is: the number of its pair, and its layers."""
    prefixes = read_prefixes(model, [prompt for pair in pairs for prompt in pair])
    target_rows = torch.arange(len(pairs)).repeat_interleave(len(swaps)) * 2
    plan = make_plan(swaps, len(prefixes.layers)).repeat(len(pairs), 1)
    rows = Continuation(
        model,
        compose(prefixes, target_rows, target_rows + 1, plan),
        prompts=[target for target, _ in pairs for _ in swaps],
        prefix_lengths=prefixes.lengths[target_rows],
    )
    return rows, [(number, layers) for number in range(len(pairs)) for layers in swaps]


def direct_logits(
    model: Any, pair: tuple[ReadyPrompt, ReadyPrompt], states: Any, layers: range, tokens: Sequence[int]
) -> torch.Tensor:
    """Logits of a reply with these first tokens, from one full pass over prompt and reply with hooks in it."""
    target, own, source = pair[0], *states
    more = torch.tensor(list(tokens), dtype=torch.long)
    longer = replace(
        target,
        input_ids=torch.cat([target.input_ids, more]),
        token_types=torch.cat([target.token_types, torch.zeros_like(more)]),
    )
    with swapped(model, target, layers, own=own, source=source), torch.inference_mode():
        logits = model(**model_inputs(model, longer), use_cache=False).logits
    return logits[0, len(target.input_ids) - 1 :]


@pytest.mark.cases_slow
@pytest.mark.parametrize(
    ("fixture", "num_layers", "dtype"),
    [
        pytest.param(fixture, num_layers, dtype, id=f"{fixture}-{num_layers}-{dtype}".replace("torch.float", "fp"))
        for fixture, num_layers in CASES
        for dtype in TOLERANCES
        if (fixture, dtype) != ("qwen3_5_checkpoint", torch.float64)  # its recurrent states are in fp32
    ],
)
def test_every_swap_equals_hidden_states_replaced_by_hooks(
    fixture: str, num_layers: int, dtype: torch.dtype, request: pytest.FixtureRequest
) -> None:
    model, processor = open_random(request.getfixturevalue(fixture), num_layers, dtype)
    every = ready_pairs(model, processor)[: 2 if num_layers < 12 else 1]
    for places in runs_together(model, [target for target, _ in every]):
        check_swaps(model, [every[place] for place in places], num_layers, dtype)


def check_swaps(
    model: Any, pairs: Sequence[tuple[ReadyPrompt, ReadyPrompt]], num_layers: int, dtype: torch.dtype
) -> None:
    modes = [swapped_layers(mode, num_layers, 2) for mode in ("from", "only", "window")]
    swaps = list(dict.fromkeys(layers for mode in modes for layers in mode))  # the last ones are alike in all modes
    rows, cases = start(model, pairs, swaps)
    answers = [torch.tensor([5, 9, 7]), torch.tensor([11, 3])]
    logprobs = rows.answer_logprobs([answers[number] for number, _ in cases])
    replies = rows.decode(max_new_tokens=MAX_NEW_TOKENS, stop_ids=[model.config.image_token_id])
    states = [[picture_states(model, prompt) for prompt in pair] for pair in pairs]
    errors, found = [], set()
    for row, (number, layers) in enumerate(cases):
        tokens, answer = replies[row].tokens, answers[number]
        logits = direct_logits(model, pairs[number], states[number], layers, tokens)
        errors.append((logits[0] - rows.logits[row]).abs().max())
        # Greedy at every token of this reply, so plain decoding would have given it too.
        assert tokens == tuple(logits[: len(tokens)].argmax(-1).tolist())
        best = logits[: len(replies[row].margins)].topk(2).values
        errors.append((best[:, 0] - best[:, 1] - torch.tensor(replies[row].margins, dtype=dtype)).abs().max())
        logits = direct_logits(model, pairs[number], states[number], layers, answer[:-1].tolist())
        errors.append((logits.log_softmax(-1).gather(1, answer[:, None]).sum() - logprobs[row]).abs())
        found.add((number, round(float(logprobs[row]), 3)))
    assert max(errors) < TOLERANCES[dtype]
    assert len(found) > num_layers  # else swaps would do nothing, and be equal for that


@pytest.mark.slow
def test_plain_decoding_with_hooks_gives_the_same_replies(pocket_checkpoint: Path) -> None:
    model, processor = open_random(pocket_checkpoint, 4, torch.float32)
    pairs = ready_pairs(model, processor)
    swaps = [*swapped_layers("from", 4, 1), *swapped_layers("only", 4, 1)]
    rows, _ = start(model, pairs, swaps)
    plain = rows.decode(max_new_tokens=MAX_NEW_TOKENS, stop_ids=[])
    ends = [plain[0].tokens[2], plain[-1].tokens[4]]  # tokens that end some rows early, and others not at all
    rows, _ = start(model, pairs, swaps)
    replies = rows.decode(max_new_tokens=MAX_NEW_TOKENS, stop_ids=ends)
    settings = {**greedy_settings(model, processor, MAX_NEW_TOKENS), "eos_token_id": ends}
    expected = [
        trimmed(tokens, ends)
        for target, source in pairs
        for tokens in generate_swapped(model, target, source, swaps, settings)
    ]
    assert [(reply.tokens, reply.finish_reason) for reply in replies] == [
        (reply.tokens, reply.finish_reason) for reply in expected
    ]
    assert len({len(reply.tokens) for reply in replies}) > 1
    assert {reply.finish_reason for reply in replies} == {"stop", "length"}


def test_a_full_swap_of_qwen3_vl_takes_deepstack_along(qwen3_vl_checkpoint: Path) -> None:
    model, processor = open_random(qwen3_vl_checkpoint, 4, torch.float32)
    (target, source), _ = ready_pairs(model, processor)
    rows, _ = start(model, [(target, source)], [range(4), range(1, 4)])
    own_run = direct_logits(model, (source, target), [picture_states(model, source)] * 2, range(0), [])[0]
    assert (rows.logits[0] - own_run).abs().max() < 1e-4
    # The other reading of "hidden states replaced at layer 1": the target's features are added to them afterwards.
    other_states = picture_states(model, source)
    pictured = target.token_types.bool()

    def only_there(module: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = args[0].clone()
        hidden[:, pictured] = other_states[1]
        return (hidden, *args[1:])

    handle = model.base_model.language_model.layers[1].register_forward_pre_hook(only_there)
    with torch.inference_mode():
        mixed = model(**model_inputs(model, target)).logits[0, -1]
    handle.remove()
    assert (rows.logits[1] - mixed).abs().max() > 1e-3


def test_what_the_model_read_before_does_not_matter(pocket_checkpoint: Path) -> None:
    model, processor = open_random(pocket_checkpoint, 4, torch.float32)
    first, second = ready_pairs(model, processor)
    swaps = swapped_layers("from", 4, 1)
    undisturbed, _ = start(model, [first], swaps)
    logits = undisturbed.logits
    settings = greedy_settings(model, processor, 4)
    plain_replies(model, second, settings)  # leaves this prompt's rope deltas in the model
    disturbed, _ = start(model, [first], swaps)
    plain_replies(model, second, settings)
    assert torch.equal(disturbed.logits, logits)
    assert disturbed.decode(max_new_tokens=4, stop_ids=[]) == undisturbed.decode(max_new_tokens=4, stop_ids=[])


def test_tokens_given_before_an_answer_are_not_scored(pocket_checkpoint: Path) -> None:
    model, processor = open_random(pocket_checkpoint, 4, torch.float32)
    pairs = ready_pairs(model, processor)[:1]
    rows, _ = start(model, pairs, [range(4)])
    whole, beginning = torch.tensor([5, 9, 7, 2]), torch.tensor([5, 9])
    rest = rows.answer_logprobs([whole], num_given=2)
    assert torch.allclose(rest, rows.answer_logprobs([whole]) - rows.answer_logprobs([beginning]), atol=1e-4)
    assert rest.item() < 0


@pytest.mark.parametrize("num_places", [0, 2])
def test_a_prompt_without_exactly_one_place_for_a_picture_is_refused(pocket_checkpoint: Path, num_places: int) -> None:
    model, processor = open_random(pocket_checkpoint, 4, torch.float32)
    image = render(draw_scene(random.Random(0)))
    with pytest.raises(ValueError, match=f"has {num_places} places for a picture; expected one <.image_pad.>"):
        make_ready(model, processor, "What is it ? " + "<|image_pad|>" * num_places, image)
