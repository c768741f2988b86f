"""What does the trainer see, and in which order? Prompt sets as TRL datasets, in an order fixed by a seed.

The order is laid out beforehand, over as many passes as the run needs, and the trainer is told not to shuffle. So every
arm with the same seed sees the same prompts in the same order, and a resumed run continues in the middle of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_builders.prompts import Prompt, read_prompts
from eval.prompting import STYLES, check_style

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True, kw_only=True)
class DataArguments:
    """The prompts a run trains on."""

    prompts: str = field(metadata={"help": "folder of a prompt set"})
    split: str = field(metadata={"help": "its split, such as sft or rl"})
    abilities: list[str] = field(
        default_factory=list, metadata={"help": "only prompts of these abilities; all by default"}
    )
    shuffle: bool = field(default=True, metadata={"help": "false: in the order of the file, such as a curriculum"})
    prompt_style: str = field(default="plain", metadata={"help": "plain, boxed or think; the same as in evaluation"})
    system_prompt: str | None = field(default=None, metadata={"help": "system message; none by default"})

    def __post_init__(self) -> None:
        check_style(self.prompt_style)


def load_prompts(arguments: DataArguments, *, with_response: bool = False) -> list[Prompt]:
    """Reads the prompts of a run; an ability that none has, or a missing response, is an error."""
    prompts = read_prompts(Path(arguments.prompts), arguments.split)
    present = {prompt.ability for prompt in prompts}
    for ability in arguments.abilities:
        if ability not in present:
            raise ValueError(
                f"{arguments.prompts}: split {arguments.split} has no prompt of the ability {ability!r}; "
                f"it has {', '.join(sorted(present))}"
            )
    chosen = [prompt for prompt in prompts if not arguments.abilities or prompt.ability in arguments.abilities]
    for prompt in chosen:
        if with_response and prompt.response is None:
            raise ValueError(f"prompt {prompt.id!r} has no response; supervised training needs one for every prompt")
    return chosen


def training_order(num_prompts: int, num_needed: int, *, seed: int, shuffle: bool = True) -> list[int]:
    """Returns indices of prompts: as many passes as are needed, each shuffled anew, cut at `num_needed`."""
    order: list[int] = []
    while len(order) < num_needed:
        pass_number = len(order) // num_prompts
        rng = np.random.default_rng([seed, pass_number])
        order.extend(rng.permutation(num_prompts).tolist() if shuffle else range(num_prompts))
    return order[:num_needed]


def build_dataset(
    prompts: Sequence[Prompt], order: Sequence[int], arguments: DataArguments, *, with_response: bool
) -> "Dataset":
    """Returns a conversational TRL dataset in the given order; images are opened when a row is read."""
    from datasets import Dataset, Image, List

    rows = [_row(prompt, arguments, with_response=with_response) for prompt in prompts]
    dataset = Dataset.from_list(rows).cast_column("images", List(Image()))
    return dataset.select(order)


def _row(prompt: Prompt, arguments: DataArguments, *, with_response: bool) -> dict[str, Any]:
    messages = [{"role": "user", "content": STYLES[arguments.prompt_style].format(question=prompt.question)}]
    if arguments.system_prompt:
        messages.insert(0, {"role": "system", "content": arguments.system_prompt})
    row: dict[str, Any] = {
        "prompt": messages,  # TRL puts the images first, as eval.prompting does
        "images": [str(Path(arguments.prompts) / image) for image in prompt.images],
    }
    if with_response:
        if prompt.response is None:
            raise ValueError(f"prompt {prompt.id!r} has no response; supervised training needs one for every prompt")
        row["completion"] = [{"role": "assistant", "content": prompt.response}]
    else:
        row["answer"] = prompt.answer
        row["answer_kind"] = prompt.answer_kind
    return row
