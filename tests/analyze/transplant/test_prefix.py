"""A shared prefix against whole passes, in every family: with each unit changed, the same cache and replies in bits."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from analyze.transplant.plan import Unit, expand_units
from analyze.transplant.prefix import Prefix
from data_builders.prompt_sets.prompts import Prompt
from eval.replies.decoding import Reply, Rows, decode, read_prompts
from eval.replies.generation import encode, greedy_settings, render_prompt
from models.blocks import make_partition
from models.layout import Layout, layout_of, stored_tensors
from models.loading import load_model, load_processor

FAMILIES = ("pocket", "qwen3_vl", "qwen3_5", "gemma4", "internvl", "qwen2_vl", "qwen2")
QUESTIONS = ("What is 2 + 3 ?", "There are 2 red and 4 blue objects . What is red + blue ?")
FACTS: dict[str, Any] = {"ability": "reasoning", "answer": "5", "answer_kind": "number"}
UNITS = ("llm:0", "llm:2.mlp", "late.attn", "vision", "vision:1", "projector", "embed", "norm", "llm:1+norm")


def texts_and_images(processor: Any, directory: Path, *, seeing: bool) -> tuple[list[str], list[list[Path]]]:
    paths: list[list[Path]] = []
    for number, size in enumerate(((84, 84), (56, 112))):
        picture = Image.new("RGB", size, (236, 236, 236))
        picture.paste((214, 40, 40), (10, 10, 30, 40))
        picture.save(directory / f"{number}.png")
        paths.append([directory / f"{number}.png"] if seeing else [])
    prompts = [
        Prompt(id=str(number), question=question, images=tuple(path.name for path in own), **FACTS)
        for number, (question, own) in enumerate(zip(QUESTIONS, paths, strict=True))
    ]
    return [render_prompt(processor, prompt, style="plain", system_prompt=None) for prompt in prompts], paths


@contextmanager
def changed(model: Any, unit: Unit) -> Iterator[None]:
    """Moves a unit's tensors at random while the context is open."""
    generator = torch.Generator().manual_seed(0)
    tensors = {name: tensor for name, tensor in stored_tensors(model).items() if name in unit.tensors}
    before = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    with torch.no_grad():
        for tensor in tensors.values():
            if tensor.isfinite().all():
                tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))
    try:
        yield
    finally:
        with torch.no_grad():
            for name, tensor in tensors.items():
                tensor.copy_(before[name])


def states(rows: Rows) -> list[torch.Tensor]:
    """Returns all tensors of a cache, by layer."""
    return [
        value
        for layer in rows.cache.layers
        for _, value in sorted(vars(layer).items())
        if isinstance(value, torch.Tensor) and value.numel()
    ]


def units_of(layout: Layout) -> list[Unit]:
    regions = {parameter.region for parameter in layout}
    wanted = [name for name in UNITS if name.split(":")[0] not in {"vision", "projector"} - regions]
    return expand_units(wanted, layout, make_partition(layout.num_layers))


@pytest.fixture(
    scope="module",
    params=[pytest.param("pocket"), *(pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES[1:])],
)
def checkpoint(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(f"{request.param}_checkpoint")
    return path


def test_a_changed_unit_reads_prompts_and_replies_as_in_a_whole_pass(checkpoint: Path, tmp_path: Path) -> None:
    model: Any = load_model(checkpoint, dtype="float32", attn_implementation="sdpa").eval()
    processor, layout = load_processor(checkpoint), layout_of(checkpoint)
    settings = greedy_settings(model, processor, 8)
    for seeing in (False,) if layout.family.text_only else (True, False):
        inputs = encode(model, processor, *texts_and_images(processor, tmp_path, seeing=seeing))
        prefix = Prefix(model, inputs, [0, 1])
        plain = answer(model, prefix.rows(None), settings)
        assert plain == answer(model, whole(model, inputs), settings)
        differ = 0
        for unit in units_of(layout):
            with changed(model, unit):
                expected, found = whole(model, inputs), prefix.rows(unit)
                assert len(states(found)) == len(states(expected)) > 0
                for one, other in zip(states(found), states(expected), strict=True):
                    assert torch.equal(one, other), (unit.name, seeing)
                replies = answer(model, found, settings)
                assert replies == answer(model, expected, settings), (unit.name, seeing)
                differ += replies != plain
        assert differ > 2
        assert answer(model, prefix.rows(None), settings) == plain  # no reply has changed the prefix


def test_layers_below_the_change_do_not_run_again(pocket_checkpoint: Path, tmp_path: Path) -> None:
    model: Any = load_model(pocket_checkpoint, dtype="float32", attn_implementation="sdpa").eval()
    processor, layout = load_processor(pocket_checkpoint), layout_of(pocket_checkpoint)
    inputs = encode(model, processor, *texts_and_images(processor, tmp_path, seeing=True))
    prefix = Prefix(model, inputs, [0, 1])
    ran: list[str] = []
    for name, module in model.named_modules():
        if name.endswith(("mlp", "visual.merger")):
            module.register_forward_hook(lambda *_, name=name: ran.append(name))
    layers = [f"model.language_model.layers.{number}.mlp" for number in range(layout.num_layers)]
    blocks = [f"model.visual.blocks.{number}.mlp" for number in range(layout.num_vision_blocks)]
    merger = "model.visual.merger.mlp", "model.visual.merger"
    for name, expected in (
        ("llm:4", [*merger, *layers[4:]]),
        ("vision:1", [blocks[1], *merger, *layers]),
        ("projector", [*merger, *layers]),
        ("norm", []),
    ):
        (unit,) = expand_units([name], layout, make_partition(layout.num_layers))
        ran.clear()
        prefix.rows(unit)
        assert ran == expected, name


def test_two_requests_of_one_prompt_share_its_reading(pocket_checkpoint: Path, tmp_path: Path) -> None:
    model: Any = load_model(pocket_checkpoint, dtype="float32", attn_implementation="sdpa").eval()
    processor = load_processor(pocket_checkpoint)
    inputs = encode(model, processor, *texts_and_images(processor, tmp_path, seeing=True))
    settings = greedy_settings(model, processor, 8)
    first, second, third = answer(model, Prefix(model, inputs, [1, 0, 1]).rows(None), settings)
    assert first == third != second


def whole(model: Any, inputs: Any) -> Rows:
    with torch.inference_mode():
        return read_prompts(model, inputs)


def answer(model: Any, rows: Rows, settings: dict[str, Any]) -> list[Reply]:
    with torch.inference_mode():
        return decode(model, rows, settings)
