"""Callbacks of a run: proof at every save, checks after the first step, preemption, metrics, progress.

Trainer writes a checkpoint under its final name, so one that was interrupted by a kill looks complete. Here it saves to
`checkpoints/.unproved`; a checkpoint is moved to its final name only after it has been read back and proved.
"""

import json
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tracking.command import Preempted
from tracking.processes import any_process, num_processes, on_main_process, wait_for_all
from tracking.product import write_text
from tracking.progress import PROGRESS_FILE, StatusLine, format_duration
from tracking.records import RecordLog
from train.freezing.backward import GraphWitness
from train.freezing.engine import inspect_optimizer, zero_stage
from train.freezing.freeze import FreezePlan
from train.running.telemetry import block_of

UNPROVED_DIR = ".unproved"
PROGRESS_INTERVAL_S = 1.0


def checkpoint_step(path: Path) -> int:
    """Returns N of `checkpoint-N`."""
    return int(path.name.rpartition("-")[2])


def last_checkpoint(directory: Path) -> Path | None:
    """Removes unproved checkpoints and returns the newest proved one, if any."""
    shutil.rmtree(directory / UNPROVED_DIR, ignore_errors=True)
    return max(directory.glob("checkpoint-*"), key=checkpoint_step, default=None)


class CheckpointProof(TrainerCallback):
    """Reads every saved checkpoint back, checks the frozen tensors, records the proof, and renames the checkpoint.

    Only then are older checkpoints beyond `num_kept` deleted: Trainer's own rotation would delete the last complete one
    before its successor is proved. `breaches_of` returns the names of frozen tensors that have changed.
    """

    def __init__(
        self, breaches_of: Callable[[Path], list[str]], proofs: RecordLog | None, *, num_kept: int | None = None
    ) -> None:
        self._breaches_of = breaches_of
        self._proofs = proofs
        self._num_kept = num_kept

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        wait_for_all()
        on_main_process(lambda: self._prove(Path(args.output_dir) / f"checkpoint-{state.global_step}"))

    def _prove(self, unproved: Path) -> None:
        assert self._proofs is not None
        breaches = self._breaches_of(unproved)
        self._proofs.append(
            {
                "key": unproved.name,
                "step": checkpoint_step(unproved),
                "num_breaches": len(breaches),
                "breaches": breaches,
            }
        )
        if breaches:
            raise RuntimeError(f"{unproved}: {len(breaches)} frozen tensors changed, the first is {breaches[0]}")
        proved = unproved.parent.parent / unproved.name
        unproved.rename(proved)
        if self._num_kept:
            for older in sorted(proved.parent.glob("checkpoint-*"), key=checkpoint_step)[: -self._num_kept]:
                shutil.rmtree(older)


class FirstStep(TrainerCallback):
    """Checks after the first step of an attempt where backward went and the optimizer's state, and records both."""

    def __init__(self, trainer: Trainer, witness: GraphWitness, proofs: RecordLog | None) -> None:
        self._trainer = trainer
        self._witness = witness
        self._proofs = proofs
        self._done = False

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._done:
            return
        self._done = True
        self._witness.check()
        optimizer = inspect_optimizer(self._trainer)
        if self._proofs is not None:
            self._proofs.append(
                {
                    "key": f"step-{state.global_step}",
                    "step": state.global_step,
                    **self._witness.report().as_row(),
                    "num_trainable_elements": optimizer.num_trainable_elements,
                    "num_state_elements": optimizer.num_state_elements,
                }
            )


class Preemption(TrainerCallback):
    """On SIGTERM, saves at the end of the next step that can be resumed from, and stops.

    A scheduler signals the processes at slightly different times; an all-reduce makes all of them save at the same
    step. `can_resume_at` returns whether nothing is lost after a step (GRPO: at the end of a generation batch).

    After the last step there is nothing left to save: a single process then stops at once, until `restore` is called.
    Several processes write the final checkpoint and end, because the others would wait for the one that stopped.
    """

    def __init__(self, can_resume_at: Callable[[int], bool]) -> None:
        self._can_resume_at = can_resume_at
        self._signalled = False
        self._trained = False
        self._previous: Any = None
        self.stopped = False

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._remember)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if any_process(self._signalled, args.device) and self._can_resume_at(state.global_step):
            self.stopped = state.global_step < state.max_steps
            control.should_save = control.should_save or self.stopped
            control.should_training_stop = True

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._trained = True

    def restore(self) -> None:
        """Gives SIGTERM back to what handled it before training."""
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)
            self._previous = None

    def _remember(self, signal_number: int, frame: Any) -> None:
        self._signalled = True
        if self._trained and num_processes() == 1:
            raise Preempted("stopped by SIGTERM after the last step, before final/ was finished")


class StaleGradients(TrainerCallback):
    """Sets the gradients of the vision tower and projector to zero after every step.

    DeepSpeed (0.19.8; ZeRO-3, and optimizer state on the CPU) keeps a gradient until the next one. A step without
    images has none, so the tower would be trained with the previous step's gradient again.
    """

    def __init__(self, plan: FreezePlan) -> None:
        self._plan = plan

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        import torch
        from deepspeed.utils import safe_set_full_grad, safe_set_local_grad

        for name, parameter in model.named_parameters():
            if not parameter.requires_grad or block_of(name, self._plan) not in ("vision", "projector"):
                continue
            if zero_stage(args) == 3:
                safe_set_local_grad(parameter, torch.zeros_like(parameter.ds_tensor))
            else:
                safe_set_full_grad(parameter, torch.zeros_like(parameter))


class MetricsRecorder(TrainerCallback):
    """Writes the trainer's logs: one record per logging step, and one per validated ability."""

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
        if not state.is_world_process_zero or not logs or "train_runtime" in logs:
            return
        evaluated = next((name.removesuffix("_num_prompts") for name in logs if name.endswith("_num_prompts")), None)
        key = f"step-{state.global_step}" + (f"-{evaluated}" if evaluated else "")
        if key in self._log:
            return
        # TRL's SFTTrainer (1.16) counts tokens from zero again after resuming.
        kept = {name: value for name, value in logs.items() if not name.endswith("num_tokens")}
        self._log.append({"key": key, "step": state.global_step, **kept})


class ProgressReporter(TrainerCallback):
    """Shows steps, rate and remaining time, and writes them to `progress.json` for the parent process."""

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
