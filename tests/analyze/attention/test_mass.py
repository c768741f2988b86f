"""Masses computed along with SDPA equal those of eager attention's matrices, for every family, padding and dtype."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import analyze.attention.mass
from analyze.attention.mass import IMPLEMENTATION, PADDING, AttentionMass, accumulating, set_decoder_attention
from analyze.attention.records import MEASURES, PARTS
from analyze.attention.replies import QUESTION, REPLY, SINK, VISION, PromptedReply, make_inputs, measure, read_reply
from data_builders.prompt_sets.prompts import Prompt
from eval.replies.generation import render_prompt, tokenizer_of
from models.families import family_of
from models.loading import load_model, load_processor

TOP_TOKENS = 2
FAMILIES = (
    "gemma4_checkpoint", "gemma4_large_checkpoint",
    "pocket_checkpoint", "qwen2_checkpoint", "qwen2_vl_checkpoint", "qwen3_vl_checkpoint", "internvl_checkpoint",
    "qwen3_5_checkpoint",
)  # fmt: skip
REPLIES = (
    ("How many red objects are there ?", 1, "<think>red red and 1 + 1 = 2</think><answer>2</answer>"),
    ("What is 2 * blue + red ?", 2, "it is 7"),
    ("What is red ?", 0, "<think>no picture of it</think> 3"),
    ("Where is it ?", 1, "north"),
)
"""Question, number of images, reply."""


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    directory = tmp_path_factory.mktemp("images")
    paths = []
    for number, size in enumerate([(96, 128), (64, 96)]):
        image = Image.new("RGB", size, (236, 236, 236))
        image.paste((214, 40, 40), (10, 10, 30 + number, 40))
        paths.append(directory / f"{number}.png")
        image.save(paths[-1])
    return paths


@pytest.fixture
def prepared(
    request: pytest.FixtureRequest, images: list[Path]
) -> Callable[[str], tuple[Any, Any, list[PromptedReply]]]:
    """Returns a family's model in fp32, its processor and its replies; a text-only family has no images."""

    def prepare(name: str) -> tuple[Any, Any, list[PromptedReply]]:
        checkpoint = request.getfixturevalue(name)
        model = load_model(checkpoint, dtype="float32", attn_implementation="sdpa").eval()
        processor = load_processor(checkpoint)
        text_only = name == "qwen2_checkpoint"
        family = family_of(model.config.model_type)
        marks = tokenizer_of(processor).convert_tokens_to_ids([getattr(processor, n) for n in family.picture_marks])
        rows = []
        for question, num_images, reply in REPLIES:
            paths = [] if text_only else images[:num_images]
            prompt = Prompt(
                id="p", ability="vision", question=question, answer="2", answer_kind="number",
                images=tuple(map(str, paths)),
            )  # fmt: skip
            row = read_reply(
                processor,
                text=render_prompt(processor, prompt, style="think", system_prompt="Be brief ."),
                question=question,
                image_paths=paths,
                reply=reply,
                vision_ids=() if text_only else (model.config.image_token_id,),
                picture_fields=family.picture_fields,
                mark_ids=marks,
            )
            assert row is not None
            rows.append(row)
        return model, processor, rows

    return prepare


def from_matrix(attention: np.ndarray, row: PromptedReply) -> np.ndarray:
    """[parts, heads, measures] of one layer from the whole matrix [heads, T, T], token by token."""
    segments = row.segments.numpy()
    found = np.full((len(PARTS), len(attention), len(MEASURES)), np.nan)
    for part, weights in enumerate(row.weights.numpy()):
        queries = np.flatnonzero(weights)
        if len(queries):
            found[part] = np.mean(
                [[from_line(head[query], segments, query) for head in attention] for query in queries], 0
            )
    return found


def from_line(line: np.ndarray, segments: np.ndarray, query: int) -> list[float]:
    def entropy(values: np.ndarray) -> float:
        return -sum(value * math.log(value) for value in values if value > 0)

    vision = line[segments == VISION]
    masses = [line[segments == number].sum() for number in range(REPLY)]
    earlier = line[(segments == REPLY) & (np.arange(len(line)) < query)].sum()
    seen = [np.nan, np.nan]  # also for a query from whose sliding window the picture is gone
    if vision.sum() > 0:
        among = vision / vision.sum()
        seen = [entropy(among), np.sort(among)[-TOP_TOKENS:].sum()]
    return [masses[0] if len(vision) else np.nan, *masses[1:], earlier, line[query], entropy(line), *seen]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.cases_slow
def test_masses_equal_eager_attentions_matrices_alone_and_in_a_batch(family: str, prepared: Callable[..., Any]) -> None:
    model, processor, rows = prepared(family)
    pad_id = tokenizer_of(processor).pad_token_id
    batched = measure(model, rows, pad_id=pad_id, top_tokens=TOP_TOKENS, rebuild_output=True)
    assert batched.sum_errors.max() < 1e-5
    assert batched.output_error < 1e-5
    set_decoder_attention(model, "eager")
    for number, row in enumerate(rows):
        inputs, _, _ = make_inputs([row], model, pad_id=pad_id)
        with torch.no_grad():
            matrices = model(**inputs, output_attentions=True, use_cache=False).attentions
        config = model.config.get_text_config()
        kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
        measured = [from_matrix(matrix[0].double().numpy(), row) for matrix in matrices]
        masses = iter(measured)
        nothing = np.full_like(measured[0], np.nan)  # a layer with a recurrent state has no matrix
        expected = np.stack([nothing if kind == "linear_attention" else next(masses) for kind in kinds], 1)
        set_decoder_attention(model, "sdpa")
        alone = measure(model, [row], pad_id=pad_id, top_tokens=TOP_TOKENS)
        set_decoder_attention(model, "eager")
        rounding = 5 if family.startswith("gemma4") else 1  # it does not scale its scores down
        np.testing.assert_allclose(alone.result()[0].numpy(), expected, atol=2e-6 * rounding)
        np.testing.assert_allclose(batched.result()[number].numpy(), expected, atol=1e-5 * rounding)


def test_equal_attention_gives_the_closed_forms(prepared: Callable[..., Any]) -> None:
    """With queries of zero every visible token gets 1/(i+1)."""
    model, processor, rows = prepared("pocket_checkpoint")
    for layer in model.model.language_model.layers:
        layer.self_attn.q_proj.weight.data.zero_()
        layer.self_attn.q_proj.bias.data.zero_()
    found = measure(model, rows, pad_id=tokenizer_of(processor).pad_token_id, top_tokens=TOP_TOKENS).result()
    for row, masses in zip(rows, found[:, 0], strict=True):
        means = dict(zip(MEASURES, masses.double().numpy().reshape(-1, len(MEASURES)).T, strict=True))
        positions = np.flatnonzero(row.segments == REPLY)
        if row.num_vision_tokens:
            np.testing.assert_allclose(means["vision"], row.uniform["reply"], rtol=1e-5)
            np.testing.assert_allclose(means["vision_entropy"], math.log(row.num_vision_tokens), rtol=1e-5)
            np.testing.assert_allclose(means["vision_top_share"], TOP_TOKENS / row.num_vision_tokens, rtol=1e-5)
        np.testing.assert_allclose(means["entropy"], np.log(positions + 1).mean(), rtol=1e-5)
        np.testing.assert_allclose(means["sink"], (1 / (positions + 1)).mean(), rtol=1e-5)


def test_padding_on_the_left_and_small_chunks_change_nothing(
    prepared: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor, rows = prepared("qwen3_vl_checkpoint")
    pad_id = tokenizer_of(processor).pad_token_id
    expected = measure(model, rows, pad_id=pad_id, top_tokens=TOP_TOKENS).result().numpy()
    monkeypatch.setattr(analyze.attention.mass, "CHUNK_ELEMENTS", 1)
    chunked = measure(model, rows, pad_id=pad_id, top_tokens=TOP_TOKENS).result().numpy()
    np.testing.assert_allclose(chunked, expected, atol=1e-6)

    inputs, segments, weights = make_inputs(rows, model, pad_id=pad_id)
    lengths = (segments != PADDING).sum(1).tolist()
    for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
        inputs[name] = to_the_right(inputs[name], lengths)
    mass = AttentionMass(to_the_right(segments, lengths), to_the_right(weights, lengths), top_tokens=TOP_TOKENS)
    with torch.no_grad(), accumulating(model, mass):
        model(**inputs, use_cache=False)
    assert not inputs["attention_mask"][1:, 0].all()
    np.testing.assert_allclose(mass.result().numpy(), expected, atol=1e-5)


def to_the_right(padded: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    """Moves the padding of each row from its end to its beginning."""
    return torch.stack([row.roll(padded.shape[-1] - n, -1) for row, n in zip(padded, lengths, strict=True)])


def test_nothing_is_left_behind_not_even_by_a_failure(prepared: Callable[..., Any]) -> None:
    model, processor, rows = prepared("pocket_checkpoint")
    inputs, segments, weights = make_inputs(rows, model, pad_id=tokenizer_of(processor).pad_token_id)
    with torch.no_grad():
        plain = model(**inputs, use_cache=False).logits
        with accumulating(model, AttentionMass(segments, weights, top_tokens=1)):
            assert model.config.vision_config._attn_implementation == "sdpa"
            assert torch.equal(model(**inputs, use_cache=False).logits, plain)
    with pytest.raises(KeyError), accumulating(model, AttentionMass(segments, weights, top_tokens=1)):
        raise KeyError("in the middle")
    assert IMPLEMENTATION not in ALL_ATTENTION_FUNCTIONS
    assert model.config.text_config._attn_implementation == "sdpa"
    with torch.no_grad():
        assert torch.equal(model(**inputs, use_cache=False).logits, plain)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.cases_slow
def test_bf16_gives_what_fp32_gives_to_its_precision(family: str, prepared: Callable[..., Any]) -> None:
    model, processor, rows = prepared(family)
    pad_id = tokenizer_of(processor).pad_token_id
    expected = measure(model, rows, pad_id=pad_id, top_tokens=TOP_TOKENS).result().numpy()
    found = measure(model.bfloat16(), rows, pad_id=pad_id, top_tokens=TOP_TOKENS, rebuild_output=True)
    assert found.sum_errors.max() < 1e-5  # the masses themselves are fp32
    assert found.output_error < 0.02
    # Gemma 4 does not scale its scores down, so from its second layer on they differ more.
    layers = slice(1 if family.startswith("gemma4") else None)
    np.testing.assert_allclose(found.result().numpy()[:, :, layers, :, :6], expected[:, :, layers, :, :6], atol=0.03)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_gpu_gives_what_the_cpu_gives(dtype: str, prepared: Callable[..., Any]) -> None:
    model, processor, rows = prepared("pocket_checkpoint")
    pad_id = tokenizer_of(processor).pad_token_id
    model = model.to(getattr(torch, dtype))
    expected = measure(model, rows, pad_id=pad_id, top_tokens=TOP_TOKENS).result().numpy()
    found = measure(model.cuda(), rows, pad_id=pad_id, top_tokens=TOP_TOKENS).result().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4 if dtype == "float32" else 0.05)


def test_every_token_is_filed_under_what_it_is(prepared: Callable[..., Any]) -> None:
    _, processor, rows = prepared("pocket_checkpoint")
    tokenizer = tokenizer_of(processor)
    for (question, num_images, reply), row in zip(REPLIES, rows, strict=True):

        def text(number: int, row: PromptedReply = row) -> str:
            return str(tokenizer.decode(row.input_ids[row.segments == number]))

        assert text(QUESTION).strip() == question
        assert text(REPLY) == reply
        assert text(SINK) == "<|im_start|>"
        grids = row.images["image_grid_thw"] if num_images else torch.zeros(1, 3)
        assert row.num_vision_tokens == int(grids.prod(1).sum()) // 4
    think, answer = (tokenizer.decode(rows[0].input_ids[rows[0].weights[number] > 0]) for number in (1, 2))
    assert (think, answer) == ("red red and 1 + 1 = 2", "2")
    assert not rows[1].weights[1:].any()  # without tags there are no parts
    assert tokenizer.decode(rows[2].input_ids[rows[2].weights[2] > 0]).strip() == "3"  # what follows the thinking


def test_a_reply_ends_where_its_turn_ends_and_an_empty_one_is_none(
    pocket_checkpoint: Path, prepared: Callable[..., Any]
) -> None:
    _, processor, _ = prepared("pocket_checkpoint")
    given: dict[str, Any] = {
        "text": "user What shape is it ? assistant", "question": "What shape is it ?", "image_paths": [],
        "picture_fields": (), "mark_ids": (),
    }  # fmt: skip
    row = read_reply(processor, reply="red<|im_end|>\nuser more", vision_ids=(), **given)
    assert row is not None and row.num_reply_tokens == 1
    assert read_reply(processor, reply="<|im_end|>", vision_ids=(), **given) is None
    with pytest.raises(ValueError, match="chat template changed the question"):
        read_reply(processor, reply="red", vision_ids=(), **{**given, "question": "Which ?"})
