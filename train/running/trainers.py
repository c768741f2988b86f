"""The trainers: TRL's, with telemetry, support for prompts with and without images, and checked rollouts."""

import copy
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl import SFTTrainer
from trl.trainer import grpo_trainer
from trl.trainer.utils import RepeatSampler, create_model_from_path

from models.checkpoint import open_checkpoint
from models.families import family_of
from models.loading import put_back_float32
from train.rewards.equal import equal_groups
from train.rollouts.gap import Gap
from train.rollouts.guard import Pass, RolloutGuard
from train.rollouts.record import GAP, GAP_P99, ROUNDING
from train.rollouts.vllm import CheckedGeneration, EngineSetup, replaced
from train.running.data import DataArguments
from train.running.validation import ValidationArguments, load_validation
from train.running.watched import WatchedTrainer
from train.sharing.trainer import PICTURE_FIELDS, SharingGRPOTrainer

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from transformers import PreTrainedModel, ProcessorMixin, TrainingArguments


def common_arguments(
    training: "TrainingArguments",
    processor: "ProcessorMixin",
    dataset: "Dataset",
    data: DataArguments,
    validation: ValidationArguments,
    *,
    num_generations: int = 1,
    with_response: bool = False,
) -> dict[str, Any]:
    """Returns what both trainers are given beside the model: arguments, prompts to train on and to evaluate on.

    Args:
        num_generations: replies to each prompt of an evaluation.
        with_response: for supervised training.
    """
    evaluated = load_validation(
        validation, data, training, processor, num_generations=num_generations, with_response=with_response
    )
    return {"args": training, "train_dataset": dataset, "eval_dataset": evaluated, "processing_class": processor}


class WatchedSFTTrainer(SFTTrainer, WatchedTrainer):
    """TRL's supervised trainer with telemetry per block."""


def _reference_model(policy: "PreTrainedModel", path: str, **options: Any) -> "PreTrainedModel":
    """Loads the reference model with the policy's configuration.

    TRL 1.16 loads it with the checkpoint's own, and an attention that this names is preferred to the one asked for.
    Tensors that the family keeps in fp32 are those of the checkpoint, as in the policy.
    """
    model: PreTrainedModel = create_model_from_path(path, config=copy.deepcopy(policy.config), **options)
    if family_of(policy.config.model_type).float32:
        put_back_float32(model, open_checkpoint(Path(path)))
    return model


class WatchedGRPOTrainer(SharingGRPOTrainer, WatchedTrainer):
    """TRL's GRPO trainer with telemetry per block, for prompts with and without images, and with checked rollouts."""

    def __init__(
        self, *args: Any, engine: EngineSetup | None = None, guard: RolloutGuard | None = None, **kwargs: Any
    ) -> None:
        """Args:
        engine: settings for vLLM, if it generates the replies.
        guard: compares its log-probabilities with the trainer's.
        """
        self._guard = guard
        self._scored: torch.Tensor | None = None
        """The trainer's log-probabilities of the current pass."""
        self._rewards: torch.Tensor
        """The rewards of the current generation batch, of all processes."""
        self._written_at: int | None = None
        """The step whose weights generated the current replies."""
        policy = args[0] if args else kwargs["model"]
        with (
            replaced(grpo_trainer, "VLLMGeneration", partial(CheckedGeneration, setup=engine)),
            replaced(grpo_trainer, "create_model_from_path", partial(_reference_model, policy)),
        ):
            super().__init__(*args, **kwargs)

    def rollout_facts(self) -> dict[str, Any]:
        return {"weight_sync": asdict(self.vllm_generation.report)} if self.use_vllm else {}

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[Any, Any, Any]:
        """Gives a prompt without images an empty image list.

        TRL 1.16 passes None, which the image processors of Transformers 5.23 reject if another prompt of the batch has
        an image.
        """
        prompt_ids, images, multimodal_fields = super()._tokenize_prompts(prompts)
        if images is not None:
            images = [entry if entry is not None else [] for entry in images]
        return prompt_ids, images, multimodal_fields

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        if self.model.training:
            self._written_at = self.state.global_step
        output = super()._generate_and_score_completions(inputs)
        self._silence_equal_groups(output["advantages"])
        return output

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Any:
        self._rewards = super()._calculate_rewards(*args, **kwargs)
        return self._rewards

    def _silence_equal_groups(self, advantages: "torch.Tensor") -> None:
        """Sets advantages to exactly zero where all rewards of a group are equal, and counts such groups.

        TRL's own count (`frac_reward_zero_std`, 1.16) misses groups whose fp32 mean is rounded, and with
        `scale_rewards: batch` it looks at the batch.
        """
        mode = "train" if self.model.training else "eval"
        equal = equal_groups(
            self._rewards,
            self.reward_weights.to(self._rewards.device),
            self.num_generations if mode == "train" else self.num_generations_eval,
            per_function=self.multi_objective_aggregation == "normalize_then_sum",
        )
        first = self.accelerator.process_index * len(advantages)
        advantages[equal[first : first + len(advantages)]] = 0.0
        self._metrics[mode]["frac_reward_zero_std"][-1] = equal.float().mean().item()
        logged = self._logs["advantages"]
        for place, is_equal in enumerate(reversed(equal.tolist()), start=1):
            if is_equal and place <= len(logged):
                logged[-place] = 0.0

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> tuple[Any, Any, Any]:
        found: tuple[Any, Any, Any] = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        self._scored = found[0].detach()
        return found

    def _compute_loss(self, model: Any, inputs: Any) -> Any:
        """Computes TRL's loss, and compares its log-probabilities with vLLM's.

        Only with the weights that generated the replies: later steps on the same replies legitimately differ. TRL's
        `_last_loaded_step` is not sufficient, since a validation syncs the weights between two such steps (1.16).
        """
        loss = super()._compute_loss(model, inputs)
        if self._guard is not None and self.model.training and self.state.global_step == self._written_at:
            self._compare_rollout(model, inputs)
        return loss

    def _compare_rollout(self, model: Any, inputs: Any) -> None:
        assert self._guard is not None and self._scored is not None
        trainer = self._scored
        num_images = inputs.get("num_images") or [0] * len(trainer)
        work = Pass(
            engine=inputs["sampling_per_token_logps"],
            trainer=trainer,
            mask=inputs["completion_mask"],
            has_images=[count > 0 for count in num_images],
        )
        score = partial(self._score, model, inputs)
        self._log_gaps(self._guard.compare(work, model, score, self.accelerator.device, step=self.state.global_step))

    def _score(self, model: Any, inputs: Any) -> "torch.Tensor":
        import torch

        prompts, replies = inputs["prompt_ids"], inputs["completion_ids"]
        logps, _, _ = self._get_per_token_logps_and_entropies(
            model,
            torch.cat([prompts, replies], dim=1),
            torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
            replies.size(1),
            **{name: inputs.get(name) for name in PICTURE_FIELDS},
        )
        scored: torch.Tensor = logps.detach()
        return scored

    def _log_gaps(self, found: dict[str, Gap]) -> None:
        assert self._guard is not None
        for kind, gap in found.items():
            self._metrics["train"][f"{GAP}/{kind}"].append(gap.mean)
            self._metrics["train"][f"{GAP_P99}/{kind}"].append(gap.p99)
            if kind in self._guard.noise:
                self._metrics["train"][f"{ROUNDING}/{kind}"].append(self._guard.noise[kind].mean)

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        """Keeps the order of an evaluation set, whose batches are of one kind (TRL 1.16 shuffles it)."""
        return RepeatSampler(eval_dataset, mini_repeat_count=self.num_generations_eval, shuffle=False)
