"""Decoding of real (untrained) checkpoints of all families: what is written is what Transformers alone writes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from data_builders.prompt_sets.prompts import Prompt
from eval.replies.generation import (
    LENGTH,
    REPETITION,
    STOP,
    SeededSampler,
    generate,
    greedy_settings,
    render_prompt,
    resolved_settings,
    tokenizer_of,
)
from models.loading import load_model, load_processor

FAMILIES = ("pocket", "qwen2", "qwen2_vl", "qwen3_vl", "qwen3_5", "internvl", "gemma4", "gemma4_large")
NO_TOKEN = 10**6
QUESTIONS = (
    "What is 2 + 3 ?",
    "How many red objects are there ?",
    "Where is it ?",
    "There are 4 . What is red ?",
    "Count .",
)


class Case:
    """A checkpoint with prompts: with one picture each where it sees."""

    def __init__(self, checkpoint: Path, directory: Path, *, seeing: bool) -> None:
        self.model: Any = load_model(checkpoint, dtype="float32").eval()
        self.processor: Any = load_processor(checkpoint)
        self.images: list[list[Path]] = [[] for _ in QUESTIONS]
        if seeing:
            for number, own in enumerate(self.images):
                path = directory / f"{number}.png"
                image = Image.new("RGB", (64 + 32 * (number % 2), 64), (122, 116, 104))
                image.paste((214, 40 * number, 40), (4, 4, 20 + 4 * number, 30))
                image.save(path)
                own.append(path)
        self.texts = [
            render_prompt(
                self.processor,
                Prompt(
                    id="p", ability="a", question=text, answer="1", answer_kind="number", images=tuple(map(str, own))
                ),
                style="plain",
                system_prompt=None,
            )
            for text, own in zip(QUESTIONS, self.images, strict=True)
        ]

    def settings(self, num_new_tokens: int, ends: Sequence[int] = ()) -> dict[str, Any]:
        settings = greedy_settings(self.model, self.processor, num_new_tokens)
        return {**settings, "eos_token_id": [*settings["eos_token_id"], *ends]}

    def plain(self, number: int, num_new_tokens: int) -> list[int]:
        """One prompt alone, by Transformers' own `generate`, never ended: no token has the number -1."""
        images = [Image.open(path) for path in self.images[number]]
        given = {"images": images} if images else {}
        inputs = self.processor(text=[self.texts[number]], return_tensors="pt", **given)
        output = self.model.generate(**inputs, do_sample=False, max_new_tokens=num_new_tokens, eos_token_id=NO_TOKEN)
        tokens: list[int] = output[0, inputs["input_ids"].shape[1] :].tolist()
        return tokens


@pytest.fixture(
    params=[(name, seeing) for name in FAMILIES for seeing in (False, True) if (name, seeing) != ("qwen2", True)]
)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    name, seeing = request.param
    return Case(request.getfixturevalue(f"{name}_checkpoint"), tmp_path, seeing=seeing)


def spreading_token(replies: Sequence[Sequence[int]]) -> int:
    """Returns the token that would end these replies at the most different places."""
    return max(
        sorted({token for reply in replies for token in reply}),
        key=lambda token: len({reply.index(token) if token in reply else -1 for reply in replies}),
    )


@pytest.mark.cases_slow
def test_replies_in_a_batch_whose_rows_leave_are_those_of_transformers_one_by_one(case: Case) -> None:
    num_tokens = 20
    whole = [case.plain(number, num_tokens) for number in range(len(QUESTIONS))]
    settings = case.settings(num_tokens, [spreading_token(whole)])
    replies = generate(case.model, case.processor, case.texts, case.images, settings)
    expected = []
    for tokens in whole:
        length = next((place for place, token in enumerate(tokens) if token in settings["eos_token_id"]), num_tokens)
        text = tokenizer_of(case.processor).decode(tokens[:length], skip_special_tokens=True)
        expected.append((text, length, LENGTH if length == num_tokens else STOP))
    assert [(reply.response, reply.num_tokens, reply.finish_reason) for reply in replies] == expected
    assert len({length for _, length, _ in expected}) > 1


@pytest.mark.slow
def test_draws_do_not_depend_on_what_stands_beside_them_or_on_rows_that_leave(
    pocket_checkpoint: Path, tmp_path: Path
) -> None:
    case = Case(pocket_checkpoint, tmp_path, seeing=True)
    seeds = list(range(4 * len(QUESTIONS)))
    rows = [seed % len(QUESTIONS) for seed in seeds]

    def draw(chosen: Sequence[int], ends: Sequence[int]) -> list[Any]:
        sampler = SeededSampler([seeds[place] for place in chosen], temperature=0.7, device=case.model.device)
        numbers = sorted({rows[place] for place in chosen})
        return generate(
            case.model,
            case.processor,
            [case.texts[number] for number in numbers],
            [case.images[number] for number in numbers],
            case.settings(12, ends),
            sampler,
            rows=[numbers.index(rows[place]) for place in chosen],
        )

    endings = list(range(10, 60))  # a tenth of the vocabulary: replies end at all lengths
    together = draw(range(len(seeds)), endings)
    assert [draw([place], endings)[0] for place in range(len(seeds))] == together
    assert len({reply.num_tokens for reply in together}) > 3 and len({reply.response for reply in together}) > 10
    never = draw(range(len(seeds)), ())
    assert all(
        whole.response.startswith(cut.response.rstrip("\ufffd")) for whole, cut in zip(never, together, strict=True)
    )


def test_draws_have_the_probabilities_of_the_nucleus() -> None:
    scores = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05]))
    num_draws = 4000
    for top_p, kept in ((1.0, 4), (0.81, 3), (0.8, 2), (0.4, 1)):
        sampler = SeededSampler(range(num_draws), temperature=1.0, device=torch.device("cpu"), top_p=top_p)
        drawn = sampler(torch.zeros(num_draws, 1), scores.expand(num_draws, 4)).argmax(-1)
        found = torch.bincount(drawn, minlength=4) / num_draws
        expected = torch.where(torch.arange(4) < kept, scores.exp(), 0.0)
        assert torch.allclose(found, expected / expected.sum(), atol=0.03)
        assert (found[kept:] == 0).all()


def test_a_temperature_divides_the_logits() -> None:
    scores = torch.tensor([0.0, 1.0])
    num_draws = 4000
    sampler = SeededSampler(range(num_draws), temperature=0.5, device=torch.device("cpu"))
    drawn = sampler(torch.zeros(num_draws, 1), scores.expand(num_draws, 2)).argmax(-1)
    assert float(drawn.float().mean()) == pytest.approx(1 / (1 + 2.718281828**-2), abs=0.03)


def test_a_circling_reply_is_ended_and_its_beginning_kept(pocket_checkpoint: Path, tmp_path: Path) -> None:
    case = Case(pocket_checkpoint, tmp_path, seeing=False)
    with torch.no_grad():  # each token then predicts itself: every reply repeats at once
        for layer in case.model.base_model.language_model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    free = generate(case.model, case.processor, case.texts, case.images, case.settings(60))
    ended = generate(case.model, case.processor, case.texts, case.images, case.settings(60), repetition_window=18)
    assert {reply.finish_reason for reply in free} == {LENGTH}
    assert {(reply.finish_reason, reply.num_tokens) for reply in ended} == {(REPETITION, 24)}
    assert all(whole.response.startswith(cut.response) for whole, cut in zip(free, ended, strict=True))


def test_nothing_of_the_checkpoints_own_generation_settings_is_inherited(
    pocket_checkpoint: Path, tmp_path: Path
) -> None:
    case = Case(pocket_checkpoint, tmp_path, seeing=False)
    before = generate(case.model, case.processor, case.texts, case.images, case.settings(10))
    config = case.model.generation_config
    config.repetition_penalty, config.do_sample, config.temperature, config.num_beams = 5.0, True, 3.0, 3
    assert generate(case.model, case.processor, case.texts, case.images, case.settings(10)) == before


@pytest.mark.parametrize("name", FAMILIES)
def test_settings_resolved_without_the_model_are_those_of_the_model(request: pytest.FixtureRequest, name: str) -> None:
    directory = request.getfixturevalue(f"{name}_checkpoint")
    processor = load_processor(directory)
    expected = greedy_settings(load_model(directory), processor, 7)
    assert resolved_settings(directory, processor, 7) == expected
    assert expected["eos_token_id"] and expected["repetition_penalty"] == 1.0
