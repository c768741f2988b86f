"""How does one training run work, for any objective? Freeze, train, prove, write; it can be killed and continued.

OUTPUT/run.json, records.jsonl      settings and attempts; one record per logging step
OUTPUT/proofs.jsonl                 one record per saved checkpoint: did any frozen tensor change? And one per
                                    attempt's first step: where backward went, and the optimizer's state
OUTPUT/checkpoints/checkpoint-N     the trainer's, for resuming; each has this name only once it is proved
OUTPUT/final/                       the result, in the start checkpoint's dtype, spelling and sharding; after RL with
                                    rollout.json: what wrote the replies, and how far from the trainer
OUTPUT/adapter/                     under LoRA, the adapter that `final/` has merged in
OUTPUT/data_report.json             prompts left out before training, by reason
OUTPUT/trajectory/                  with keep_trajectory: the weights along training, as changes against the start
OUTPUT/elements.json, elements.safetensors    with train_elements: which elements train, one bit per element
OUTPUT/freeze_report.json, metrics.csv, freeze_table.csv

Works with one process, DDP and DeepSpeed; only the main process writes the suite's files.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_builders.prompt_sets.prompts import Prompt, prompts_fingerprint
from eval.replies.rollouts import ROLLOUT_FILE
from merge.trajectories.store import TrajectoryWriter
from models.loading import DEFAULT_ATTENTION, load_model, load_processor, resolved_revision
from tracking.command import Preempted
from tracking.processes import num_processes, on_main_process, wait_for_all
from tracking.product import write_text
from tracking.progress import say
from tracking.records import RecordLog
from tracking.run import RUN_FILE, read_run
from tracking.sharding import open_shared_run
from train.freezing.backward import GraphWitness, stop_backward_early
from train.freezing.elements import write_mask
from train.freezing.engine import (
    check_batches,
    check_precision,
    check_shared_keys,
    engine_settings,
    keeps_gradients,
    open_engine,
    zero_stage,
)
from train.freezing.float32 import KeptFloat32
from train.freezing.freeze import FreezeArguments, FreezePlan, apply_freeze, format_freeze_table, frozen_digests
from train.freezing.masked import MaskedElements, check_elements, mask_gradients
from train.rollouts.record import RolloutRecord, write_rollout
from train.running.callbacks import (
    UNPROVED_DIR,
    CheckpointProof,
    FirstStep,
    MetricsRecorder,
    Preemption,
    ProgressReporter,
    StaleGradients,
    checkpoint_step,
    last_checkpoint,
)
from train.running.data import DataArguments, build_dataset, training_order
from train.running.order import one_kind_a_batch
from train.running.reporting import FreezeTable, wandb_run
from train.running.results import saved_breaches, write_final, write_freeze_report, write_metrics
from train.running.start import Start, open_start, with_elements
from train.running.telemetry import Telemetry
from train.running.telemetry_arguments import TelemetryArguments
from train.trajectory.arguments import TrajectoryArguments, check_adapters
from train.trajectory.recorder import KeepTrajectory

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, ProcessorMixin, TrainingArguments
    from trl import ModelConfig

    from train.running.watched import WatchedTrainer

CHECKPOINTS_DIR = "checkpoints"
DATA_REPORT = "data_report.json"
PLACES = ("output_dir", "logging_dir", "run_name", "deepspeed", "local_rank")
"""Training arguments that are paths and do not affect the result; DeepSpeed's file is recorded by its content."""

TrainerFactory = Callable[["PreTrainedModel", "ProcessorMixin", "Dataset", FreezePlan], "WatchedTrainer"]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """The specification of one training run."""

    command: str
    """The module's name, such as `train.grpo`."""
    training: "TrainingArguments"
    model_config: "ModelConfig"
    data: DataArguments
    freeze: FreezeArguments
    prompts: Sequence[Prompt]
    num_needed: int
    """Number of prompts that the run consumes, including repetitions."""
    batch_size: int
    """Prompts per batch over all processes, all of one kind if that matters."""
    is_divided: bool = False
    """True if even a single process cannot process a batch of prompts with and without images."""
    supervised: bool
    """True if the prompts' responses are the training targets."""
    make_trainer: TrainerFactory
    telemetry: TelemetryArguments
    trajectory: TrajectoryArguments = field(default_factory=TrajectoryArguments)
    data_report: Mapping[str, Any] | None = None
    """The filtered prompts, by reason."""
    can_resume_at: Callable[[int], bool] = lambda step: True
    """Whether a checkpoint after a step loses nothing."""
    further_settings: Mapping[str, Any] = field(default_factory=dict)
    rollout: Callable[["PreTrainedModel"], RolloutRecord] | None = None
    """The engine that generates replies, if the run generates any."""


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
    """Rejects checkpoints within a logging window, whose first part a resumed run would lose."""
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


def check_images(stage: Stage, start: Start) -> None:
    """Rejects prompts with images for a text-only model, and prompts without images if only vision parts train."""
    family, seeing = start.checkpoint.family, [prompt.id for prompt in stage.prompts if prompt.images]
    if family.text_only and seeing:
        raise ValueError(
            f"{len(seeing)} of {len(stage.prompts)} prompts of the split {stage.data.split} have images, the first is "
            f"{seeing[0]!r}, and {family.model_type} is a text-only model; name abilities without images"
        )
    trains = {start.plan.layout.parameters[name].region for name in start.plan.trainable}
    if trains <= {"vision", "projector"} and len(seeing) < len(stage.prompts):
        raise ValueError(
            f"only {' and '.join(sorted(trains))} would train, and {len(stage.prompts) - len(seeing)} prompts have no "
            "image to learn from; name abilities with images"
        )


def run_stage(stage: Stage, *, overwrite: bool) -> Path:
    """Trains from the start checkpoint to `final/`, resuming from the last proved checkpoint, if any.

    Returns:
        The run directory.

    Raises:
        ValueError: for invalid arguments, before anything is written.
        RuntimeError: if a frozen tensor changed, or training affected frozen parts; `final/` is not written.
        Preempted: if SIGTERM stopped the run; the same command continues it.
    """
    start = open_start(stage.model_config, stage.freeze)
    lora = stage.model_config.use_peft
    check_adapters(stage.trajectory, lora=lora)
    directory = Path(stage.training.output_dir)
    if stage.freeze.train_elements:
        check_elements(stage.training, lora=lora)
    start = with_elements(start, stage.freeze, directory, overwrite=overwrite)
    check_images(stage, start)
    exact = (*start.plan.frozen, *(start.mask.bits if start.mask is not None else ()))
    check_precision(start.checkpoint, exact, stage.training, stage.model_config.dtype, lora=lora)
    check_batches(stage.training, start.plan, some_without_images=not all(p.images for p in stage.prompts))
    check_shared_keys(stage.training, start.checkpoint, start.plan, lora=lora)
    settings = stage_settings(stage, start)
    try:
        if not overwrite:
            on_main_process(lambda: _check_num_processes(directory, settings["num_processes"]))
        with open_shared_run(directory, command=stage.command, settings=settings, overwrite=overwrite) as run:
            if not run.finished:
                attention = stage.model_config.attn_implementation or DEFAULT_ATTENTION
                run.note(start_revision=resolved_revision(start.name), attn_implementation=attention)
                _train(stage, start, directory)
    except Preempted:
        wait_for_all()  # launchers end all processes as soon as one has ended, while the main one still records it
        raise
    return directory


def stage_settings(stage: Stage, start: Start) -> dict[str, Any]:
    """Returns everything that determines the result of a run."""
    config = stage.model_config
    adapters = ("use_peft", "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "use_rslora")
    return {
        "start": start.name,
        "start_fingerprint": start.checkpoint.fingerprint(),
        "prompts_fingerprint": prompts_fingerprint(Path(stage.data.prompts), stage.data.split),
        **stage.data.settings,
        **_freeze_settings(stage, start),
        "dtype": config.dtype,
        "attn_implementation": config.attn_implementation,
        **({name: getattr(config, name) for name in adapters} if config.use_peft else {}),
        **engine_settings(stage.training),
        **asdict(stage.telemetry),
        **stage.trajectory.settings,
        "training": {key: value for key, value in stage.training.to_dict().items() if key not in PLACES},
        **stage.further_settings,
    }


def _freeze_settings(stage: Stage, start: Start) -> dict[str, Any]:
    """Returns what is frozen; elements only if a mask is asked for."""
    settings = asdict(stage.freeze)
    if start.mask is None:
        del settings["train_elements"]
        return settings
    return {**settings, "elements_sha256": start.mask.sha256}


def _check_num_processes(directory: Path, now: int) -> None:
    """Rejects continuing a run with another number of processes."""
    if not (directory / RUN_FILE).is_file():
        return
    before = read_run(directory)["settings"].get("num_processes")
    if before is not None and before != now:
        raise ValueError(
            f"{directory} was begun by {before} processes, now there are {now}: batches, random numbers and ZeRO's "
            f"shards are cut per process, so it would become another run; use {before} processes, another "
            "--output-dir, or --overwrite to start over"
        )


def _train(stage: Stage, start: Start, directory: Path) -> None:
    lora = stage.model_config.use_peft
    checkpoints_dir = directory / CHECKPOINTS_DIR
    logs: list[RecordLog] = []
    """The main process's `records.jsonl` and `proofs.jsonl`."""
    writers: list[TrajectoryWriter] = []
    """The main process's, if steps are kept."""

    def begin() -> tuple[Path | None, dict[str, str]]:
        print(f"start: {start.name}\npartition: {start.plan.partition}\n{format_freeze_table(start.plan)}", flush=True)
        if stage.data_report is not None:
            write_text(directory / DATA_REPORT, json.dumps(stage.data_report, indent=1) + "\n")
        if start.mask is not None:
            write_mask(directory, start.mask)
        resume_from = last_checkpoint(checkpoints_dir)
        resume_step = checkpoint_step(resume_from) if resume_from else 0
        for name in ("records.jsonl", "proofs.jsonl"):
            logs.append(stack.enter_context(RecordLog(directory / name)))
            logs[-1].keep(lambda record: record["step"] <= resume_step)
        digests = frozen_digests(start.checkpoint, start.plan.frozen_in_memory)
        if stage.trajectory.keep_trajectory:
            writers.append(TrajectoryWriter(directory, start.checkpoint, known=digests, resume_step=resume_step))
        return resume_from, digests

    with ExitStack() as stack:
        resume_from, digests = on_main_process(begin)
        log, proofs = logs or (None, None)
        trainer, witness, rollout = _build_trainer(stage, start, checkpoints_dir / UNPROVED_DIR)
        if log is not None:
            trainer.add_callback(MetricsRecorder(log))
        num_kept, trainer.args.save_total_limit = trainer.args.save_total_limit, None  # pruned by CheckpointProof
        preemption = Preemption(stage.can_resume_at)
        stack.callback(preemption.restore)
        breaches_of = partial(saved_breaches, start=start, digests=digests, lora=lora)
        for callback in (
            CheckpointProof(breaches_of, proofs, num_kept=num_kept),
            FirstStep(trainer, witness, proofs),
            preemption,
            ProgressReporter(directory),
            FreezeTable(start.plan, directory),
            KeptFloat32(start.checkpoint),
        ):
            trainer.add_callback(callback)
        if every := stage.trajectory.keep_trajectory:
            writer = writers[0] if writers else None
            trainer.add_callback(KeepTrajectory(trainer, start.checkpoint, start.plan.trainable, writer, every=every))
        if start.mask is not None:
            trainer.add_callback(MaskedElements(trainer, start.checkpoint, start.mask))
        trainer.watch(Telemetry(start.plan, stage.telemetry))
        if keeps_gradients(trainer.args) and not all(prompt.images for prompt in stage.prompts):
            trainer.add_callback(StaleGradients(start.plan))
        with wandb_run(trainer.args.report_to, directory):
            trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
        if preemption.stopped:
            raise Preempted(f"stopped by SIGTERM after step {trainer.state.global_step} of {trainer.state.max_steps}")
        if trainer.state.global_step < trainer.state.max_steps:
            raise RuntimeError(f"training stopped at step {trainer.state.global_step} of {trainer.state.max_steps}")
        provenance = partial(_write_rollout, rollout, log, trainer.rollout_facts())
        write_final(trainer, start, digests, directory, lora=lora, provenance=provenance)
        if log is not None and proofs is not None:
            write_metrics(directory, log)
            write_freeze_report(directory, start, stage.freeze, list(proofs), lora=lora)
            shutil.rmtree(checkpoints_dir / UNPROVED_DIR, ignore_errors=True)


def _write_rollout(record: RolloutRecord | None, log: RecordLog | None, facts: Mapping[str, Any], final: Path) -> None:
    """Writes `rollout.json` next to the weights, or removes the start's, which describes other rollouts."""
    if record is None:
        (final / ROLLOUT_FILE).unlink(missing_ok=True)
    else:
        assert log is not None
        write_rollout(final, record, log, facts)


def _build_trainer(
    stage: Stage, start: Start, save_dir: Path
) -> tuple["WatchedTrainer", GraphWitness, RolloutRecord | None]:
    """Loads and freezes the model, orders the prompts and passes both to the stage's trainer."""
    import datasets
    import transformers

    from train.freezing.adapters import add_adapters

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()

    config, training = stage.model_config, stage.training
    open_engine(training)
    say(f"loading {start.name}")
    model = base = load_model(
        start.checkpoint.directory, dtype=config.dtype or "auto", attn_implementation=config.attn_implementation
    )
    stop_backward_early(base, start.plan)
    if config.use_peft:
        # Under ZeRO-3, PEFT's fp32 adapters with bf16 weights break DeepSpeed's gathering (TRL issue 6089).
        model = add_adapters(base, start.plan, config, autocast_adapter_dtype=zero_stage(training) != 3)
    else:
        apply_freeze(base, start.plan)
        if start.mask is not None:
            mask_gradients(base, start.mask)
        # Trainer resumes with in-memory names; from checkpoints in the hub's spelling it would silently load nothing
        # (Transformers 5.23, without DeepSpeed).
        base.save_pretrained = partial(base.save_pretrained, save_original_format=False)
    witness = GraphWitness(model, start.plan, base=base)
    rollout = stage.rollout(base) if stage.rollout is not None else None
    training.output_dir = str(save_dir)
    dataset = build_dataset(
        stage.prompts,
        _order(stage),
        stage.data,
        with_response=stage.supervised,
        text_only=start.checkpoint.family.text_only,
    )
    trainer = stage.make_trainer(model, load_processor(start.checkpoint.directory), dataset, start.plan)
    for callback in (transformers.PrinterCallback, transformers.ProgressCallback):
        trainer.remove_callback(callback)
    return trainer, witness, rollout


def _order(stage: Stage) -> list[int]:
    """Returns the prompts of the run in order, in batches of one kind if a batch is divided."""
    kinds = [bool(prompt.images) for prompt in stage.prompts]
    # With optimizer state on the CPU, DeepSpeed (0.19.8) loses a tower's gradients if a step's last pass has no image.
    divided = num_processes() > 1 or stage.is_divided or keeps_gradients(stage.training)
    mixed = len(set(kinds)) > 1 and divided
    spare = 2 * stage.batch_size if mixed else 0
    seed, shuffle = stage.training.seed, stage.data.shuffle
    order = training_order(len(stage.prompts), stage.num_needed + spare, seed=seed, shuffle=shuffle)
    return one_kind_a_batch(order, kinds, stage.batch_size)[: stage.num_needed] if mixed else order
