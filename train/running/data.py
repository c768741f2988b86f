"""Which prompts does the trainer get, and in which order? Prompt sets as TRL datasets, in an order fixed by a seed.

The order is computed in advance for as many passes as the run needs, and the trainer's shuffling is disabled. So every
arm with the same seed gets the same prompts in the same order, and a resumed run continues within it. Unusable prompts
are filtered first and counted by reason (`FILTERED`).
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_builders.prompt_sets.depth import eight_bits
from data_builders.prompt_sets.fields import check_selection, select_prompts
from data_builders.prompt_sets.images import DECODING_ERRORS
from data_builders.prompt_sets.prompts import Prompt, check_folder, check_split, read_prompts
from eval.grading import is_gradable
from eval.replies.generation import render_prompt, tokenizer_of
from eval.replies.pictures import num_picture_tokens
from eval.replies.prompting import STYLE_ARGUMENT, STYLES, SYSTEM_ARGUMENT, check_style
from tracking.command import check_all, check_least
from tracking.progress import progress

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase, ProcessorMixin

FILTERED = {
    "broken_image": "an image cannot be read, or has a side 200 times the other",
    "image_token": "the text itself holds the token that stands for an image",
    "too_long": "more tokens than max_prompt_tokens",
    "ungradable": "the grader cannot parse the gold answer, or not in time",
}
"""Reasons for filtering prompts, in the order of the checks."""
MAX_EXAMPLES = 20
"""Number of prompts named per reason in a report."""
NUM_TOKENIZED = 512
"""Prompts tokenized together."""


@dataclass(frozen=True, kw_only=True)
class DataArguments:
    """The prompts that a run trains on."""

    prompts: str = field(metadata={"help": "folder of a prompt set", "check": check_folder})
    split: str = field(metadata={"help": "split of the prompt set, such as sft or rl"})
    abilities: list[str] = field(
        default_factory=list, metadata={"help": "use only prompts of these abilities; all by default"}
    )
    select: list[str] = field(
        default_factory=list,
        metadata={
            "help": "use only prompts with FIELD=VALUE or FIELD=VALUE,VALUE: fields of their meta, or ability, such as "
            "modality=negative; of several entries, all must hold; all prompts by default",
            "check": check_selection,
        },
    )
    shuffle: bool = field(
        default=True,
        metadata={
            "help": "whether the prompts are shuffled; false: in the order of the file, such as for a curriculum"
        },
    )
    prompt_style: str = field(
        default="plain",
        metadata=STYLE_ARGUMENT,
    )
    system_prompt: str | None = field(default=None, metadata=SYSTEM_ARGUMENT)

    max_prompt_tokens: int | None = field(
        default=None,
        metadata={
            "help": "maximum length of a prompt in tokens, images included; longer ones are left out; no limit "
            "by default"
        },
    )

    def __post_init__(self) -> None:
        check_all(partial(check_style, self.prompt_style), partial(check_least, self, max_prompt_tokens=1))

    def check_inputs(self) -> None:
        """Refuses a split that is not there."""
        check_split(Path(self.prompts), self.split)

    @property
    def settings(self) -> dict[str, Any]:
        """What determines a run's result; a selection only if there is one."""
        return {name: value for name, value in asdict(self).items() if name != "select" or value}


def load_prompts(arguments: DataArguments, *, with_response: bool = False) -> list[Prompt]:
    """Reads the prompts of a run; an ability or selection without prompts, or a missing response, is an error."""
    prompts = read_prompts(Path(arguments.prompts), arguments.split)
    present = {prompt.ability for prompt in prompts}
    for ability in arguments.abilities:
        if ability not in present:
            raise ValueError(
                f"{arguments.prompts}: split {arguments.split} has no prompt of the ability {ability!r}; "
                f"it has {', '.join(sorted(present))}"
            )
    chosen = [prompt for prompt in prompts if not arguments.abilities or prompt.ability in arguments.abilities]
    if arguments.select:
        chosen = select_prompts(chosen, arguments.select, where=f"{arguments.prompts}: split {arguments.split}")
    for prompt in chosen:
        if with_response and prompt.response is None:
            raise ValueError(f"prompt {prompt.id!r} has no response; supervised training needs one for every prompt")
    return chosen


@dataclass(frozen=True, kw_only=True)
class Filtered:
    """The prompts filtered for one reason."""

    meaning: str
    count: int
    examples: list[str]
    """Ids of the first ones."""


@dataclass(frozen=True, kw_only=True)
class FilterReport:
    """Report on the filtered prompts of a split; `dataclasses.asdict` gives JSON values."""

    num_prompts: int
    num_kept: int
    max_prompt_tokens: int | None
    longest_prompt_tokens: int
    """Statistics of the kept prompts."""
    filtered: dict[str, Filtered]
    """Keyed by reason, one of `FILTERED`; a prompt is counted under the first that applies."""


def by_reason(ids: Mapping[str, Sequence[str]], meanings: Mapping[str, str]) -> dict[str, Filtered]:
    """Returns what a report says of filtered prompts, in the order of the reasons' meanings.

    Args:
        ids: reason -> ids of the prompts.
    """
    return {
        reason: Filtered(meaning=meaning, count=len(ids[reason]), examples=list(ids[reason][:MAX_EXAMPLES]))
        for reason, meaning in meanings.items()
        if reason in ids
    }


def filter_prompts(
    prompts: Sequence[Prompt], arguments: DataArguments, processor: "ProcessorMixin | PreTrainedTokenizerBase"
) -> tuple[list[Prompt], FilterReport]:
    """Filters prompts that are too long, have broken images, or a gold answer that the grader cannot parse.

    Raises:
        ValueError: if no prompt is left.
    """
    gradable = cache(is_gradable)
    kept: list[Prompt] = []
    filtered: dict[str, list[str]] = defaultdict(list)
    longest = 0
    counted = count_tokens(prompts, arguments, processor)
    for prompt, tokens in progress(counted, label="filtering prompts", total=len(prompts), unit="prompt"):
        if isinstance(tokens, str):
            filtered[tokens].append(prompt.id)
        elif arguments.max_prompt_tokens is not None and tokens > arguments.max_prompt_tokens:
            filtered["too_long"].append(prompt.id)
        elif not gradable(prompt.answer, prompt.answer_kind, prompt.choices, prompt.precision):
            filtered["ungradable"].append(prompt.id)
        else:
            kept.append(prompt)
            longest = max(longest, tokens)
    if not kept:
        counts = ", ".join(f"{reason} {len(ids)}" for reason, ids in filtered.items())
        raise ValueError(
            f"{arguments.prompts}: no prompt of the split {arguments.split} is left ({counts or 'it is empty'})"
        )
    return kept, FilterReport(
        num_prompts=len(prompts),
        num_kept=len(kept),
        max_prompt_tokens=arguments.max_prompt_tokens,
        longest_prompt_tokens=longest,
        filtered=by_reason(filtered, FILTERED),
    )


def count_tokens(
    prompts: Sequence[Prompt], arguments: DataArguments, processor: "ProcessorMixin | PreTrainedTokenizerBase"
) -> Iterator[tuple[Prompt, int | str]]:
    """Yields each prompt with its number of tokens, or the reason why it cannot be tokenized; tokenizes in batches."""
    tokenizer = tokenizer_of(processor)
    picture_tokens = cache(partial(num_picture_tokens, processor))
    render = partial(render_prompt, processor, style=arguments.prompt_style, system_prompt=arguments.system_prompt)
    for first in range(0, len(prompts), NUM_TOKENIZED):
        part = prompts[first : first + NUM_TOKENIZED]
        texts = [render(prompt) for prompt in part]
        lengths = map(len, tokenizer(texts)["input_ids"])
        for prompt, text, length in zip(part, texts, lengths, strict=True):
            pictures = _count_picture_tokens(text, prompt, arguments, processor, picture_tokens)
            yield prompt, pictures if isinstance(pictures, str) else length + pictures


def count_text_tokens(
    text: str, prompt: Prompt, arguments: DataArguments, processor: "ProcessorMixin | PreTrainedTokenizerBase"
) -> int | str:
    """Returns the number of tokens of a rendered prompt, or the reason why it cannot be tokenized.

    An image's tokens are computed from its height and width, without decoding its pixels.
    """
    num_tokens = len(tokenizer_of(processor)(text)["input_ids"])
    pictures = _count_picture_tokens(text, prompt, arguments, processor, partial(num_picture_tokens, processor))
    return pictures if isinstance(pictures, str) else num_tokens + pictures


def _count_picture_tokens(
    text: str,
    prompt: Prompt,
    arguments: DataArguments,
    processor: "ProcessorMixin | PreTrainedTokenizerBase",
    picture_tokens: Callable[[tuple[int, int]], int],
) -> int | str:
    """Returns how many tokens the pictures add to those of the text, which has one for each of them."""
    if processor is tokenizer_of(processor):
        return 0
    if text.count(processor.image_token) != len(prompt.images):
        return "image_token"
    added = 0
    for image in prompt.images:
        try:
            added += picture_tokens(_image_size(Path(arguments.prompts) / image)) - 1
        except DECODING_ERRORS:
            return "broken_image"
    return added


def _image_size(path: Path) -> tuple[int, int]:
    """Returns width and height; PNG checksums show whether a file is complete, other formats must be decoded."""
    from PIL import Image

    with Image.open(path) as image:
        size: tuple[int, int] = image.size
        if image.format == "PNG":
            image.verify()
        else:
            image.load()
    return size


def training_order(num_prompts: int, num_needed: int, *, seed: int, shuffle: bool = True) -> list[int]:
    """Returns prompt indices: as many separately shuffled passes as needed, truncated to `num_needed`."""
    order: list[int] = []
    while len(order) < num_needed:
        pass_number = len(order) // num_prompts
        rng = np.random.default_rng([seed, pass_number])
        order.extend(rng.permutation(num_prompts).tolist() if shuffle else range(num_prompts))
    return order[:num_needed]


def build_dataset(
    prompts: Sequence[Prompt],
    order: Sequence[int],
    arguments: DataArguments,
    *,
    with_response: bool,
    text_only: bool = False,
) -> "Dataset":
    """Returns a conversational TRL dataset in the given order; images are opened lazily, each once per batch.

    For a text-only model it has no image column: TRL treats even empty lists as multimodal data.
    """
    from datasets import Dataset, Image, List

    dataset = Dataset.from_list([_row(prompt, arguments, with_response=with_response) for prompt in prompts])
    if text_only:
        return dataset.remove_columns("images").select(order)
    return dataset.cast_column("images", List(Image(decode=False))).select(order).with_transform(_open_images)


def _open_images(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Returns the columns of some rows with their images opened; rows with the same image get the same object.

    An image is opened as evaluations open it: transparency on white, and turned no further. `datasets` would turn it by
    its EXIF tag.
    """
    from PIL import Image
    from qwen_vl_utils.vision_process import to_rgb

    paths = {entry["path"] for row in batch.get("images", ()) for entry in row}
    opened = {}
    for path in paths:
        with Image.open(path) as image:
            opened[path] = to_rgb(eight_bits(image))
    images = [[opened[entry["path"]] for entry in row] for row in batch.get("images", ())]
    return {**batch, **({"images": images} if "images" in batch else {})}


def _row(prompt: Prompt, arguments: DataArguments, *, with_response: bool) -> dict[str, Any]:
    messages = [{"role": "user", "content": STYLES[arguments.prompt_style].format(question=prompt.question)}]
    if arguments.system_prompt:
        messages.insert(0, {"role": "system", "content": arguments.system_prompt})
    row: dict[str, Any] = {
        "prompt": messages,  # TRL puts the images first, like eval.replies.prompting
        "images": [_image_entry(Path(arguments.prompts) / image) for image in prompt.images],
    }
    if with_response:
        if prompt.response is None:
            raise ValueError(f"prompt {prompt.id!r} has no response; supervised training needs one for every prompt")
        row["completion"] = [{"role": "assistant", "content": prompt.response}]
    else:
        row["answer"] = prompt.answer
        row["answer_kind"] = prompt.answer_kind
        row["choices"] = list(prompt.choices)
        row["precision"] = prompt.precision
    return row


def _image_entry(path: Path) -> dict[str, str | bytes | None]:
    """Returns an image as `datasets` stores it, its path, after its header was read."""
    from PIL import Image

    try:
        with Image.open(path):
            return {"path": str(path), "bytes": None}
    except DECODING_ERRORS as error:
        raise ValueError(f"{path}: not readable as a picture ({type(error).__name__}); repair or remove it") from error
