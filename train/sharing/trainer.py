"""TRL's GRPO trainer, reading each prompt of a group once. Read in TRL 1.16; `tests/train/sharing` compares the two."""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from trl import GRPOTrainer
from trl.trainer import grpo_trainer
from trl.trainer.utils import shuffle_sequence_dict

from models.families import family_of
from train.rollouts.vllm import replaced
from train.sharing.batch import Batch, join_pictures
from train.sharing.forward import Scores, layout_if_cheaper, model_inputs, scores, together_again
from train.sharing.models import backbone_of, hidden_size_of, obstacle, tower_changes
from train.sharing.order import NORMALIZED_PER_PASS, reordered, together
from train.sharing.pictures import PictureReader, instead
from train.sharing.processor import DistinctProcessor, count_tiles
from train.sharing.rollout import generate_from_shared_prompts

PICTURE_FIELDS = ("pixel_values", "image_grid_thw", "num_images", "num_tiles", "mm_token_type_ids")
"""Image fields in TRL's (1.16) batches, for the families of `models/families.py`."""
ZERO_3 = 3


class SharingGRPOTrainer(GRPOTrainer):
    """Computes log-probabilities and entropies with each distinct prompt, and each distinct picture, read once."""

    def __init__(self, *args: Any, share_prompts: bool = True, **kwargs: Any) -> None:
        """Args:
        share_prompts: False for TRL's own computation.
        """
        self.not_shared: str | None = "share_prompts is false"
        """Why every row is read by itself; None if prompts are shared."""
        self._reader = PictureReader()
        self._has_signal: list[bool] | None = None
        """Whether each row's advantage differs from zero, while a loss is computed in which only such rows count."""
        super().__init__(*args, **kwargs)
        family = family_of(self.model.config.model_type)
        self._tile_tokens: int | None = self.processing_class.image_seq_length if family.tiled else None
        """Image tokens per tile, if the family cuts pictures into tiles."""
        if share_prompts:
            self.not_shared = obstacle(self.accelerator.unwrap_model(self.model))

    def describe_sharing(self) -> str:
        """Returns whether prompts are shared, or where and why not, in one line."""
        if self.not_shared is not None:
            return f"no, {self.not_shared}; each reply is computed with a prompt of its own"
        rollouts = self._rollout_obstacle()
        if self.args.per_device_train_batch_size == 1:
            single = "a pass has a single reply (per_device_train_batch_size 1)"
            return f"nowhere, because {single} and {rollouts}" if rollouts else f"in rollouts only, because {single}"
        parts = ["yes, each prompt is read once for all its replies in a pass, and each distinct picture once"]
        if rollouts is not None:
            parts.append(f"not in rollouts, because {rollouts}")
        if self._fixed_order is not None and self.args.steps_per_generation > 1:
            parts.append(f"a group's replies stay spread over the passes of a step, because {self._fixed_order}")
        return "; ".join(parts)

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        with replaced(grpo_trainer, "shuffle_sequence_dict", self._shuffled):
            return super()._prepare_inputs(generation_batch)

    def _shuffled(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Shuffles a generation batch as TRL does, and brings the replies of a group together within a step."""
        num_rows = len(batch["prompt_ids"])
        rows = torch.arange(num_rows) + self.accelerator.process_index * num_rows
        shuffled: dict[str, Any] = shuffle_sequence_dict({**batch, "group": rows // self.num_generations})
        groups = shuffled.pop("group").tolist()
        if not self.brings_together:
            return shuffled
        rows_per_step = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps
        return reordered(shuffled, together(groups, rows_per_step))

    @property
    def brings_together(self) -> bool:
        """True if the replies of a group are brought together within a step."""
        return self.not_shared is None and self._fixed_order is None

    @property
    def _fixed_order(self) -> str | None:
        """Why another order of the passes would change a step's gradient; None if it would not."""
        if self.loss_type in NORMALIZED_PER_PASS:
            return f"loss_type {self.loss_type} is normalized per pass"
        if self._entropy_bonus_enabled:
            return "the entropy bonus is a mean per pass"
        if self.top_entropy_quantile < 1.0:
            return f"top_entropy_quantile {self.top_entropy_quantile:g} is taken per pass"
        return None

    def _rollout_obstacle(self) -> str | None:
        """Returns why rollouts do not share prompts; None if Transformers generates, with its default kind of cache."""
        if self.use_vllm:
            return "vLLM generates the replies"
        if self.use_transformers_continuous_batching:
            return "continuous batching generates the replies"
        config = self.generation_config  # with vLLM there is none
        if config.cache_implementation is not None:
            return f"cache_implementation is {config.cache_implementation}"
        if config.use_cache is False:
            return "use_cache is false"
        if self._is_zero_3 and not self.args.ds3_gather_for_generation:
            return "ds3_gather_for_generation is false"
        return None

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        self._reader.forget()
        if self.not_shared is not None:
            return super()._generate_and_score_completions(inputs)
        distinct = DistinctProcessor(self.processing_class, tile_tokens=self._tile_tokens)
        with instead(self, "processing_class", distinct):
            return super()._generate_and_score_completions(inputs)

    def _generate_single_turn(
        self, prompt_ids: Any, images: Any, multimodal_fields: Any, num_generations: int, has_tool_images: bool = False
    ) -> Any:
        """Generates as TRL does; where Transformers does it, each distinct prompt and picture is read once."""
        turn = partial(
            super()._generate_single_turn, prompt_ids, images, multimodal_fields, num_generations, has_tool_images
        )
        if self.not_shared is not None or self._rollout_obstacle() is not None:
            return turn()
        model = self.accelerator.unwrap_model(self.model_wrapped)
        backbone = backbone_of(model)
        num_pictures = None if images is None else [len(row or ()) for row in images]
        if images is not None and self._tile_tokens is not None:
            num_pictures = count_tiles(prompt_ids, self.processing_class.image_token_id, self._tile_tokens)
        generate = partial(generate_from_shared_prompts, model, model.generate, num_pictures)
        with (
            instead(model, "generate", generate),
            self._reader.reading(backbone, keep=self._tower_is_fixed(self.model, backbone)),
        ):
            return turn()

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **fields: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Returns what TRL's function returns; fields of model families that the suite does not support are refused."""
        if self.not_shared is not None:
            return super()._get_per_token_logps_and_entropies(  # type: ignore[no-any-return]
                model,
                input_ids,
                attention_mask,
                logits_to_keep,
                batch_size=batch_size,
                compute_entropy=compute_entropy,
                compute_aux_loss=compute_aux_loss,
                **fields,
            )
        batch = _batch(input_ids, attention_mask, logits_to_keep, fields)
        assert not compute_aux_loss, "only mixture-of-experts models have one"
        backbone = backbone_of(self.accelerator.unwrap_model(model))
        num_rows = len(input_ids)
        step = batch_size or num_rows
        with self._reader.reading(backbone, keep=self._tower_is_fixed(model, backbone)):
            parts = [
                self._scores(model, backbone, batch, range(start, min(start + step, num_rows)), entropy=compute_entropy)
                for start in range(0, num_rows, step)
            ]
        entropies = [part.entropies for part in parts if part.entropies is not None]
        return torch.cat([part.logps for part in parts]), torch.cat(entropies) if entropies else None, None

    def _tower_is_fixed(self, model: Any, backbone: Any) -> bool:
        """True if features stay valid.

        Under ZeRO-3 all processes must run the tower together, whatever each of them has kept.
        """
        return not self._is_zero_3 and (model is self.ref_model or not tower_changes(backbone))

    @property
    def _is_zero_3(self) -> bool:
        plugin = self.accelerator.state.deepspeed_plugin
        return plugin is not None and plugin.zero_stage == ZERO_3

    def _compute_loss(self, model: Any, inputs: Any) -> Any:
        """Computes TRL's loss; rows that cannot have a gradient are read without one.

        Only in a single process without an engine: the passes of several processes would not match.
        """
        alone = self.accelerator.num_processes == 1 and not self.is_deepspeed_enabled
        if alone and torch.is_grad_enabled() and self._loss_is_advantage_times_something:
            self._has_signal = (inputs["advantages"] != 0).tolist()
        try:
            return super()._compute_loss(model, inputs)
        finally:
            self._has_signal = None

    @property
    def _loss_is_advantage_times_something(self) -> bool:
        """True if a row whose advantage is zero has no gradient."""
        return self.beta == 0.0 and not self._entropy_bonus_enabled and not self.aux_loss_enabled

    def _scores(self, model: Any, backbone: Any, batch: Batch, rows: range, *, entropy: bool) -> Scores:
        """Scores some of the rows, those of groups without any advantage without a gradient."""
        part = batch.part(rows)
        silent = self._silent_rows(part, backbone, rows)
        if not silent:
            return self._pass(model, backbone, part, entropy=entropy)
        loud = sorted(set(range(len(rows))) - set(silent))
        with torch.no_grad():
            without = self._pass(model, backbone, part.part(silent), entropy=entropy)
        return together_again(self._pass(model, backbone, part.part(loud), entropy=entropy), without, loud, silent)

    def _silent_rows(self, part: Batch, backbone: Any, rows: range) -> list[int]:
        """Returns the rows to be read without a gradient; none if all would be, or the tower would get no gradient.

        An optimizer treats a gradient of zero and a missing one differently.
        """
        if self._has_signal is None:
            return []
        groups = part.groups()
        silent = [group for group in groups if not any(self._has_signal[rows[row]] for row in group.rows)]
        quiet = sorted(row for group in silent for row in group.rows)
        loud = sorted(set(range(len(rows))) - set(quiet))
        misses_pictures = tower_changes(backbone) and part.has_pictures(quiet) and not part.has_pictures(loud)
        return quiet if loud and not misses_pictures else []

    def _pass(self, model: Any, backbone: Any, batch: Batch, *, entropy: bool) -> Scores:
        """Scores the rows of one forward pass."""
        packed = layout_if_cheaper(batch, hidden_size=hidden_size_of(backbone))
        if packed is None:
            pictures = batch.pictures
            fields = {} if pictures is None else join_pictures([picture for row in pictures for picture in row])
            logps, entropies, _ = super()._get_per_token_logps_and_entropies(
                model,
                batch.ids,
                batch.mask,
                batch.num_reply_columns,
                compute_entropy=entropy,
                num_images=None if pictures is None else [len(row) for row in pictures],  # or tiles, alike to TRL
                mm_token_type_ids=batch.types,
                **fields,
            )
            return Scores(logps=logps, entropies=entropies)
        groups, layout = packed
        inputs = model_inputs(batch, groups, layout, backbone)
        with self.accelerator.autocast():
            outputs = model(**inputs, fused_lm_head=True)
        return scores(outputs, batch, layout, entropy=entropy)


def _batch(input_ids: Tensor, attention_mask: Tensor, num_reply_columns: int, fields: dict[str, Any]) -> Batch:
    pixels, grids, num_images, num_tiles, types = (fields.pop(name, None) for name in PICTURE_FIELDS)
    foreign = [name for name, value in fields.items() if value is not None]
    assert not foreign, f"{foreign}: no supported family has these fields"
    return Batch.of(
        input_ids,
        attention_mask,
        num_reply_columns,
        pixels=pixels,
        grids=grids,
        num_pictures=num_tiles or num_images,
        types=types,
    )
