"""Faults between trainer and vLLM, planted with a real vLLM: each stops the run before its first step."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_builders.prompt_sets.prompts import read_prompts, write_prompts
from tests.train.rollouts.vllm_runs import environment, flags, record, train  # noqa: F401

pytestmark = pytest.mark.vllm


def _expand_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """As TRL hands pictures over."""
    monkeypatch.setattr("train.rollouts.vllm.one_token_a_picture", lambda ids, *_, **__: list(ids))


def _swap_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two prompts' pictures of one size change places, so that every token stays as it is."""
    from trl.generation.vllm_generation import VLLMGeneration

    generate = VLLMGeneration.generate

    def swapped(self: Any, prompts: Any, images: Any, *rest: Any) -> Any:
        if images is not None:
            seeing = [row for row, own in enumerate(images) if own]
            same = [(a, b) for a in seeing for b in seeing if _differ(images[a][0], images[b][0])]
            assert same
            one, other = same[0]
            images = [*images]
            images[one], images[other] = images[other], images[one]
        return generate(self, prompts, images, *rest)

    monkeypatch.setattr(VLLMGeneration, "generate", swapped)


def _differ(one: Any, other: Any) -> bool:
    return bool(one.size == other.size and one.tobytes() != other.tobytes())


def _forget_a_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    from train.rollouts.vllm import CheckedGeneration

    pairs = CheckedGeneration._iter_named_params

    def without_one(self: Any) -> Any:
        yield from (pair for pair in pairs(self) if "layers.2.mlp.down_proj" not in pair[0])

    monkeypatch.setattr(CheckedGeneration, "_iter_named_params", without_one)


def _round_a_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    from train.rollouts.vllm import CheckedGeneration

    pairs = CheckedGeneration._iter_named_params

    def damaged(self: Any) -> Any:
        for name, tensor in pairs(self):
            if "layers.2.mlp.down_proj" in name:
                model = self._engine_model()
                model.load_weights([(name, tensor)])
                load = model.load_weights
                model.load_weights = lambda _, load=load, name=name, tensor=tensor: load([(name, tensor + 1e-6)])
                yield name, tensor
                model.load_weights = load
            else:
                yield name, tensor

    monkeypatch.setattr(CheckedGeneration, "_iter_named_params", damaged)


def _another_template(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine renders prompts with a system message that the trainer does not have."""
    from trl.generation.vllm_generation import VLLMGeneration

    generate = VLLMGeneration.generate

    def rendered(self: Any, prompts: Any, *rest: Any) -> Any:
        system = self.processing_class.tokenizer("<|im_start|>system\nHelp .<|im_end|>\n")["input_ids"]
        return generate(self, [[*system, *ids] for ids in prompts], *rest)

    monkeypatch.setattr(VLLMGeneration, "generate", rendered)


@pytest.mark.parametrize(
    ("plant", "said"),
    [
        (_expand_twice, r"vLLM read another prompt than the trainer scores: .* tokens in the trainer and"),
        (_swap_pictures, r"different log-probabilities in prompts with pictures: .* no step was taken"),
        (_forget_a_weight, r"the weight sync fills 0 of \d+ elements of vLLM's .*layers\.2\.mlp\.down_proj"),
        (_round_a_weight, r"after the weight sync \d+ of \d+ elements of .*layers\.2\.mlp\.down_proj.* differ"),
        (_another_template, r"vLLM read another prompt than the trainer scores: .* differ from token [01] on"),
    ],
    ids=["pictures expanded twice", "a picture swapped", "a weight forgotten", "a weight rounded", "another template"],
)
def test_a_planted_fault_stops_the_run_before_its_first_step(
    plant: Callable[[pytest.MonkeyPatch], None],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    trained_pocket: Path,
    pocket_prompts: Path,
    tmp_path: Path,
) -> None:
    plant(monkeypatch)
    with pytest.raises(RuntimeError, match=said) as stop:
        train(*flags(trained_pocket, pocket_prompts, tmp_path / "run", abilities="vision-to-reasoning"))
    assert "\n" not in str(stop.value)
    assert not (tmp_path / "run" / "final").exists()
    assert not list((tmp_path / "run").glob("checkpoints/checkpoint-*"))


def test_vllm_keeps_features_of_pictures_until_they_are_dropped(
    monkeypatch: pytest.MonkeyPatch, trained_pocket: Path, pocket_prompts: Path, tmp_path: Path
) -> None:
    """Why a sync drops them: of the same pictures it would go on with what the untrained tower saw."""
    from vllm.v1.engine import llm_engine

    monkeypatch.setattr(llm_engine.LLMEngine, "reset_encoder_cache", lambda self: None)
    source = [prompt for prompt in read_prompts(pocket_prompts, "rl") if prompt.images][:8]
    few = tmp_path / "few"
    few.mkdir()
    (few / "images").symlink_to(pocket_prompts / "images")
    write_prompts(few, "rl", source)
    with pytest.raises(RuntimeError, match="in prompts with pictures"):
        train(*flags(trained_pocket, few, tmp_path / "run", train_only="vision", learning_rate=3e-3, max_steps=8))
