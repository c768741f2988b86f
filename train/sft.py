"""Supervised training on the responses of a prompt set, with TRL's `SFTTrainer`: the base model and the cold start.

python -m train.sft --config configs/pocket/sft.yaml
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tracking.command import parse_arguments, run_command
from train.data import DataArguments, load_prompts
from train.freeze import FreezeArguments
from train.stage import Stage, check_windows, run_stage, steps_to_train

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, ProcessorMixin, Trainer
    from trl import ModelConfig, SFTConfig


@dataclass(frozen=True, kw_only=True)
class RunArguments:
    """How the run directory is treated."""

    overwrite: bool = field(default=False, metadata={"help": "start over in the output directory"})


def train(
    training: "SFTConfig", model_config: "ModelConfig", data: DataArguments, freeze: FreezeArguments, *, overwrite: bool
) -> Path:
    """Trains to the end and returns the run directory."""
    from trl import SFTTrainer

    check_windows(training)
    prompts = load_prompts(data, with_response=True)
    prompts_per_step = training.per_device_train_batch_size * training.gradient_accumulation_steps * training.world_size
    training.max_steps = steps_to_train(training, len(prompts), prompts_per_step)
    training.train_sampling_strategy = "sequential"

    def make_trainer(model: "PreTrainedModel", processor: "ProcessorMixin", dataset: "Dataset") -> "Trainer":
        return SFTTrainer(model, args=training, train_dataset=dataset, processing_class=processor)

    stage = Stage(
        command="train.sft",
        training=training,
        model_config=model_config,
        data=data,
        freeze=freeze,
        prompts=prompts,
        num_needed=training.max_steps * prompts_per_step,
        batch_size=prompts_per_step,
        supervised=True,
        make_trainer=make_trainer,
    )
    return run_stage(stage, overwrite=overwrite)


def main(argv: list[str] | None = None) -> None:
    from trl import ModelConfig, SFTConfig

    training, model_config, data, freeze, run = parse_arguments(
        argv, SFTConfig, ModelConfig, DataArguments, FreezeArguments, RunArguments, description=__doc__
    )
    directory = train(training, model_config, data, freeze, overwrite=run.overwrite)
    print(f"checkpoint: {directory / 'final'}")


if __name__ == "__main__":
    run_command(main)
