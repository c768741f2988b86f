"""GRPO with a real vLLM in the trainer's process, on a CPU: its prompts, its weights, and faults that stop a run.

Also the seams of TRL and vLLM: where a test fails after an upgrade, `train/rollouts/vllm.py` says what it relies on.
"""

import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from data_builders.prompt_sets.prompts import Prompt, read_prompts, write_prompts
from models.checkpoint import open_checkpoint
from models.layout import layout_of
from tracking.command import REPOSITORY_ROOT
from train.freezing.freeze import FreezeArguments, plan_freeze
from train.verify import main as verify

pytestmark = pytest.mark.vllm

SETTINGS: dict[str, Any] = {
    "split": "rl", "max_steps": 2, "per_device_train_batch_size": 32, "num_generations": 4, "max_completion_length": 24,
    "temperature": 0.7, "learning_rate": 1.0e-4, "beta": 0.0, "logging_steps": 1, "save_steps": 2, "report_to": "none",
    "bf16": False, "gradient_checkpointing": False, "use_cpu": True, "seed": 3,
    "use_vllm": True, "vllm_mode": "colocate",
}  # fmt: skip

LEFT_BEHIND = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "VLLM_ENABLE_V1_MULTIPROCESSING")


def flags(start: Path, prompts: Path, output_dir: Path, **changes: Any) -> list[str]:
    values = {**SETTINGS, "model_name_or_path": start, "prompts": prompts, "output_dir": output_dir, **changes}
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """TRL and vLLM leave variables behind: a launcher's, and that engines have no processes of their own.

    The engines of all tests of this file live in one process: each has a small cache, and goes with its trainer.
    """
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    for name in LEFT_BEHIND:
        monkeypatch.delenv(name, raising=False)
    yield
    for name in LEFT_BEHIND:
        os.environ.pop(name, None)


@pytest.fixture(scope="module")
def many_pictures(pocket_prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompts with no, one and two pictures, of several sizes, one of them shown twice."""
    source = read_prompts(pocket_prompts, "rl")
    seeing = [prompt for prompt in source if prompt.images][:8]
    blind = [prompt for prompt in source if not prompt.images][:4]
    prompts = [*blind, *seeing]
    for number, (one, other) in enumerate(zip(seeing, [*seeing[1:], seeing[0]], strict=True)):
        images = (*one.images, *(one.images if number == 0 else other.images))
        prompts.append(Prompt(id=f"two{number}", ability="vision", question=one.question, answer=one.answer,
                              answer_kind=one.answer_kind, images=images))  # fmt: skip
    directory = tmp_path_factory.mktemp("many")
    (directory / "images").symlink_to(pocket_prompts / "images")
    write_prompts(directory, "rl", prompts)
    return directory


def train(*argv: str) -> None:
    from train.grpo import main

    try:
        main(list(argv))
    finally:
        gc.collect()


def record(directory: Path) -> Any:
    return json.loads((directory / "final" / "rollout.json").read_text())


def weights(directory: Path) -> dict[str, bytes]:
    checkpoint = open_checkpoint(directory)
    return {name: bytes(checkpoint.data(name)) for name in checkpoint.tensors}


@pytest.fixture(scope="module")
def whole_run(trained_pocket: Path, pocket_prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps on mixed batches with `mid` frozen, undisturbed."""
    directory = tmp_path_factory.mktemp("whole") / "run"
    train(*flags(trained_pocket, pocket_prompts, directory, freeze="mid", max_steps=6))
    return directory


def test_pictures_and_text_in_one_batch_are_seen_alike_and_the_weights_are_those_of_the_trainer(
    whole_run: Path, trained_pocket: Path
) -> None:
    """In float32 the order of sums differs, and the share of the tokens of pictures, which vLLM may not sample."""
    table = pd.read_csv(whole_run / "metrics.csv")
    for kind in ("text", "images"):
        assert table[f"rollout_gap/{kind}"].notna().any()
        assert table[f"rollout_gap/{kind}"].max() < 1e-3
    found = record(whole_run)
    assert found["engine"].startswith("vllm ")
    assert (found["engine_dtype"], found["trainer_dtype"]) == ("float32", "float32")
    layout = layout_of(trained_pocket)
    sync = found["weight_sync"]
    num_trained = len(plan_freeze(layout, FreezeArguments(freeze=["mid"])).trainable)
    # All at first, then what trains and eight of what does not.
    assert sync["num_syncs"] == 6
    assert sync["num_compared"] == len(layout.parameters) + 5 * (num_trained + 8)
    assert sync["sent_bytes"] < sync["whole_bytes"]
    assert not (whole_run / "final" / ".partial").exists()
    verify(["--start", str(trained_pocket), "--end", str(whole_run / "final"), "--frozen", "mid"])


def test_in_bfloat16_the_gap_is_what_rounding_explains_with_pictures_as_without(
    trained_pocket: Path, pocket_prompts: Path, tmp_path: Path
) -> None:
    train(*flags(trained_pocket, pocket_prompts, tmp_path / "run", rollout_dtype="bfloat16", max_steps=4))
    gap = record(tmp_path / "run")["gap"]
    for kind in ("text", "images"):
        assert 1e-5 < gap[kind]["mean"] < 3 * gap[kind]["rounding"] + 1e-3
    assert record(tmp_path / "run")["engine_dtype"] == "bfloat16"


@pytest.mark.parametrize("family", ["qwen2", "qwen2_vl", "qwen3_vl"])
def test_every_family_trains_on_what_its_engine_saw(
    family: str, family_checkpoint_vllm: Callable[[str], Path], many_pictures: Path, tmp_path: Path
) -> None:
    """Random models give the tokens of pictures, which vLLM may not sample, a share: hence a bound of our own."""
    changes = {"abilities": "reasoning", "per_device_train_batch_size": 16} if family == "qwen2" else {}
    train(*flags(family_checkpoint_vllm(family), many_pictures, tmp_path / "run", rollout_max_gap=0.05, **changes))
    gap = record(tmp_path / "run")["gap"]
    assert set(gap) == ({"text"} if family == "qwen2" else {"text", "images"})


def test_adapters_are_merged_for_the_engine(trained_pocket: Path, pocket_prompts: Path, tmp_path: Path) -> None:
    train(*flags(trained_pocket, pocket_prompts, tmp_path / "run", use_peft=True, lora_r=4, lora_dropout=0,
                 freeze="mid", max_steps=3))  # fmt: skip
    sync = record(tmp_path / "run")["weight_sync"]
    assert sync["num_syncs"] == 3
    assert sync["sent_bytes"] < 0.6 * sync["whole_bytes"]


def test_a_killed_run_continues_to_the_weights_of_an_undisturbed_one(
    whole_run: Path, trained_pocket: Path, pocket_prompts: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "run"
    argv = flags(trained_pocket, pocket_prompts, directory, freeze="mid", max_steps=6)
    process = subprocess.Popen([sys.executable, "-m", "train.grpo", *argv], cwd=REPOSITORY_ROOT)
    try:
        until = time.monotonic() + 300
        while not (directory / "checkpoints" / "checkpoint-2").exists():
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    assert not (directory / "final").exists()
    train(*argv)
    assert weights(directory / "final") == weights(whole_run / "final")
    before, after = (pd.read_csv(path / "metrics.csv")["reward"].tolist() for path in (whole_run, directory))
    assert before == after


def test_a_validation_between_two_steps_on_the_same_replies_does_not_make_them_new(
    trained_pocket: Path, pocket_prompts: Path, tmp_path: Path
) -> None:
    """It syncs the weights, and TRL then counts the replies of the step before as written by them.

    The validation split has two pictures a prompt where training has at most one.
    """
    directory = tmp_path / "prompts"
    directory.mkdir()
    (directory / "images").symlink_to(pocket_prompts / "images")
    source = [prompt for prompt in read_prompts(pocket_prompts, "rl") if prompt.images]
    write_prompts(directory, "rl", source)
    write_prompts(directory, "validation", [replace(prompt, images=prompt.images * 2) for prompt in source[:8]])
    train(*flags(
        trained_pocket, directory, tmp_path / "run", max_steps=4, steps_per_generation=2, eval_strategy="steps",
        eval_steps=1, validation_split="validation", per_device_eval_batch_size=2, num_generations_eval=1,
        learning_rate=3e-3, gradient_accumulation_steps=1, lr_scheduler_type="constant",
    ))  # fmt: skip
    gap = pd.read_csv(tmp_path / "run" / "metrics.csv")["rollout_gap/images"]
    assert gap.notna().tolist() == [True, False, True, False]
    assert gap.max() < 1e-3


def test_another_seed_draws_other_replies(
    whole_run: Path, trained_pocket: Path, pocket_prompts: Path, tmp_path: Path
) -> None:
    """vLLM seeds the process by its rank alone; the order of prompts is fixed here, so that only draws can differ."""
    rewards = []
    for seed in (3, 4):
        directory = tmp_path / str(seed)
        train(*flags(trained_pocket, pocket_prompts, directory, seed=seed, shuffle=False, max_steps=2))
        rewards.append(pd.read_csv(directory / "metrics.csv")["completions/mean_length"].tolist())
    assert rewards[0] != rewards[1]


# --- faults, planted ---


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
        yield from (pair for pair in pairs(self) if "layers.5.mlp.down_proj" not in pair[0])

    monkeypatch.setattr(CheckedGeneration, "_iter_named_params", without_one)


def _round_a_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    from train.rollouts.vllm import CheckedGeneration

    pairs = CheckedGeneration._iter_named_params

    def damaged(self: Any) -> Any:
        for name, tensor in pairs(self):
            if "layers.5.mlp.down_proj" in name:
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
        (_forget_a_weight, r"the weight sync fills 0 of \d+ elements of vLLM's .*layers\.5\.mlp\.down_proj"),
        (_round_a_weight, r"after the weight sync \d+ of \d+ elements of .*layers\.5\.mlp\.down_proj.* differ"),
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
