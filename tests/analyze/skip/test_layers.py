"""Skipping against models in which the skipped parts are really gone, in logits and in answers.

What holds for every family alike is checked in `tests/models/check/test_families.py`.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from analyze.skip.generation import Rows, answer_rows
from analyze.skip.layers import Branches, RowwiseSkip
from analyze.skip.plan import Configuration, make_configurations
from analyze.skip.reference import decoder_of, rebuilt_without, without_layers
from data_builders.prompt_sets.prompts import Prompt
from eval.replies.generation import Generation, generate, greedy_settings, render_prompt, tokenizer_of
from models.blocks import make_partition
from models.layout import layout_of
from models.loading import load_model, load_processor

QUESTIONS = ("What is 2 + 3 ?", "There are 2 red and 4 blue objects . What is red + blue ?")
FACTS = {"ability": "reasoning", "answer": "5", "answer_kind": "number"}


class Case:
    """A checkpoint with prompts of different lengths, with and without pictures."""

    def __init__(self, checkpoint: Path, directory: Path, dtype: str) -> None:
        self.model = load_model(checkpoint, dtype=dtype, attn_implementation="sdpa").eval()
        self.processor = load_processor(checkpoint)
        layout = layout_of(checkpoint)
        self.text_only, self.family = layout.family.text_only, layout.family.model_type
        self.num_layers = layout.num_layers
        partition = make_partition(layout.num_layers)
        self.configurations = make_configurations(["layers", "blocks", "attn", "mlp"], layout, partition)
        self.blocks = {block: partition.layers(block) for block in ("early", "mid", "late")}
        self.images = []
        for name, size in (("a", (84, 84)), ("b", (56, 112))):
            picture = Image.new("RGB", size, (236, 236, 236))
            picture.paste((214, 40, 40), (10, 10, 30, 40))
            picture.save(directory / f"{name}.png")
            self.images.append(directory / f"{name}.png")

    def prompts(self, *, seeing: bool) -> tuple[list[str], list[list[Path]]]:
        paths = [[path] if seeing else [] for path in self.images]
        prompts = [
            Prompt(id=str(number), question=question, images=tuple(path.name for path in own), **FACTS)  # type: ignore[arg-type]
            for number, (question, own) in enumerate(zip(QUESTIONS, paths, strict=True))
        ]
        texts = [render_prompt(self.processor, prompt, style="plain", system_prompt=None) for prompt in prompts]
        return texts, paths

    def inputs(self, *, seeing: bool) -> Any:
        texts, paths = self.prompts(seeing=seeing)
        images = [Image.open(path) for own in paths for path in own]
        return self.processor(text=texts, padding=True, return_tensors="pt", **({"images": images} if images else {}))

    def plain_answer(self, model: Any, text: str, paths: list[Path], settings: dict[str, Any]) -> Generation:
        """Transformers' own `generate`, with nothing of ours."""
        images = [Image.open(path) for path in paths]
        inputs = self.processor(text=[text], return_tensors="pt", **({"images": images} if images else {}))
        kinds = getattr(model.config.get_text_config(), "layer_types", None) or ["full_attention"]
        if "full_attention" not in kinds:
            settings = {**settings, "use_cache": False}  # Transformers' cache counts tokens by such a layer
        written = model.generate(**inputs, **settings)[0, inputs["input_ids"].shape[1] :].tolist()
        ends = settings["eos_token_id"]
        length = next((place for place, token in enumerate(written) if token in ends), len(written))
        reply = tokenizer_of(self.processor).decode(written[:length], skip_special_tokens=True)
        return Generation(reply, length, "length" if length == len(written) else "stop")

    def rebuilt(self, configuration: Configuration) -> Any:
        """Returns a model in which what the configuration leaves out is gone."""
        return rebuilt_without(self.model, configuration)


@pytest.fixture
def checkpoint(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(f"{request.param}_checkpoint")
    return path


def plans(configurations: list[Configuration], num_layers: int) -> torch.Tensor:
    return torch.from_numpy(np.stack([configuration.plan(num_layers) for configuration in configurations]))


@torch.inference_mode()
def logits(model: Any, inputs: Any) -> torch.Tensor:
    output: torch.Tensor = model(**inputs, use_cache=False).logits
    return output


@pytest.mark.cases_slow
@pytest.mark.parametrize(
    ("checkpoint", "dtype", "tolerance"),
    [
        ("pocket", "float32", 1e-5),
        ("qwen3_vl", "float32", 1e-5),
        ("qwen2_vl", "float64", 1e-12),
    ],
    indirect=["checkpoint"],
)
def test_each_row_has_the_logits_of_a_model_rebuilt_without_what_it_leaves_out(
    checkpoint: Path, tmp_path: Path, dtype: str, tolerance: float
) -> None:
    case = Case(checkpoint, tmp_path, dtype)
    inputs = case.inputs(seeing=not case.text_only)
    mask = inputs["attention_mask"].bool()
    plain = logits(case.model, inputs)
    for configuration in case.configurations:
        plan = plans([configuration, case.configurations[0]], case.num_layers)
        with RowwiseSkip(case.model) as skip:
            skip.leave_out(plan)
            skipped = logits(case.model, inputs)
        expected = logits(case.rebuilt(configuration), inputs)
        assert (skipped[0] - expected[0])[mask[0]].abs().max() <= tolerance, configuration.name
        assert (skipped[1] - plain[1])[mask[1]].abs().max() == 0, configuration.name
        if configuration.omitted:
            assert (skipped[0] - plain[0])[mask[0]].abs().max() > 100 * tolerance, configuration.name


@pytest.mark.cases_slow
@pytest.mark.parametrize(
    ("checkpoint", "seeing"),
    [
        ("pocket", True),
        ("qwen3_vl", True),
        ("qwen3_5", True),
        pytest.param("qwen3_vl", False, marks=pytest.mark.slow),
    ],
    indirect=["checkpoint"],
)
def test_rows_answer_as_models_rebuilt_without_what_they_leave_out(
    checkpoint: Path, tmp_path: Path, seeing: bool
) -> None:
    case = Case(checkpoint, tmp_path, "float32")
    texts, images = case.prompts(seeing=seeing)
    settings = greedy_settings(case.model, case.processor, 10)
    rows = [(prompt, configuration) for prompt in range(len(texts)) for configuration in case.configurations]
    batch = Rows(
        texts=texts,
        images=images,
        prompts=[prompt for prompt, _ in rows],
        plan=plans([configuration for _, configuration in rows], case.num_layers),
    )
    with RowwiseSkip(case.model) as skip:
        answers = answer_rows(case.model, case.processor, skip, batch, settings, repetition_window=0)
    expected = {}
    for configuration in case.configurations:
        model = case.rebuilt(configuration)
        # One at a time: padding would be placed by the length of layer 0's cache, and a layer that passes on has none.
        expected[configuration.name] = [
            case.plain_answer(model, text, paths, settings) for text, paths in zip(texts, images, strict=True)
        ]
    assert answers == [expected[configuration.name][prompt] for prompt, configuration in rows]
    assert len({answer.response for answer in answers}) > len(texts)


def test_a_pass_over_prompts_branches_into_the_logits_of_all_rows(qwen2_vl_checkpoint: Path, tmp_path: Path) -> None:
    case = Case(qwen2_vl_checkpoint, tmp_path, "float64")
    inputs = case.inputs(seeing=True)
    prompts = [number for number in (1, 0) for _ in case.configurations]
    plan = plans(case.configurations * 2, case.num_layers)
    branches = Branches(prompts, plan)
    with RowwiseSkip(case.model) as skip:
        skip.branch(branches)
        branched = logits(case.model, inputs)[branches.of_row[-1]]
        skip.leave_out(plan)
        every = [image for number in prompts for image in [Image.open(case.images[number])]]
        texts = [case.prompts(seeing=True)[0][number] for number in prompts]
        whole = logits(case.model, case.processor(text=texts, images=every, padding=True, return_tensors="pt"))
    mask = inputs["attention_mask"].bool()[prompts]
    assert (branched - whole)[mask].abs().max() <= 1e-12


def test_rows_that_are_alike_so_far_are_computed_once() -> None:
    num_layers = 5
    plan = torch.zeros(1 + num_layers, num_layers, 2, dtype=torch.bool)
    for layer in range(num_layers):
        plan[1 + layer, layer] = True
    one, two = Branches([0] * 6, plan), Branches([0] * 6 + [1] * 6, plan.repeat(2, 1, 1))
    assert one.num_states == [2, 3, 4, 5, 6]
    assert two.num_states == [4, 6, 8, 10, 12]
    for layer in range(num_layers):
        assert torch.equal(two.left_out[layer][two.of_row[layer]], plan.repeat(2, 1, 1)[:, layer])
        assert torch.equal(two.prompts[layer][two.of_row[layer]], torch.tensor([0] * 6 + [1] * 6))
        before = two.of_row[layer - 1] if layer else torch.tensor([0] * 6 + [1] * 6)
        assert torch.equal(two.parents[layer][two.of_row[layer]], before)


def test_nothing_of_a_skipped_layer_reaches_its_row(pocket_checkpoint: Path, tmp_path: Path) -> None:
    """Not even where the layer computes nothing but NaN, keys and values included."""
    case = Case(pocket_checkpoint, tmp_path, "float32")
    texts, images = case.prompts(seeing=True)
    settings = greedy_settings(case.model, case.processor, 8)
    skipped = next(c for c in case.configurations if c.name == "llm:2")
    expected = generate(without_layers(case.model, [2]), case.processor, texts, images, settings)
    for parameter in decoder_of(case.model).layers[2].parameters():
        torch.nn.init.constant_(parameter, float("nan"))
    batch = Rows(texts=texts, images=images, prompts=[0, 1], plan=plans([skipped] * 2, case.num_layers))
    with RowwiseSkip(case.model) as skip:
        assert answer_rows(case.model, case.processor, skip, batch, settings, repetition_window=0) == expected


def test_a_model_is_itself_again_once_the_probe_is_closed(pocket_checkpoint: Path, tmp_path: Path) -> None:
    case = Case(pocket_checkpoint, tmp_path, "float32")
    inputs = case.inputs(seeing=True)
    before = logits(case.model, inputs)
    with pytest.raises(ZeroDivisionError), RowwiseSkip(case.model) as skip:
        assert torch.equal(logits(case.model, inputs), before)
        skip.leave_out(plans(case.configurations[1:3], case.num_layers))
        assert not torch.equal(logits(case.model, inputs), before)
        raise ZeroDivisionError
    assert torch.equal(logits(case.model, inputs), before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in case.model.modules())
