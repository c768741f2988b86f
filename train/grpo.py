"""Reinforcement learning with verifiable rewards, with TRL's `GRPOTrainer`, any blocks frozen.

    python -m train.grpo --config configs/pocket/grpo.yaml --freeze mid

The same seed gives every arm the same prompts in the same order. Checkpoints stand at the ends of generation batches,
so that a resumed run does not lose half of one.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tracking.command import parse_arguments, run_command
from train.data import DataArguments, load_prompts
from train.freeze import FreezeArguments
from train.rewards import choose_rewards
from train.stage import Stage, check_windows, run_stage, steps_to_train

if TYPE_CHECKING:
    from datasets import Dataset
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


def ends_generation(step: int, training: "GRPOConfig") -> bool:
    """True where no batch of generations is left half used after a step."""
    return bool(step * training.gradient_accumulation_steps % microsteps_per_generation(training) == 0)


def check_save_steps(training: "GRPOConfig") -> None:
    """Refuses checkpoints in the middle of a generation batch, whose rest a resumed run would lose."""
    if training.save_strategy != "steps":
        return
    save_steps = int(training.save_steps)
    per_generation = microsteps_per_generation(training)
    if not ends_generation(save_steps, training):
        step = next(n for n in range(save_steps, save_steps + per_generation + 1) if ends_generation(n, training))
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
    check_windows(training)
    check_save_steps(training)
    if training.reward_weights and len(training.reward_weights) != len(rewards.rewards):
        raise ValueError(
            f"reward_weights {training.reward_weights} does not match the rewards {rewards.rewards}; expected one each"
        )
    prompts = load_prompts(data)
    prompts_per_generation = training.generation_batch_size // training.num_generations
    steps_per_generation = microsteps_per_generation(training) / training.gradient_accumulation_steps
    training.max_steps = steps_to_train(training, len(prompts), prompts_per_generation / steps_per_generation)
    training.shuffle_dataset = False

    def make_trainer(model: "PreTrainedModel", processor: "ProcessorMixin", dataset: "Dataset") -> "Trainer":
        from train.mixed_batches import MixedBatchGRPOTrainer

        return MixedBatchGRPOTrainer(
            model,
            reward_funcs=choose_rewards(rewards.rewards),
            args=training,
            train_dataset=dataset,
            processing_class=processor,
        )

    stage = Stage(
        command="train.grpo",
        training=training,
        model_config=model_config,
        data=data,
        freeze=freeze,
        prompts=prompts,
        num_needed=math.ceil(training.max_steps / steps_per_generation) * prompts_per_generation,
        batch_size=prompts_per_generation,
        num_parts=training.steps_per_generation,
        supervised=False,
        make_trainer=make_trainer,
        can_resume_at=lambda step: ends_generation(step, training),
        further_settings={"rewards": rewards.rewards},
    )
    return run_stage(stage, overwrite=rewards.overwrite)


def main(argv: list[str] | None = None) -> None:
    from trl import GRPOConfig, ModelConfig

    training, model_config, data, freeze, rewards = parse_arguments(
        argv, GRPOConfig, ModelConfig, DataArguments, FreezeArguments, RewardArguments, description=__doc__
    )
    directory = train(training, model_config, data, freeze, rewards)
    print(f"checkpoint: {directory / 'final'}")


if __name__ == "__main__":
    run_command(main)
