"""Can one batch hold prompts with and without images? A seam of one method in TRL's trainer."""

from typing import Any

from trl import GRPOTrainer


class MixedBatchGRPOTrainer(GRPOTrainer):
    """TRL's trainer, but a prompt without images has an empty list of them.

    TRL 1.16 gives None there (`GRPOTrainer._tokenize_prompts`), which the image processors of Transformers 5.23 refuse
    as soon as another prompt of the batch has an image.
    """

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[Any, Any, Any]:
        prompt_ids, images, multimodal_fields = super()._tokenize_prompts(prompts)
        if images is not None:
            images = [entry if entry is not None else [] for entry in images]
        return prompt_ids, images, multimodal_fields
