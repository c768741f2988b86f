"""How is a model trained on given responses? Supervised training (TRL), for the base model and the cold start.

    python -m train.sft --config configs/pocket/sft.yaml

OUTPUT/final/         the trained checkpoint
OUTPUT/metrics.csv    loss, gradient and update norms per step
OUTPUT/trajectory/    with keep_trajectory: the weights along training, as changes against the start
OUTPUT/data_report.json    examples left out before training, by reason

An example whose prompt and response are longer than `max_length` tokens is left out and counted, not cut: a model would
learn answers without an end.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from data_builders.prompt_sets.prompts import Prompt
from models.loading import load_processor, local_checkpoint
from tracking.command import is_main_process, parse_arguments, run_command
from tracking.processes import on_main_process
from tracking.run import OVERWRITE_ARGUMENT
from train.freezing.freeze import FreezeArguments
from train.running.arguments import MODEL_CONFIG, SFT_CONFIG
from train.running.collectives import skip_shared_memory
from train.running.data import DataArguments, load_prompts
from train.running.start import start_name
from train.running.telemetry_arguments import TelemetryArguments
from train.running.validation import ValidationArguments
from train.trajectory.arguments import TrajectoryArguments

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, ProcessorMixin
    from trl import ModelConfig, SFTConfig

    from train.freezing.freeze import FreezePlan
    from train.running.examples import ExampleReport
    from train.running.watched import WatchedTrainer


@dataclass(frozen=True, kw_only=True)
class RunArguments:
    """Handling of the run directory."""

    overwrite: bool = field(default=False, metadata=OVERWRITE_ARGUMENT)


@dataclass(frozen=True, kw_only=True)
class SftArguments:
    """All arguments of a run that are not TRL's."""

    data: DataArguments
    freeze: FreezeArguments
    run: RunArguments
    telemetry: TelemetryArguments
    validation: ValidationArguments
    trajectory: TrajectoryArguments


OUR_ARGUMENTS = (
    DataArguments,
    FreezeArguments,
    RunArguments,
    TelemetryArguments,
    ValidationArguments,
    TrajectoryArguments,
)
"""Parsed along with TRL's `SFTConfig` and `ModelConfig`."""


def train(training: "SFTConfig", model_config: "ModelConfig", ours: SftArguments) -> Path:
    """Runs the training and returns the run directory."""
    from train.running.stage import Stage, check_windows, run_stage, steps_to_train

    check_windows(training)
    if ours.data.max_prompt_tokens is not None:
        raise ValueError("max_prompt_tokens has no effect in supervised training; its limit is max_length")
    prompts, report = _whole_examples(training, model_config, ours.data)
    prompts_per_step = training.per_device_train_batch_size * training.gradient_accumulation_steps * training.world_size
    training.max_steps = steps_to_train(training, len(prompts), prompts_per_step)
    training.train_sampling_strategy = "sequential"

    def make_trainer(
        model: "PreTrainedModel", processor: "ProcessorMixin", dataset: "Dataset", plan: "FreezePlan"
    ) -> "WatchedTrainer":
        from train.running.trainers import WatchedSFTTrainer, common_arguments

        given = common_arguments(training, processor, dataset, ours.data, ours.validation, with_response=True)
        trainer: WatchedTrainer = WatchedSFTTrainer(model, **given)
        return trainer

    stage = Stage(
        command="train.sft",
        training=training,
        model_config=model_config,
        data=ours.data,
        freeze=ours.freeze,
        prompts=prompts,
        num_needed=training.max_steps * prompts_per_step,
        batch_size=prompts_per_step,
        supervised=True,
        data_report=report.facts,
        make_trainer=make_trainer,
        telemetry=ours.telemetry,
        trajectory=ours.trajectory,
        further_settings=asdict(ours.validation),
    )
    return run_stage(stage, overwrite=ours.run.overwrite)


def _whole_examples(
    training: "SFTConfig", model_config: "ModelConfig", data: DataArguments
) -> "tuple[list[Prompt], ExampleReport]":
    """Reads the prompts and leaves out those that training would cut; the main process counts for all."""
    from train.running.examples import keep_whole

    prompts = load_prompts(data, with_response=True)
    directory = local_checkpoint(start_name(model_config))
    kept, report = on_main_process(
        lambda: keep_whole(prompts, data, load_processor(directory), max_length=training.max_length)
    )
    if is_main_process():
        print("".join(f"{note}\n" for note in report.notes), end="", flush=True)
    return kept, report


def main(argv: list[str] | None = None) -> None:
    skip_shared_memory()
    training, model_config, data, freeze, run, telemetry, validation, trajectory = parse_arguments(
        argv, SFT_CONFIG, MODEL_CONFIG, *OUR_ARGUMENTS, description=__doc__, check_inputs=True
    )
    ours = SftArguments(
        data=data, freeze=freeze, run=run, telemetry=telemetry, validation=validation, trajectory=trajectory
    )
    directory = train(training, model_config, ours)
    if is_main_process():
        print(f"checkpoint: {directory / 'final'}")


if __name__ == "__main__":
    run_command(main)
