"""Supervised training on the responses of a prompt set, with TRL's `SFTTrainer`: the base model and the cold start.

python -m train.sft --config configs/pocket/sft.yaml
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from data_builders.prompts import prompts_fingerprint
from tracking.command import parse_arguments, run_command
from tracking.run import open_run
from train.data import DataArguments, build_dataset, load_prompts, training_order
from train.freeze import FreezeArguments
from train.stage import CHECKPOINTS_DIR, check_windows, open_start, run_stage, steps_to_train, training_settings

if TYPE_CHECKING:
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

    if model_config.use_peft:
        raise ValueError("use_peft: adapters are not supported by train.sft; train the weights themselves")
    check_windows(training)
    start = open_start(model_config.model_name_or_path, freeze)
    prompts = load_prompts(data, with_response=True)
    prompts_per_step = training.per_device_train_batch_size * training.gradient_accumulation_steps * training.world_size
    directory = Path(training.output_dir)
    training.max_steps = steps_to_train(training, len(prompts), prompts_per_step)
    settings = {
        "start": start.name,
        "start_fingerprint": start.checkpoint.fingerprint(),
        "prompts_fingerprint": prompts_fingerprint(Path(data.prompts), data.split),
        **asdict(data),
        **asdict(freeze),
        "dtype": model_config.dtype,
        "attn_implementation": model_config.attn_implementation,
        "training": training_settings(training),
    }
    with open_run(directory, command="train.sft", settings=settings, overwrite=overwrite) as run:
        if run.finished:
            return directory
        order = training_order(
            len(prompts), int(training.max_steps * prompts_per_step), seed=training.seed, shuffle=data.shuffle
        )
        training.output_dir = str(directory / CHECKPOINTS_DIR)
        training.train_sampling_strategy = "sequential"

        def make_trainer(model: "PreTrainedModel", processor: "ProcessorMixin") -> "Trainer":
            from transformers import PrinterCallback, ProgressCallback

            trainer = SFTTrainer(
                model,
                args=training,
                train_dataset=build_dataset(prompts, order, data, with_response=True),
                processing_class=processor,
            )
            for callback in (PrinterCallback, ProgressCallback):
                trainer.remove_callback(callback)
            return trainer

        run_stage(
            run,
            start=start,
            dtype=model_config.dtype,
            attn_implementation=model_config.attn_implementation,
            make_trainer=make_trainer,
            settings=settings,
        )
    return directory


def main(argv: list[str] | None = None) -> None:
    from trl import ModelConfig, SFTConfig

    training, model_config, data, freeze, run = parse_arguments(
        argv, SFTConfig, ModelConfig, DataArguments, FreezeArguments, RunArguments, description=__doc__
    )
    directory = train(training, model_config, data, freeze, overwrite=run.overwrite)
    print(f"checkpoint: {directory / 'final'}")


if __name__ == "__main__":
    run_command(main)
