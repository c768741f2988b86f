"""Which trainers run? TRL's, watched, and mended where a batch holds prompts with and without images."""

from typing import Any

from trl import GRPOTrainer, SFTTrainer
from trl.trainer.utils import RepeatSampler

from train.watched import WatchedTrainer


class WatchedSFTTrainer(SFTTrainer, WatchedTrainer):
    """TRL's supervised trainer with measures per block."""


class WatchedGRPOTrainer(GRPOTrainer, WatchedTrainer):
    """TRL's GRPO trainer with measures per block, for prompts with and without images."""

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[Any, Any, Any]:
        """Gives a prompt without images an empty list of them.

        TRL 1.16 gives None, which the image processors of Transformers 5.23 refuse as soon as another prompt of the
        batch has an image.
        """
        prompt_ids, images, multimodal_fields = super()._tokenize_prompts(prompts)
        if images is not None:
            images = [entry if entry is not None else [] for entry in images]
        return prompt_ids, images, multimodal_fields

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        """Keeps the order of an evaluation set, whose batches are of one kind (TRL 1.16 shuffles it)."""
        return RepeatSampler(eval_dataset, mini_repeat_count=self.num_generations_eval, shuffle=False)
