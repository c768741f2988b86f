"""How does each ability develop during training? One evaluation set per ability, for TRL's evaluation.

The set of an ability is the same for every arm, seed and step. It consists of full batches: TRL averages the batch
means, and several processes would pad an incomplete batch with duplicates.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from data_builders.prompt_sets.prompts import Prompt
from eval.replies.generation import tokenizer_of
from tracking.command import is_main_process
from tracking.processes import on_main_process
from train.running.data import DataArguments, build_dataset, load_prompts, training_order
from train.running.examples import keep_whole
from train.running.order import one_kind_a_batch

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import ProcessorMixin, TrainingArguments

ORDER_SEED = 0


@dataclass(frozen=True, kw_only=True)
class ValidationArguments:
    """Validation during training, every `eval_steps`, with `eval_strategy: steps`."""

    validation_split: str | None = field(
        default=None, metadata={"help": "split of the prompt set for validation; none by default"}
    )
    validation_limit: int | None = field(
        default=None,
        metadata={"help": "maximum number of prompts of each ability", "formerly": ("validation_prompts",)},
    )


def load_validation(
    arguments: ValidationArguments,
    data: DataArguments,
    training: "TrainingArguments",
    processor: "ProcessorMixin",
    *,
    num_generations: int = 1,
    with_response: bool = False,
) -> "dict[str, Dataset] | None":
    """Returns the configured evaluation sets, or None.

    In supervised training, examples that `max_length` would cut are left out, as in training.

    Raises:
        ValueError: if a split is given without a strategy, or vice versa.
    """
    if (arguments.validation_split is None) != (training.eval_strategy == "no"):
        raise ValueError(
            f"validation_split {arguments.validation_split} and eval_strategy {training.eval_strategy} do not fit; "
            "expected a split with eval_strategy: steps and eval_steps, or neither"
        )
    if arguments.validation_split is None:
        return None
    named = replace(data, split=arguments.validation_split)
    prompts = load_prompts(named, with_response=with_response)
    left_out: list[str] = []
    if with_response:
        keep = partial(keep_whole, prompts, named, processor, max_length=training.max_length)
        prompts, report = on_main_process(keep)
        left_out = [f"validation: {note}" for note in report.notes]
    batch_size = prompts_per_eval_batch(training, num_generations)
    sets, notes = validation_sets(
        prompts,
        data,
        batch_size=batch_size,
        max_prompts=arguments.validation_limit,
        with_response=with_response,
        text_only=tokenizer_of(processor) is processor,
    )
    if is_main_process():
        print("\n".join([*left_out, *notes]), flush=True)
    return sets


def prompts_per_eval_batch(training: "TrainingArguments", num_generations: int = 1) -> int:
    """Returns the number of prompts per evaluation batch over all processes, each answered `num_generations` times.

    Raises:
        ValueError: if a prompt's replies would not be in the same batch.
    """
    num_replies = int(training.per_device_eval_batch_size) * int(training.world_size)
    if num_replies % num_generations:
        raise ValueError(
            f"per_device_eval_batch_size {training.per_device_eval_batch_size} on {training.world_size} processes is "
            f"no multiple of the {num_generations} replies to a prompt; set num_generations_eval: 1"
        )
    return num_replies // num_generations


def validation_sets(
    prompts: Sequence[Prompt],
    data: DataArguments,
    *,
    batch_size: int,
    max_prompts: int | None = None,
    with_response: bool = False,
    text_only: bool = False,
) -> "tuple[dict[str, Dataset], list[str]]":
    """Returns one evaluation set per ability, and notes about prompts left out.

    Args:
        prompts: prompts of the evaluation split.
        data: folder and prompt style, as in training.
        batch_size: `prompts_per_eval_batch`.
        max_prompts: maximum number per ability.
        with_response: True for supervised training.
        text_only: True for a model without a vision tower.

    Raises:
        ValueError: if an ability has fewer prompts than one batch.
    """
    sets, notes = {}, []
    for ability in sorted({prompt.ability for prompt in prompts}):
        members = [prompt for prompt in prompts if prompt.ability == ability]
        order = training_order(len(members), len(members), seed=ORDER_SEED)
        order = one_kind_a_batch(order, [bool(prompt.images) for prompt in members], batch_size)
        wanted = len(order) if max_prompts is None else min(max_prompts, len(order))
        order = order[: wanted // batch_size * batch_size]
        if not order:
            raise ValueError(
                f"validation: {len(members)} prompts of {ability!r} (at most {max_prompts or 'all'}) do not fill one "
                f"batch of {batch_size}; lower per_device_eval_batch_size"
            )
        sets[ability] = build_dataset(members, order, data, with_response=with_response, text_only=text_only)
        notes.append(f"validation: {ability}, {len(order)} of {len(members)} prompts in batches of {batch_size}")
    return sets, notes
