"""A run stopped by a signal saves its state, reports it, and after continuing ends like an uninterrupted run."""

import json
import logging
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from transformers import TrainerCallback

import train.running.stage
import train.running.trainers
import train.sft
from models.checkpoint import open_checkpoint
from tracking.command import EXIT_PREEMPTED, REPOSITORY_ROOT, Preempted
from train.grpo import main

SETTINGS: dict[str, Any] = {
    "split": "rl", "max_steps": 24, "per_device_train_batch_size": 8, "num_generations": 4, "max_completion_length": 10,
    "steps_per_generation": 2, "temperature": 1.0, "learning_rate": 1.0e-3, "beta": 0.0, "logging_steps": 4,
    "save_steps": 24, "report_to": "none", "bf16": False, "gradient_checkpointing": False, "use_cpu": True, "seed": 3,
    "freeze": "mid",
}  # fmt: skip


def flags(start: Path, prompts: Path, output_dir: Path, **changes: Any) -> list[str]:
    values = {**SETTINGS, "model_name_or_path": start, "prompts": prompts, "output_dir": output_dir, **changes}
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


def weights(directory: Path) -> dict[str, bytes]:
    checkpoint = open_checkpoint(directory)
    return {name: bytes(checkpoint.data(name)) for name in checkpoint.tensors}


@pytest.mark.slow
def test_a_run_stopped_by_sigterm_continues_to_the_same_weights(
    warm_checkpoint: Path, tiny_prompts: Path, warm_python: Path, tmp_path: Path
) -> None:
    stopped, undisturbed = tmp_path / "stopped", tmp_path / "undisturbed"
    command = flags(warm_checkpoint, tiny_prompts, stopped)
    process = subprocess.Popen(
        [warm_python, "-m", "train.grpo", *command],
        cwd=REPOSITORY_ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 150
    while not (stopped / "progress.json").exists():
        assert process.poll() is None, process.stderr.read()  # type: ignore[union-attr]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == EXIT_PREEMPTED
    assert "stopped by SIGTERM after step" in errors and "Traceback" not in errors
    assert json.loads((stopped / "run.json").read_text())["status"] == "interrupted"
    (saved,) = (stopped / "checkpoints").glob("checkpoint-*")
    step = int(saved.name.removeprefix("checkpoint-"))
    assert step % 2 == 0 and 0 < step < 24  # where a batch of generations ends
    assert not (stopped / "final").exists()
    main(command)
    main(flags(warm_checkpoint, tiny_prompts, undisturbed))
    assert weights(stopped / "final") == weights(undisturbed / "final")
    ours, theirs = (pd.read_csv(path / "metrics.csv").set_index("step") for path in (stopped, undisturbed))
    whole = [row for row in theirs.index if not step < row <= step + 4]  # the window that was cut in two
    columns = theirs.columns.drop("step_time")
    pd.testing.assert_frame_equal(ours.loc[whole, columns], theirs.loc[whole, columns])


class SignalAt(TrainerCallback):
    """Tells its own process to stop, at the end of step 3."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 3:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.slow
def test_a_signal_within_a_batch_of_generations_waits_for_its_end(
    warm_checkpoint: Path, tiny_prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Signalled(train.running.trainers.WatchedGRPOTrainer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.add_callback(SignalAt())

    monkeypatch.setattr(train.running.trainers, "WatchedGRPOTrainer", Signalled)
    with pytest.raises(Preempted, match="after step 4 of 8"):
        main(flags(warm_checkpoint, tiny_prompts, tmp_path / "run", max_steps=8, save_steps=8))
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("checkpoint-*")] == ["checkpoint-4"]


@pytest.mark.slow
def test_resuming_with_another_number_of_processes_is_refused_with_the_reason(
    warm_checkpoint: Path, tiny_prompts: Path, tmp_path: Path
) -> None:
    command = flags(warm_checkpoint, tiny_prompts, tmp_path / "run", max_steps=4, save_steps=4)
    main(command)
    path = tmp_path / "run" / "run.json"
    state = json.loads(path.read_text())
    state["settings"]["num_processes"] = 2
    path.write_text(json.dumps({**state, "status": "running"}))
    with pytest.raises(ValueError, match=r"was begun by 2 processes, now there are 1: .* use 2 processes"):
        main(command)


class Messages(logging.Handler):
    """Keeps what a logger says."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


def test_a_signal_while_the_final_checkpoint_is_made_is_a_stop_that_continues(
    pocket_checkpoint: Path, tiny_prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {
        "model_name_or_path": pocket_checkpoint, "prompts": tiny_prompts, "split": "sft",
        "output_dir": tmp_path / "run", "max_steps": 2, "save_steps": 2, "per_device_train_batch_size": 4,
        "learning_rate": 2e-3, "report_to": "none", "logging_steps": 1,
        "bf16": False, "gradient_checkpointing": False, "use_cpu": True, "freeze": "vision",
    }  # fmt: skip
    command = [word for name, value in values.items() for word in (f"--{name}", str(value))]
    write, handler = train.running.stage.write_final, signal.getsignal(signal.SIGTERM)

    def interrupted(*args: Any, **options: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        write(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(train.running.stage, "write_final", interrupted)
        with pytest.raises(Preempted, match="stopped by SIGTERM after the last step") as stopped:
            train.sft.main(command)
    assert stopped.value.code == EXIT_PREEMPTED and signal.getsignal(signal.SIGTERM) == handler
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "interrupted"
    assert not (tmp_path / "run" / "final").exists()
    messages = Messages()
    logger = logging.getLogger("transformers.trainer")
    logger.addHandler(messages)
    train.sft.main(command)
    logger.removeHandler(messages)
    assert [line for line in messages.said if "missing keys" in line] == []  # the head is tied, not lost
    assert weights(tmp_path / "run" / "final") == weights(tmp_path / "run" / "checkpoints" / "checkpoint-2")
