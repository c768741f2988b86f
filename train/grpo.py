"""Reinforcement learning with verifiable rewards, with TRL's `GRPOTrainer`, any blocks frozen.

    python -m train.grpo --config configs/pocket/grpo.yaml --freeze mid

The same seed gives every arm the same prompts in the same order. Checkpoints stand at the ends of generation batches,
so that a resumed run does not lose half of one.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from data_builders.prompts import prompts_fingerprint
from tracking.command import parse_arguments, run_command
from tracking.run import open_run
from train.data import DataArguments, build_dataset, load_prompts, training_order
from train.freeze import FreezeArguments
from train.rewards import choose_rewards
from train.stage import CHECKPOINTS_DIR, check_windows, open_start, run_stage, steps_to_train, training_settings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin, Trainer
    from trl import GRPOConfig, ModelConfig


@dataclass(frozen=True, kw_only=True)
class RewardArguments:
    """What is rewarded; the weights are TRL's `reward_weights`."""

    rewards: list[str] = field(
        default_factory=lambda: ["accuracy", "format"],
        metadata={"help": "accuracy, format; in the order of reward_weights"},
    )
    overwrite: bool = field(default=False, metadata={"help": "start over in the output directory"})

    def __post_init__(self) -> None:
        choose_rewards(self.rewards)


def microsteps_per_generation(training: "GRPOConfig") -> int:
    """Returns how many forward and backward passes one batch of generations serves."""
    return int(training.steps_per_generation * training.num_iterations)


def check_save_steps(training: "GRPOConfig") -> None:
    """Refuses checkpoints in the middle of a generation batch, whose rest a resumed run would lose."""
    if training.save_strategy != "steps":
        return
    save_steps = int(training.save_steps)
    per_generation = microsteps_per_generation(training)
    if save_steps * training.gradient_accumulation_steps % per_generation:
        step = next(
            n
            for n in range(save_steps, save_steps + per_generation + 1)
            if n * training.gradient_accumulation_steps % per_generation == 0
        )
        raise ValueError(
            f"save_steps {save_steps} falls into the middle of a generation batch, which serves {per_generation} "
            f"passes of {training.gradient_accumulation_steps} a step; use {step}"
        )


def train(
    training: "GRPOConfig",
    model_config: "ModelConfig",
    data: DataArguments,
    freeze: FreezeArguments,
    rewards: RewardArguments,
) -> Path:
    """Trains to the end and returns the run directory."""
    if model_config.use_peft:
        raise ValueError("use_peft: adapters are not supported by train.grpo; train the weights themselves")
    check_save_steps(training)
    check_windows(training)
    if training.reward_weights and len(training.reward_weights) != len(rewards.rewards):
        raise ValueError(
            f"reward_weights {training.reward_weights} does not match the rewards {rewards.rewards}; expected one each"
        )
    start = open_start(model_config.model_name_or_path, freeze)
    prompts = load_prompts(data)
    prompts_per_generation = training.generation_batch_size // training.num_generations
    generations_per_step = training.gradient_accumulation_steps / microsteps_per_generation(training)
    training.max_steps = steps_to_train(training, len(prompts), prompts_per_generation * generations_per_step)
    directory = Path(training.output_dir)
    settings = {
        "start": start.name,
        "start_fingerprint": start.checkpoint.fingerprint(),
        "prompts_fingerprint": prompts_fingerprint(Path(data.prompts), data.split),
        "rewards": rewards.rewards,
        **asdict(data),
        **asdict(freeze),
        "dtype": model_config.dtype,
        "attn_implementation": model_config.attn_implementation,
        "training": training_settings(training),
    }
    with open_run(directory, command="train.grpo", settings=settings, overwrite=rewards.overwrite) as run:
        if run.finished:
            return directory
        num_generation_batches = -(
            -training.max_steps * training.gradient_accumulation_steps // microsteps_per_generation(training)
        )
        order = training_order(
            len(prompts), num_generation_batches * prompts_per_generation, seed=training.seed, shuffle=data.shuffle
        )
        training.output_dir = str(directory / CHECKPOINTS_DIR)
        training.shuffle_dataset = False

        def make_trainer(model: "PreTrainedModel", processor: "ProcessorMixin") -> "Trainer":
            from transformers import PrinterCallback, ProgressCallback

            from train.mixed_batches import MixedBatchGRPOTrainer

            trainer = MixedBatchGRPOTrainer(
                model,
                reward_funcs=choose_rewards(rewards.rewards),
                args=training,
                train_dataset=build_dataset(prompts, order, data, with_response=False),
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
    from trl import GRPOConfig, ModelConfig

    training, model_config, data, freeze, rewards = parse_arguments(
        argv, GRPOConfig, ModelConfig, DataArguments, FreezeArguments, RewardArguments, description=__doc__
    )
    directory = train(training, model_config, data, freeze, rewards)
    print(f"checkpoint: {directory / 'final'}")


if __name__ == "__main__":
    run_command(main)
