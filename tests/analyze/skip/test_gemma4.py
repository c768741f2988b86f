"""Skipping in Gemma 4, whose layers do more than add two terms, against models in which the skipped parts are gone."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from analyze.skip.generation import Rows, answer_rows
from analyze.skip.layers import RowwiseSkip
from analyze.skip.plan import Configuration, make_configurations
from eval.replies.generation import generate, greedy_settings
from models.blocks import make_partition
from models.layout import layout_of
from models.loading import load_model, load_processor
from tests.gemma4 import NUM_LAYERS

QUESTIONS = ("What is 2 + 3 ?", "There are 2 red and 4 blue objects . What is red + blue ?")
NUM_TOKENS = 6


class Passing(nn.Module):
    """A layer whose output is its input; what later layers read of its keys and values is computed all the same."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        self.layer(hidden_states, *args, **kwargs)
        return hidden_states


class Gone(nn.Module):
    """A layer that is not there."""

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return hidden_states


def rebuilt(model: Any, configuration: Configuration, kind: str) -> Any:
    """Returns a model in which what a configuration leaves out is gone."""
    changed = copy.deepcopy(model)
    layers = changed.model.language_model.layers
    for number in configuration.layers:
        layer = layers[number]
        if configuration.kind in ("attn", "mlp"):
            last = {"attn": layer.self_attn.o_proj, "mlp": layer.mlp.down_proj}[configuration.kind]
            nn.init.zeros_(last.weight)
        else:
            layers[number] = Passing(layer) if kind == "small" else Gone()
    return changed


@pytest.fixture(params=["small", "large"])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Any, Any, list[str], list[list[Path]]]:
    kind = str(request.param)
    checkpoint = request.getfixturevalue("gemma4_checkpoint" if kind == "small" else "gemma4_large_checkpoint")
    processor: Any = load_processor(checkpoint)
    texts, images = [], []
    for number, (question, size) in enumerate(zip(QUESTIONS, ((84, 84), (56, 112)), strict=True)):
        picture = Image.new("RGB", size, (236, 236, 236))
        picture.paste((214, 40, 40), (10, 10, 30, 40))
        picture.save(tmp_path / f"{number}.png")
        images.append([tmp_path / f"{number}.png"])
        content = [{"type": "image"}, {"type": "text", "text": question}]
        texts.append(processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True))
    return kind, load_model(checkpoint, dtype="float32").eval(), processor, texts, images


def configurations(checkpoint_layout: Any, kinds: list[str]) -> list[Configuration]:
    return make_configurations(kinds, checkpoint_layout, make_partition(NUM_LAYERS))


def plans(chosen: list[Configuration]) -> torch.Tensor:
    return torch.stack([torch.from_numpy(configuration.plan(NUM_LAYERS)) for configuration in chosen])


@pytest.mark.slow
@torch.inference_mode()
def test_each_row_has_the_logits_of_a_model_rebuilt_without_what_it_leaves_out(
    case: tuple[str, Any, Any, list[str], list[list[Path]]], gemma4_checkpoint: Path
) -> None:
    kind, model, processor, texts, images = case
    opened = [[Image.open(path) for path in own] for own in images]
    inputs = processor(text=texts, images=opened, padding=True, return_tensors="pt")
    mask = inputs["attention_mask"].bool()
    plain = model(**inputs, use_cache=False).logits
    for configuration in configurations(layout_of(gemma4_checkpoint), ["layers", "blocks", "attn", "mlp"]):
        with RowwiseSkip(model) as skip:
            skip.leave_out(plans([configuration, Configuration(name="none", kind="none", omitted=frozenset())]))
            skipped = model(**inputs, use_cache=False).logits
        expected = rebuilt(model, configuration, kind)(**inputs, use_cache=False).logits
        assert (skipped[0] - expected[0])[mask[0]].abs().max() <= 1e-5, configuration.name
        assert (skipped[1] - plain[1])[mask[1]].abs().max() == 0, configuration.name
        if configuration.omitted:
            assert (skipped[0] - plain[0])[mask[0]].abs().max() > 1e-3, configuration.name


@pytest.mark.slow
def test_rows_answer_as_models_rebuilt_without_what_they_leave_out(
    case: tuple[str, Any, Any, list[str], list[list[Path]]], gemma4_checkpoint: Path
) -> None:
    _, model, processor, texts, images = case
    settings = greedy_settings(model, processor, NUM_TOKENS)
    chosen = configurations(layout_of(gemma4_checkpoint), ["layers", "late"])
    rows = [(prompt, configuration) for prompt in range(len(texts)) for configuration in chosen]
    batch = Rows(
        texts=texts,
        images=images,
        prompts=[prompt for prompt, _ in rows],
        plan=plans([configuration for _, configuration in rows]),
    )
    with RowwiseSkip(model) as skip:
        answers = answer_rows(model, processor, skip, batch, settings, repetition_window=0)
    for (prompt, configuration), answer in zip(rows, answers, strict=True):
        alone = rebuilt(model, configuration, "small")  # a cache needs the keys and values of every layer
        assert [answer] == generate(alone, processor, [texts[prompt]], [images[prompt]], settings), configuration.name
    assert len({answer.response for answer in answers}) > len(texts)
