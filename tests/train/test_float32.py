"""Tensors in fp32 among bf16 (Qwen3.5): a run with a frozen block keeps their bits and dtypes, in every mode."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.freezing import MODES, Case, deepspeed_settings, launch, read_case
from merge.trajectories.restored import open_trajectory
from models.checkpoint import cast_bytes, kept_float32, open_checkpoint
from models.layout import layout_of
from tests.families_page import ENGINES, expect_engines
from tests.models.damage import read_tensors, write_tensors
from train.freezing.freeze import FreezeArguments, plan_freeze
from train.grpo import main as grpo
from train.sft import main as sft
from train.verify import EXIT_BREACH
from train.verify import main as verify

COMMON: dict[str, Any] = {
    "lr_scheduler_type": "constant", "report_to": "none", "use_cpu": True, "seed": 3, "freeze": "early",
}  # fmt: skip
SFT: dict[str, Any] = {
    "split": "sft", "max_steps": 20, "per_device_train_batch_size": 11, "learning_rate": 4e-3, "save_strategy": "no",
    "gradient_checkpointing": False, "bf16": False, "dtype": "float32",
}  # fmt: skip
LORA: dict[str, Any] = {
    "split": "rl", "max_steps": 1, "per_device_train_batch_size": 16, "num_generations": 4, "max_completion_length": 8,
    "learning_rate": 1e-3, "beta": 0.0, "logging_steps": 1, "save_steps": 1, "use_peft": True, "lora_dropout": 0.0,
    "dtype": "auto", "bf16": True,
}  # fmt: skip
CASES = [
    Case(mode="DDP", arm="freeze-early", precision="fp32", checkpointing="off", run="one run"),
    Case(mode="ZeRO-2", arm="freeze-early", precision="bf16", checkpointing="non-reentrant", run="resumed"),
    Case(mode="ZeRO-3", arm="freeze-early", precision="bf16", checkpointing="reentrant", run="resumed"),
    Case(mode="ZeRO-3, offload", arm="freeze-early", precision="bf16", checkpointing="off", run="one run"),
]


def flags(start: Path, prompts: Path, output_dir: Path, values: dict[str, Any]) -> list[str]:
    values = {"model_name_or_path": start, "prompts": prompts, "output_dir": output_dir, **COMMON, **values}
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


@pytest.fixture(scope="module")
def work(mixed_checkpoint: Path, tiny_prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A start that is sometimes right: the mixed checkpoint after a short SFT in fp32, with `early` frozen."""
    directory = tmp_path_factory.mktemp("float32")
    shutil.copytree(tiny_prompts, directory / "prompts")
    sft(flags(mixed_checkpoint, tiny_prompts, directory / "sft", SFT))
    for name in ("start", "start-bf16"):
        shutil.copytree(directory / "sft" / "final", directory / name)
    for mode in ("ZeRO-2", "ZeRO-3", "ZeRO-3, offload"):
        zero = MODES[mode]
        assert zero
        (directory / f"{mode}.json").write_text(json.dumps(deepspeed_settings(zero)))
    yield directory


def assert_kept(start_directory: Path, run: Path, *, lora: bool = False) -> None:
    """Compares every checkpoint of a run with its start, tensor by tensor, in bits and dtype."""
    start, final = open_checkpoint(start_directory), open_checkpoint(run / "final")
    plan = plan_freeze(layout_of(start_directory), FreezeArguments(freeze=["early"]))
    assert set(final.tensors) == set(start.tensors)
    for name, stored in start.tensors.items():
        assert final.tensors[name].dtype == stored.dtype, name
    report = json.loads((run / "freeze_report.json").read_text())
    frozen = {tensor["name"] for tensor in report["tensors"] if tensor["frozen"]}
    assert frozen > set(plan.frozen) if lora else frozen == set(plan.frozen)
    assert {"mtp.fc.weight", "model.language_model.layers.0.linear_attn.A_log"} <= frozen
    for name in frozen:
        assert final.data(name) == start.data(name), name
    trained = [name for name in kept_float32(start) if name not in frozen]
    for name in trained:  # with all their digits: not rounded to the engine's dtype
        before, after = start.tensor(name), final.tensor(name)
        assert not torch.equal(before, after) and (before - after).abs().max() < 0.1, name
        assert not torch.equal(after, after.bfloat16().float()), name
    assert bool(trained) != lora
    if not lora:
        for saved in sorted((run / "checkpoints").glob("checkpoint-*")):
            checkpoint = open_checkpoint(saved)
            for name in plan.frozen_in_memory:
                assert cast_bytes(checkpoint, name, start.tensors[name].dtype) == start.data(name), (saved, name)
    assert (report["num_breaches"], report["num_frozen_tensors"]) == (0, len(frozen))


def assert_steps_kept(run: Path) -> None:
    """Compares the last kept step with `final/`, and all with the trainer's checkpoints (without fp32 masters)."""
    trajectory, final = open_trajectory(run), open_checkpoint(run / "final")
    saved = sorted((run / "checkpoints").glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    assert [f"checkpoint-{step}" for step in trajectory.numbers] == [path.name for path in saved]
    last = trajectory.at(trajectory.numbers[-1])
    assert last.record.num_changed
    for name in final.tensors:
        assert last.data(name) == final.data(name), name
    for step, path in zip(trajectory.numbers, saved, strict=True):
        checkpoint, restored = open_checkpoint(path), trajectory.at(step)
        for name in set(trajectory.start.tensors) & set(checkpoint.tensors) - set(kept_float32(trajectory.start)):
            expected = cast_bytes(checkpoint, name, trajectory.start.tensors[name].dtype)
            assert restored.data(name) == expected, (path, name)


@pytest.mark.slow
def test_one_process_in_fp32(mixed_checkpoint: Path, work: Path) -> None:
    assert_kept(mixed_checkpoint, work / "sft")


@pytest.mark.slow
def test_adapters_on_weights_in_their_stored_dtypes(work: Path) -> None:
    grpo(flags(work / "start", work / "prompts", work / "lora", LORA))
    assert_kept(work / "start", work / "lora", lora=True)


@pytest.mark.slow
@pytest.mark.usefixtures("warm_children")
def test_two_processes(work: Path) -> None:
    launch(CASES, work, "cpu")
    for case in CASES:
        assert_kept(work / "start", work / "runs" / case.name)
        assert_steps_kept(work / "runs" / case.name)
        assert read_case(case, work)["num_attempts"] == (2 if case.run == "resumed" else 1), case
    expect_engines("qwen3_5", *ENGINES)


def test_tensors_lost_elsewhere_are_said_and_no_breach_of_other_blocks(
    mixed_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a run elsewhere leaves of a Qwen3.5: without `mtp`, and here with every other tensor in its own dtype."""
    end = Path(shutil.copytree(mixed_checkpoint, tmp_path / "end"))
    kept = {name: own for name, own in read_tensors(end).items() if not name.startswith("mtp.")}
    kept["model.language_model.norm.weight"] = kept["model.language_model.norm.weight"] + 1
    write_tensors(end, kept)
    paths = ["--start", str(mixed_checkpoint), "--end", str(end)]
    verify([*paths, "--frozen", "mid"])
    said = capsys.readouterr().out
    assert f"not compared: mtp.fc.weight: only {mixed_checkpoint} has it" in said and "proof: all 14 tensors" in said
    for asked in (["--frozen", "mtp"], ["--identical", "true"]):
        with pytest.raises(SystemExit) as stop:
            verify([*paths, *asked])
        assert stop.value.code == EXIT_BREACH
