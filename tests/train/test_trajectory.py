"""Kept steps of real runs are the checkpoints that training would have saved, bit for bit, also after a kill."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

import train.running.trainers
from merge.restore import main as restore
from merge.trajectories.restored import Trajectory, open_trajectory
from models.checkpoint import Checkpoint, open_checkpoint, write_like
from tests.models.damage import read_tensors, write_tensors
from train.freezing.freeze import FreezeArguments, plan_freeze
from train.grpo import main as grpo
from train.sft import main as sft

COMMON: dict[str, Any] = {
    "logging_steps": 1, "save_steps": 1, "report_to": "none", "bf16": False, "gradient_checkpointing": False,
    "use_cpu": True, "seed": 3, "lr_scheduler_type": "constant", "telemetry_steps": 0,
}  # fmt: skip
GRPO: dict[str, Any] = {
    **COMMON, "split": "rl", "max_steps": 20, "per_device_train_batch_size": 16, "num_generations": 4,
    "max_completion_length": 8, "learning_rate": 1e-4, "beta": 0.0, "freeze": "mid",
}  # fmt: skip
SFT: dict[str, Any] = {
    **COMMON, "split": "sft", "max_steps": 7, "per_device_train_batch_size": 11, "learning_rate": 1e-5,
    "dtype": "float32", "freeze": "vision", "keep_trajectory": 3,
}  # fmt: skip
MOST_BYTES = 1.3
"""Bytes on disk to changed bytes."""


def flags(start: Path, prompts: Path, output_dir: Path, values: dict[str, Any]) -> list[str]:
    values = {"model_name_or_path": start, "prompts": prompts, "output_dir": output_dir, **values}
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def as_saved(start: Path, run: Path, step: int, folder: Path) -> Path:
    """Writes what the trainer saved after a step as `final/` is written."""
    folder.mkdir()
    saved = open_checkpoint(run / "checkpoints" / f"checkpoint-{step}")
    write_like(folder, start=open_checkpoint(start), weights=saved)
    return folder


def assert_steps(start: Path, run: Path, steps: list[int], folder: Path) -> Trajectory:
    """Compares every kept step with the trainer's checkpoint, and the last with `final/`."""
    trajectory = open_trajectory(run)
    assert trajectory.numbers == steps
    for step in steps:
        expected, restored = open_checkpoint(as_saved(start, run, step, folder / f"saved-{step}")), trajectory.at(step)
        assert_same(restored, expected)
    assert_same(trajectory.at(steps[-1]), open_checkpoint(run / "final"))
    return trajectory


def assert_same(one: Checkpoint, other: Checkpoint) -> None:
    assert one.tensors.keys() == other.tensors.keys()
    for name, stored in other.tensors.items():
        assert one.tensors[name].dtype == stored.dtype and one.data(name) == other.data(name), name


@pytest.mark.slow
def test_twenty_kept_steps_of_grpo(warm_checkpoint: Path, tiny_prompts: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    grpo(flags(warm_checkpoint, tiny_prompts, run, {**GRPO, "keep_trajectory": 1}))
    trajectory = assert_steps(warm_checkpoint, run, list(range(1, 21)), tmp_path)
    frozen = set(plan_freeze(_layout(warm_checkpoint), FreezeArguments(freeze=["mid"])).frozen)
    for record in trajectory.steps:
        assert not record.num_changed or record.num_bytes <= MOST_BYTES * record.changed_bytes
        assert not frozen & record.tensors.keys()
    assert trajectory.steps[-1].num_changed  # the first groups may have equal rewards, and no gradient
    restore(["--trajectory", str(run), "--step", "7", "--output-dir", str(tmp_path / "out")])
    shutil.copyfile(run / "final" / "rollout.json", tmp_path / "saved-7" / "rollout.json")
    assert files(tmp_path / "out" / "checkpoint") == files(tmp_path / "saved-7")


class KilledError(Exception):
    """Stops a run as a kill does: nothing is saved."""


class KillAfter(TrainerCallback):
    def __init__(self, step: int) -> None:
        self._step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self._step:
            raise KilledError


@pytest.mark.slow
def test_weights_in_bf16_trained_in_fp32_and_a_killed_run_that_continues(
    pocket_checkpoint: Path, tiny_prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after step 6 was kept, with a checkpoint of step 4: steps 5 and 6 are trained and kept again."""
    start = Path(shutil.copytree(pocket_checkpoint, tmp_path / "start"))
    write_tensors(start, {name: values.bfloat16() for name, values in read_tensors(start).items()})
    run, killed = tmp_path / "run", tmp_path / "killed"
    sft(flags(start, tiny_prompts, run, SFT))
    trajectory = assert_steps(start, run, [3, 6, 7], tmp_path)
    assert all(record.num_bytes <= MOST_BYTES * record.changed_bytes for record in trajectory.steps)
    num_elements = sum(stored.num_bytes // 2 for stored in trajectory.start.tensors.values())
    assert 0 < trajectory.steps[0].num_changed < num_elements

    class Stopped(train.running.trainers.WatchedSFTTrainer):
        def add_callback(self, callback: Any) -> None:
            super().add_callback(callback)
            if type(callback).__name__ == "KeepTrajectory":
                super().add_callback(KillAfter(6))

    command = flags(start, tiny_prompts, killed, {**SFT, "save_steps": 4})
    with monkeypatch.context() as patched:
        patched.setattr(train.running.trainers, "WatchedSFTTrainer", Stopped)
        with pytest.raises(KilledError):
            sft(command)
    assert open_trajectory(killed).numbers == [3, 6]
    assert [path.name for path in (killed / "checkpoints").glob("checkpoint-*")] == ["checkpoint-4"]
    sft(command)
    assert files(killed / "trajectory") == files(run / "trajectory")


def _layout(directory: Path) -> Any:
    from models.layout import layout_of

    return layout_of(directory)


@pytest.mark.slow
def test_adapters_are_refused_before_anything_is_written(
    warm_checkpoint: Path, tiny_prompts: Path, tmp_path: Path
) -> None:
    values = {**GRPO, "keep_trajectory": 5, "use_peft": True, "lora_dropout": 0.0}
    with pytest.raises(ValueError, match="keep_trajectory is 5 and use_peft is on"):
        grpo(flags(warm_checkpoint, tiny_prompts, tmp_path / "run", values))
    assert not (tmp_path / "run").exists()
