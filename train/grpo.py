"""How is a model trained with reinforcement learning? GRPO with verifiable rewards (TRL), any blocks frozen.

    python -m train.grpo --config configs/pocket/grpo.yaml --freeze mid
    python -m train.grpo --config configs/pocket/grpo.yaml --model_name_or_path outputs/pocket/sft/final \\
        --prompts outputs/pocket/data/data --freeze mid late.attn vision --output_dir outputs/grpo

The same seed gives every arm the same prompts in the same order. Checkpoints are saved only at the end of a generation
batch, so that a resumed run does not lose part of one.

OUTPUT/final/                the trained checkpoint, with rollout.json; with LoRA also OUTPUT/adapter/
OUTPUT/freeze_report.json    sha256 of every tensor, at the start and at the end
OUTPUT/metrics.csv           loss, rewards, gradient and update norms per step
OUTPUT/trajectory/           with keep_trajectory: the weights along training, as changes against the start

Exit status 1: a frozen tensor changed, or training failed. 75: SIGTERM stopped the run after it had saved itself; the
same command continues it.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_builders.prompt_sets.prompts import Prompt
from eval.replies.engines import check_platform
from models.loading import load_processor, local_checkpoint
from tracking.command import is_main_process, parse_arguments, run_command
from tracking.processes import on_main_process
from train.rewards.form import reply_form
from train.rewards.functions import RewardArguments, bind_rewards, in_form
from train.rollouts.generation_defaults import describe, set_aside
from train.rollouts.record import RolloutRecord
from train.rollouts.setup import RolloutArguments, check_context, check_rollout, engine_dtype, engine_name
from train.running.arguments import GRPO_CONFIG, MODEL_CONFIG, OUR_ARGUMENTS, GrpoArguments
from train.running.collectives import skip_shared_memory
from train.running.data import DataArguments, FilterReport, filter_prompts, load_prompts
from train.running.start import start_name
from train.sharing.arguments import begun_without_sharing

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, ProcessorMixin
    from trl import GRPOConfig, ModelConfig

    from train.freezing.freeze import FreezePlan
    from train.running.watched import WatchedTrainer

COMMAND = "train.grpo"


def microsteps_per_generation(training: "GRPOConfig") -> int:
    """Returns the number of forward and backward passes per generation batch."""
    return int(training.steps_per_generation * training.num_iterations)


def ends_generation(step: int, training: "GRPOConfig") -> bool:
    """True if no generation batch is partly used after a step."""
    return bool(step * training.gradient_accumulation_steps % microsteps_per_generation(training) == 0)


def generations_of_one_kind(training: "GRPOConfig") -> int:
    """Returns the number of generation batches after which a step also ends; only there may the kind of prompts change.

    With optimizer state on the CPU, DeepSpeed (0.19.8) loses the vision tower's gradients if a step's last pass has no
    image.
    """
    passes = microsteps_per_generation(training)
    return math.lcm(passes, int(training.gradient_accumulation_steps)) // passes


def check_save_steps(training: "GRPOConfig") -> None:
    """Rejects checkpoints within a generation batch, whose remainder a resumed run would lose."""
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


def train(training: "GRPOConfig", model_config: "ModelConfig", ours: GrpoArguments) -> Path:
    """Runs the training and returns the run directory."""
    from train.running.stage import Stage, check_windows, run_stage, steps_to_train

    check_windows(training)
    check_save_steps(training)
    check_rollout(training, ours.rollout, lora_dropout=model_config.lora_dropout if model_config.use_peft else 0.0)
    reward_functions = bind_rewards(
        ours.rewards,
        weights=training.reward_weights,
        prompt_style=ours.data.prompt_style,
        max_completion_tokens=training.max_completion_length,
    )
    if training.use_vllm and model_config.model_name_or_path:
        check_platform(
            local_checkpoint(model_config.model_name_or_path),
            otherwise="set use_vllm: false, or start from configs/pocket/init_vllm.yaml",
        )
    prompts, report = _usable_prompts(ours.data, model_config)
    if model_config.model_name_or_path:
        check_context(training, local_checkpoint(model_config.model_name_or_path), report.longest_prompt_tokens)
    prompts_per_generation = training.generation_batch_size // training.num_generations
    steps_per_generation = microsteps_per_generation(training) / training.gradient_accumulation_steps
    training.max_steps = steps_to_train(training, len(prompts), prompts_per_generation / steps_per_generation)
    training.shuffle_dataset = False
    directory = Path(training.output_dir)
    overwrite = ours.rewards.overwrite
    unshared = on_main_process(lambda: not overwrite and begun_without_sharing(directory, COMMAND))
    share = ours.sharing.share_prompts and not unshared

    def make_trainer(
        model: "PreTrainedModel", processor: "ProcessorMixin", dataset: "Dataset", plan: "FreezePlan"
    ) -> "WatchedTrainer":
        from train.running.trainers import WatchedGRPOTrainer, common_arguments

        unasked = set_aside(model)
        if unasked and not training.use_vllm and is_main_process():
            print(f"note: {describe(unasked)}", flush=True)
        rollout = _rollout(training, ours, model, plan, prompts) if training.use_vllm else {}
        if training.use_vllm and hasattr(processor, "image_token_id"):
            # TRL (1.16) prevents generate(), but not vLLM, from sampling image tokens.
            names = ("image_token_id", "video_token_id")  # InternVL's processor has only the first
            banned = {getattr(processor, name): -100.0 for name in names if hasattr(processor, name)}
            asked = training.generation_kwargs or {}
            training.generation_kwargs = {**asked, "logit_bias": {**asked.get("logit_bias", {}), **banned}}
        num_generations = training.num_generations_eval or training.num_generations
        given = common_arguments(
            training, processor, dataset, ours.data, ours.validation, num_generations=num_generations
        )
        form = reply_form(
            model.config.model_type,
            processor,
            box_space=ours.rewards.box_space,
            template_options=training.chat_template_kwargs,
        )
        rewards = in_form(reward_functions, ours.rewards.rewards, form)
        trainer = WatchedGRPOTrainer(model, reward_funcs=rewards, share_prompts=share, **given, **rollout)
        if is_main_process():
            print(f"shared prompts: {trainer.describe_sharing()}", flush=True)
            if unshared and ours.sharing.share_prompts:
                print(
                    f"note: the run in {directory} was begun before prompts could be shared, and continues without; "
                    "--overwrite true starts over with shared prompts",
                    flush=True,
                )
        return trainer

    stage = Stage(
        command=COMMAND,
        training=training,
        model_config=model_config,
        data=ours.data,
        freeze=ours.freeze,
        prompts=prompts,
        data_report=asdict(report),
        num_needed=math.ceil(training.max_steps / steps_per_generation) * prompts_per_generation,
        batch_size=generations_of_one_kind(training) * prompts_per_generation,
        is_divided=training.steps_per_generation > 1 or (training.use_vllm and training.vllm_mode == "server"),
        supervised=False,
        make_trainer=make_trainer,
        rollout=partial(_record, training, ours.rollout),
        telemetry=ours.telemetry,
        trajectory=ours.trajectory,
        can_resume_at=lambda step: ends_generation(step, training),
        further_settings={
            **_without_overwrite(ours.rewards),
            **({"reward_sources": digests} if (digests := ours.rewards.source_digests()) else {}),
            **asdict(ours.validation),
            **({} if unshared else asdict(ours.sharing)),
            **(asdict(ours.rollout) if training.use_vllm else {}),
        },
    )
    return run_stage(stage, overwrite=overwrite)


def _record(training: "GRPOConfig", arguments: RolloutArguments, model: "PreTrainedModel") -> RolloutRecord:
    """Returns the record of the engine that generates the replies of a run."""
    computing = "bfloat16" if training.bf16 else str(model.dtype).removeprefix("torch.")
    return RolloutRecord(
        engine=engine_name(training),
        engine_dtype=engine_dtype(training, arguments, computing),
        trainer_dtype=computing,
        corrected=bool(training.use_vllm and training.vllm_importance_sampling_correction),
    )


def _rollout(
    training: "GRPOConfig",
    ours: GrpoArguments,
    model: "PreTrainedModel",
    plan: "FreezePlan",
    prompts: Sequence[Prompt],
) -> dict[str, Any]:
    """Returns the trainer's settings for vLLM and the guard that compares it with the trainer."""
    from train.rollouts.gap import coarser
    from train.rollouts.guard import RolloutGuard
    from train.rollouts.vllm import EngineSetup

    arguments = ours.rollout
    record = _record(training, arguments, model)
    shown = [*prompts, *_validation_prompts(ours)]
    setup = EngineSetup(
        arguments=arguments,
        dtype=record.engine_dtype,
        trainable=frozenset(plan.trainable),
        max_images=max(len(prompt.images) for prompt in shown),
        device=training.device.type,
    )
    guard = RolloutGuard(
        dtype=coarser(record.engine_dtype, record.trainer_dtype),
        engine=record.engine,
        max_gap=arguments.rollout_max_gap,
        every=arguments.rollout_rounding_steps,
        top_p=training.top_p,
    )
    return {"engine": setup, "guard": guard}


def _validation_prompts(ours: GrpoArguments) -> list[Prompt]:
    """Returns the prompts, other than training prompts, that vLLM receives."""
    if ours.validation.validation_split is None:
        return []
    return load_prompts(replace(ours.data, split=ours.validation.validation_split))


def _usable_prompts(data: DataArguments, model_config: "ModelConfig") -> tuple[list[Prompt], FilterReport]:
    """Reads the prompts and filters unusable ones; the main process filters for all."""
    directory = local_checkpoint(start_name(model_config))
    prompts = load_prompts(data)
    kept, report = on_main_process(lambda: filter_prompts(prompts, data, load_processor(directory)))
    if is_main_process():
        for reason, filtered in report.filtered.items():
            print(f"left out: {filtered.count} of {len(prompts)} prompts, {reason}: {filtered.meaning}", flush=True)
    return kept, report


def _without_overwrite(rewards: RewardArguments) -> dict[str, Any]:
    """Returns the settings of the rewards; coordinates of boxes only if they are named."""
    left_out = ("overwrite", *(("box_space",) if rewards.box_space is None else ()))
    return {name: value for name, value in asdict(rewards).items() if name not in left_out}


def main(argv: list[str] | None = None) -> None:
    skip_shared_memory()
    training, model_config, data, freeze, rewards, telemetry, validation, rollout, sharing, trajectory = (
        parse_arguments(argv, GRPO_CONFIG, MODEL_CONFIG, *OUR_ARGUMENTS, description=__doc__, check_inputs=True)
    )
    ours = GrpoArguments(
        data=data,
        freeze=freeze,
        rewards=rewards,
        telemetry=telemetry,
        validation=validation,
        rollout=rollout,
        sharing=sharing,
        trajectory=trajectory,
    )
    directory = train(training, model_config, ours)
    if is_main_process():
        print(f"checkpoint: {directory / 'final'}")


if __name__ == "__main__":
    run_command(main)
