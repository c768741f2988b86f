"""How does one training run go, whatever the objective? Freeze, train, prove, write; killed at any time, continue.

OUTPUT/run.json, records.jsonl      what was run; one record a logging step
OUTPUT/proofs.jsonl                 one record a saved checkpoint: was anything frozen changed?
OUTPUT/checkpoints/checkpoint-N     the trainer's own, for resuming; each checked for breaches when it is saved
OUTPUT/final/                       the result, in the start checkpoint's dtype, spelling and sharding
OUTPUT/freeze_report.json, metrics.csv
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_builders.prompts import Prompt, prompts_fingerprint
from models.blocks import BLOCKS
from models.checkpoint import DTYPES, Checkpoint, check_same_tensors, is_tied_duplicate, open_checkpoint, write_like
from models.layout import layout_of
from models.loading import load_model, load_processor, local_checkpoint
from tracking.command import is_main_process
from tracking.product import partial_directory, write_text
from tracking.records import Record, RecordLog
from tracking.run import open_run
from tracking.tables import write_table
from train import FINAL_DIR
from train.callbacks import CheckpointProof, MetricsRecorder, ProgressReporter, checkpoint_step, drop_unverified
from train.data import DataArguments, build_dataset, training_order
from train.freeze import (
    FreezeArguments,
    FreezePlan,
    apply_freeze,
    broken_tensors,
    compare_tensors,
    find_breaches,
    format_freeze_table,
    frozen_digests,
    never_moved,
    plan_freeze,
    summarise_changes,
)

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, ProcessorMixin, Trainer, TrainingArguments
    from trl import ModelConfig

CHECKPOINTS_DIR = "checkpoints"
FREEZE_REPORT = "freeze_report.json"
PLACES = ("output_dir", "logging_dir", "run_name")
"""Training arguments that name places and do not determine the result."""

TrainerFactory = Callable[["PreTrainedModel", "ProcessorMixin", "Dataset"], "Trainer"]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One training run as its command asks for it."""

    command: str
    """The module's name, such as `train.grpo`."""
    training: "TrainingArguments"
    model_config: "ModelConfig"
    data: DataArguments
    freeze: FreezeArguments
    prompts: Sequence[Prompt]
    num_needed: int
    """Prompts that the whole run consumes, repetitions included."""
    supervised: bool
    """True where the responses of the prompts are learned."""
    make_trainer: TrainerFactory
    further_settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Start:
    """The checkpoint a run starts from, opened and planned."""

    name: str
    checkpoint: Checkpoint
    plan: FreezePlan


def open_start(name: str | None, freeze: FreezeArguments) -> Start:
    """Opens the start checkpoint and resolves what is frozen, before anything is written."""
    if not name:
        raise ValueError("model_name_or_path is missing; expected the checkpoint to start from")
    checkpoint = open_checkpoint(local_checkpoint(name))
    plan = plan_freeze(layout_of(checkpoint.directory), freeze)
    missing = sorted(set(plan.layout.parameters) - set(checkpoint.tensors))
    if missing:
        raise ValueError(
            f"{checkpoint.directory}: lacks {missing[0]!r} that its configuration asks for ({len(missing)} such)"
        )
    for extra in sorted(set(checkpoint.tensors) - set(plan.layout.parameters)):
        if not is_tied_duplicate(checkpoint, extra):
            raise ValueError(f"{checkpoint.directory}: has {extra!r}, for which its configuration has no place")
    return Start(name, checkpoint, plan)


def check_dtype(start: Start, dtype: str | None) -> None:
    """Refuses to load frozen tensors in a type that would round them: they could not be what they were."""
    exact = {"F32": ("auto", "float32"), "BF16": ("auto", "float32", "bfloat16"), "F16": ("auto", "float32", "float16")}
    for name in start.plan.frozen:
        stored = start.checkpoint.tensors[name].dtype
        if (dtype or "auto") not in exact.get(stored, ("auto",)):
            raise ValueError(
                f"dtype {dtype} would round the frozen tensor {name!r}, which {start.checkpoint.directory} stores as "
                f"{DTYPES[stored][0]}; use dtype float32 (and bf16: true for the arithmetic)"
            )


def steps_to_train(arguments: "TrainingArguments", num_prompts: int, prompts_per_step: float) -> int:
    """Returns the number of optimizer steps: `max_steps`, or the given epochs over the prompts."""
    if arguments.max_steps > 0:
        return int(arguments.max_steps)
    num_steps = int(arguments.num_train_epochs * num_prompts // prompts_per_step)
    if num_steps < 1:
        raise ValueError(
            f"{num_prompts} prompts over {arguments.num_train_epochs} epochs give no whole step of "
            f"{prompts_per_step:g} prompts; set max_steps or give more prompts"
        )
    return num_steps


def check_windows(arguments: "TrainingArguments") -> None:
    """Refuses checkpoints in the middle of a logging window, whose first half a resumed run would lose."""
    if arguments.save_strategy != "steps" or arguments.logging_strategy != "steps":
        return
    for name in ("save_steps", "logging_steps"):
        if getattr(arguments, name) < 1 or getattr(arguments, name) != int(getattr(arguments, name)):
            raise ValueError(f"{name} is {getattr(arguments, name)}; expected a whole number of steps")
    if arguments.save_steps % arguments.logging_steps:
        raise ValueError(
            f"save_steps {arguments.save_steps} is no multiple of logging_steps {arguments.logging_steps}; "
            "a resumed run would log other means, make it one"
        )


def run_stage(stage: Stage, *, overwrite: bool) -> Path:
    """Trains from the start checkpoint to `final/`, resuming from the last verified checkpoint where there is one.

    Returns:
        The run directory.

    Raises:
        ValueError: for a mistake in the arguments, before anything is written.
        RuntimeError: where a frozen tensor changed; nothing is written under `final/`.
    """
    if stage.model_config.use_peft:
        raise ValueError(f"use_peft: adapters are not supported by {stage.command}; train the weights themselves")
    start = open_start(stage.model_config.model_name_or_path, stage.freeze)
    check_dtype(start, stage.model_config.dtype)
    settings = stage_settings(stage, start)
    directory = Path(stage.training.output_dir)
    with open_run(directory, command=stage.command, settings=settings, overwrite=overwrite) as run:
        if not run.finished:
            _train(stage, start, directory)
    return directory


def stage_settings(stage: Stage, start: Start) -> dict[str, Any]:
    """Returns everything that determines the result of a run."""
    return {
        "start": start.name,
        "start_fingerprint": start.checkpoint.fingerprint(),
        "prompts_fingerprint": prompts_fingerprint(Path(stage.data.prompts), stage.data.split),
        **asdict(stage.data),
        **asdict(stage.freeze),
        "dtype": stage.model_config.dtype,
        "attn_implementation": stage.model_config.attn_implementation,
        "training": {key: value for key, value in stage.training.to_dict().items() if key not in PLACES},
        **stage.further_settings,
    }


def _train(stage: Stage, start: Start, directory: Path) -> None:
    if is_main_process():
        print(f"start: {start.name}\npartition: {start.plan.partition}\n{format_freeze_table(start.plan)}", flush=True)
    checkpoints_dir = directory / CHECKPOINTS_DIR
    resume_from = drop_unverified(checkpoints_dir)
    resume_step = checkpoint_step(resume_from) if resume_from else 0
    trainer = _build_trainer(stage, start, checkpoints_dir)
    digests = frozen_digests(start.checkpoint, start.plan.frozen)
    with RecordLog(directory / "records.jsonl") as log, RecordLog(directory / "proofs.jsonl") as proofs:
        if is_main_process():
            for records in (log, proofs):
                records.keep(lambda record: record["step"] <= resume_step)
        num_kept, trainer.args.save_total_limit = trainer.args.save_total_limit, None  # pruned by CheckpointProof
        proof = CheckpointProof(
            lambda saved: find_breaches(start.checkpoint, saved, digests), proofs, num_kept=num_kept
        )
        for callback in (proof, MetricsRecorder(log), ProgressReporter(directory)):
            trainer.add_callback(callback)
        trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
        if trainer.state.global_step < trainer.state.max_steps:
            raise RuntimeError(f"training stopped at step {trainer.state.global_step} of {trainer.state.max_steps}")
        _write_final(trainer, start, digests, directory)
        if is_main_process():
            _write_metrics(directory, log)
            _write_report(directory, start, stage.freeze, list(proofs))


def _build_trainer(stage: Stage, start: Start, checkpoints_dir: Path) -> "Trainer":
    """Loads and freezes the model, lays out the prompts and hands both to the stage's trainer."""
    from transformers import PrinterCallback, ProgressCallback

    config = stage.model_config
    model = load_model(
        start.checkpoint.directory, dtype=config.dtype or "auto", attn_implementation=config.attn_implementation
    )
    apply_freeze(model, start.plan)
    # Trainer resumes with the names in memory; checkpoints in the hub's spelling would silently load nothing
    # (Transformers 5.23, without DeepSpeed).
    model.save_pretrained = partial(model.save_pretrained, save_original_format=False)
    order = training_order(len(stage.prompts), stage.num_needed, seed=stage.training.seed, shuffle=stage.data.shuffle)
    stage.training.output_dir = str(checkpoints_dir)
    dataset = build_dataset(stage.prompts, order, stage.data, with_response=stage.supervised)
    trainer = stage.make_trainer(model, load_processor(start.checkpoint.directory), dataset)
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    return trainer


def _write_final(trainer: "Trainer", start: Start, digests: dict[str, str], directory: Path) -> None:
    """Writes `final/` as the start checkpoint is written, after checking what was frozen."""
    raw = directory / f".partial-{FINAL_DIR}-raw"
    shutil.rmtree(raw, ignore_errors=True)
    trainer.save_model(str(raw))
    if is_main_process():
        trained = open_checkpoint(raw)
        check_same_tensors(start.checkpoint, trained)
        breaches = find_breaches(start.checkpoint, trained, digests)
        if breaches:
            raise RuntimeError(f"{len(breaches)} frozen tensors changed during training, the first is {breaches[0]}")
        shutil.rmtree(directory / FINAL_DIR, ignore_errors=True)
        with partial_directory(directory / FINAL_DIR) as partial_final:
            write_like(partial_final, start=start.checkpoint, weights=trained)
        shutil.rmtree(raw)


def _write_metrics(directory: Path, log: RecordLog) -> None:
    import pandas as pd

    write_table(directory / "metrics.csv", pd.DataFrame([{k: v for k, v in row.items() if k != "key"} for row in log]))


def _write_report(directory: Path, start: Start, freeze: FreezeArguments, proofs: list[Record]) -> None:
    """Writes the proof of freezing: per checkpoint, per block and per tensor."""
    final = open_checkpoint(directory / FINAL_DIR)
    changes = compare_tensors(start.checkpoint, final, start.plan)
    broken = broken_tensors(changes)
    if broken:
        raise RuntimeError(f"{directory / FINAL_DIR}: {len(broken)} frozen tensors changed, the first is {broken[0]}")
    still = never_moved(changes)
    report = {
        "partition": {block: list(start.plan.partition.layers(block)) for block in BLOCKS},
        "freeze": freeze.freeze,
        "train_only": freeze.train_only,
        "always_freeze": freeze.always_freeze,
        "notes": start.plan.notes,
        "checkpoints": [*(proof["key"] for proof in proofs), FINAL_DIR],
        "num_frozen_tensors": len(start.plan.frozen),
        "num_breaches": 0,
        "never_moved": still,
        "blocks": summarise_changes(changes),
        "tensors": [{**asdict(change), "changed_frac": change.changed_frac} for change in changes],
    }
    write_text(directory / FREEZE_REPORT, json.dumps(report, indent=1) + "\n")
    print(
        f"proof: {len(start.plan.frozen)} frozen tensors are bit-identical in {len(proofs) + 1} checkpoints "
        f"({directory / FREEZE_REPORT})"
    )
    for name in still:
        print(f"WARNING: {name} was free to change and did not: not one of its elements moved")
