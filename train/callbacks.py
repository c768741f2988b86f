"""What happens beside the steps? The proof at every save, the metrics as records, and the progress.

Trainer writes a checkpoint under its final name; one cut short by a kill looks whole. So a checkpoint counts only once
it has been read back and marked, and an unmarked one is removed before resuming.
"""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from models.checkpoint import Checkpoint, open_checkpoint
from tracking.command import is_main_process
from tracking.product import write_text
from tracking.progress import PROGRESS_FILE, StatusLine, format_duration
from tracking.records import RecordLog

VERIFIED_FILE = "verified.json"
PROGRESS_INTERVAL_S = 1.0


def checkpoint_step(path: Path) -> int:
    """Returns N of `checkpoint-N`."""
    return int(path.name.rpartition("-")[2])


def drop_unverified(directory: Path) -> Path | None:
    """Removes checkpoints that were never marked as whole and returns the newest that was, if there is one."""
    verified = []
    for path in sorted(directory.glob("checkpoint-*")):
        if (path / VERIFIED_FILE).is_file():
            verified.append(path)
        elif is_main_process():
            shutil.rmtree(path)
    return max(verified, key=checkpoint_step, default=None)


class CheckpointProof(TrainerCallback):
    """Reads every saved checkpoint back, checks what is frozen, records the proof, and marks the checkpoint as whole.

    Older checkpoints beyond `num_kept` go only then: Trainer's own rotation removes the last whole one before its
    successor is proved. `breaches_of` returns the names of the frozen tensors that are not what they were.
    """

    def __init__(
        self, breaches_of: Callable[[Checkpoint], list[str]], proofs: RecordLog, *, num_kept: int | None = None
    ) -> None:
        self._breaches_of = breaches_of
        self._proofs = proofs
        self._num_kept = num_kept

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if not state.is_world_process_zero:
            return
        path = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        breaches = self._breaches_of(open_checkpoint(path))
        proof = {"key": path.name, "step": state.global_step, "num_breaches": len(breaches), "breaches": breaches}
        self._proofs.append(proof)
        if breaches:
            raise RuntimeError(f"{path}: {len(breaches)} frozen tensors changed, the first is {breaches[0]}")
        write_text(path / VERIFIED_FILE, json.dumps(proof) + "\n")
        if self._num_kept:
            for older in sorted(path.parent.glob("checkpoint-*"), key=checkpoint_step)[: -self._num_kept]:
                shutil.rmtree(older)


class MetricsRecorder(TrainerCallback):
    """Writes what the trainer logs as one record a logging step."""

    def __init__(self, log: RecordLog) -> None:
        self._log = log

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        key = f"step-{state.global_step}"
        if not state.is_world_process_zero or not logs or "train_runtime" in logs or key in self._log:
            return
        # TRL's SFTTrainer (1.16) counts tokens from zero again after resuming.
        kept = {name: value for name, value in logs.items() if name != "num_tokens"}
        self._log.append({"key": key, "step": state.global_step, **kept})


class ProgressReporter(TrainerCallback):
    """Shows steps, rate and remaining time, and leaves them in `progress.json` for whoever started the run."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / PROGRESS_FILE
        self._line = StatusLine()
        self._begin = 0.0
        self._first_step = 0
        self._written_at = 0.0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._begin, self._first_step = time.monotonic(), state.global_step

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        now = time.monotonic()
        done = state.global_step == state.max_steps
        if not state.is_world_process_zero or (now - self._written_at < PROGRESS_INTERVAL_S and not done):
            return
        self._written_at = now
        step_s = (now - self._begin) / max(1, state.global_step - self._first_step)
        left = format_duration(step_s * (state.max_steps - state.global_step))
        write_text(self._path, json.dumps({"step": state.global_step, "num_steps": state.max_steps}) + "\n")
        self._line.show(f"step {state.global_step}/{state.max_steps}, {step_s:.2f} s a step, {left} left")
