"""Which examples can supervised training learn from whole? Those whose prompt and response fit into `max_length`.

TRL (1.16) cuts a longer example without a message. The model would learn answers without an end. If the prompt alone
fills `max_length`, an example with images stays in its batch at loss 0, and one without is dropped; a cut within the
tokens of an image ends the run. Here such examples are left out before training and counted by reason. What is left is
never cut, neither answers nor images.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from data_builders.prompt_sets.prompts import Prompt
from eval.replies.generation import render_messages, render_prompt, tokenizer_of
from eval.replies.prompting import chat_messages
from tracking.progress import progress
from train.running.data import FILTERED, DataArguments, Filtered, by_reason, count_text_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, ProcessorMixin

LEFT_OUT = {
    "broken_image": FILTERED["broken_image"],
    "image_token": FILTERED["image_token"],
    "cut_answer": "prompt and response are longer than max_length, which would cut the answer off; raise max_length",
}
"""Reasons for leaving out examples, in the order of the checks."""


@dataclass(frozen=True, kw_only=True)
class ExampleReport:
    """Report on the examples of a split that are left out; `facts` gives JSON values."""

    num_prompts: int
    num_kept: int
    max_length: int | None
    longest_example_tokens: int
    """Over all examples whose tokens could be counted, those left out included."""
    filtered: dict[str, Filtered]
    """Keyed by reason, one of `LEFT_OUT`."""

    @property
    def facts(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def notes(self) -> list[str]:
        """One line per reason, for the terminal."""
        return [
            f"left out: {filtered.count} of {self.num_prompts} examples, {reason}: {filtered.meaning}"
            + (f" (now {self.max_length}; the longest has {self.longest})" if reason == "cut_answer" else "")
            for reason, filtered in self.filtered.items()
        ]

    @property
    def longest(self) -> str:
        return f"{self.longest_example_tokens} tokens"


def keep_whole(
    prompts: Sequence[Prompt],
    arguments: DataArguments,
    processor: "ProcessorMixin | PreTrainedTokenizerBase",
    *,
    max_length: int | None,
) -> tuple[list[Prompt], ExampleReport]:
    """Returns the prompts whose examples fit into `max_length` tokens, and a report on the others.

    Args:
        max_length: the trainer's; None for no limit.

    Raises:
        ValueError: if no example is left.
    """
    kept: list[Prompt] = []
    left_out: dict[str, list[str]] = defaultdict(list)
    longest = 0
    for prompt in progress(prompts, label="counting tokens", total=len(prompts), unit="example"):
        tokens = count_example_tokens(prompt, arguments, processor)
        if isinstance(tokens, str):
            left_out[tokens].append(prompt.id)
            continue
        longest = max(longest, tokens)
        if max_length is not None and tokens > max_length:
            left_out["cut_answer"].append(prompt.id)
        else:
            kept.append(prompt)
    report = ExampleReport(
        num_prompts=len(prompts),
        num_kept=len(kept),
        max_length=max_length,
        longest_example_tokens=longest,
        filtered=by_reason(left_out, LEFT_OUT),
    )
    if not kept:
        counts = ", ".join(f"{reason} {filtered.count}" for reason, filtered in report.filtered.items())
        limit = f"; max_length is {max_length}, the longest example has {report.longest}" if longest else ""
        raise ValueError(
            f"{arguments.prompts}: no example of the split {arguments.split} is left ({counts or 'it is empty'}){limit}"
        )
    return kept, report


def count_example_tokens(
    prompt: Prompt, arguments: DataArguments, processor: "ProcessorMixin | PreTrainedTokenizerBase"
) -> int | str:
    """Returns the number of tokens of a prompt with its response, or the reason why they cannot be counted.

    They are divided as TRL divides them: the response begins where the rendered texts of the prompt alone and of both
    differ. With a processor the two are tokenized separately, with a tokenizer together.
    """
    begin = render_prompt(processor, prompt, style=arguments.prompt_style, system_prompt=arguments.system_prompt)
    whole = _render_example(prompt, arguments, processor)
    tokenizer = tokenizer_of(processor)
    if processor is tokenizer:
        return len(tokenizer(whole)["input_ids"])
    num_shared = sum(1 for _ in takewhile(lambda signs: signs[0] == signs[1], zip(begin, whole, strict=False)))
    tokens = count_text_tokens(whole[:num_shared], prompt, arguments, processor)
    if isinstance(tokens, str):
        return tokens
    if processor.image_token in whole[num_shared:]:
        return "image_token"
    return tokens + len(tokenizer(whole[num_shared:])["input_ids"])


def _render_example(
    prompt: Prompt, arguments: DataArguments, processor: "ProcessorMixin | PreTrainedTokenizerBase"
) -> str:
    assert prompt.response is not None, prompt.id
    messages: list[dict[str, Any]] = chat_messages(
        prompt.question,
        num_images=len(prompt.images),
        style=arguments.prompt_style,
        system_prompt=arguments.system_prompt,
    )
    messages.append({"role": "assistant", "content": [{"type": "text", "text": prompt.response}]})
    return render_messages(processor, messages)
