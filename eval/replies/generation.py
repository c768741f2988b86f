"""How are answers generated? Batched, left-padded, with the checkpoint's own generation settings overridden.

Greedy by default; with a `SeededSampler` (`sampling.py`) each reply is sampled with its own seed. Decoding is in
`decoding.py`; other engines are in `engines.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from data_builders.prompt_sets.depth import eight_bits
from data_builders.prompt_sets.prompts import Prompt
from eval.replies.decoding import LENGTH, REPETITION, STOP, Reply, decode, read_prompts
from eval.replies.prompting import chat_messages
from eval.replies.sampling import SeededSampler

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

    Processor: TypeAlias = ProcessorMixin | PreTrainedTokenizerBase

__all__ = [
    "LENGTH", "REPETITION", "STOP", "Generation", "SeededSampler", "as_text", "chat_template_of", "encode", "generate",
    "greedy_settings", "make_batches", "render_prompt", "resolved_settings", "tokenizer_of",
]  # fmt: skip


@dataclass(frozen=True)
class Generation:
    """A model's reply to one prompt."""

    response: str
    num_tokens: int
    finish_reason: str
    """`stop` if the model ended its turn, `length` at the limit, `repetition` if stopped for repeating itself."""


def tokenizer_of(processor: "Processor") -> "PreTrainedTokenizerBase":
    """Returns a processor's tokenizer; for a text-only model the processor is the tokenizer."""
    from transformers import PreTrainedTokenizerBase

    tokenizer: PreTrainedTokenizerBase = (
        processor if isinstance(processor, PreTrainedTokenizerBase) else processor.tokenizer
    )
    return tokenizer


def chat_template_of(processor: "Processor") -> str:
    """Returns the chat template used to render prompts.

    Raises:
        ValueError: if the model has none, or several.
    """
    template = processor.chat_template or tokenizer_of(processor).chat_template
    if not isinstance(template, str):
        raise ValueError(f"the model has {'several chat templates' if template else 'no chat template'}; expected one")
    return template


def render_prompt(processor: "Processor", prompt: Prompt, *, style: str, system_prompt: str | None) -> str:
    """Returns the prompt's text with the chat template and generation prompt applied."""
    messages = chat_messages(prompt.question, num_images=len(prompt.images), style=style, system_prompt=system_prompt)
    if processor is tokenizer_of(processor) and prompt.images:
        raise ValueError(f"prompt {prompt.id!r} has images, and the model is text-only")
    return render_messages(processor, messages, add_generation_prompt=True)


def render_messages(processor: "Processor", messages: Sequence[dict[str, Any]], **options: Any) -> str:
    """Returns messages, whose contents are lists of parts, as the text of the chat template.

    Args:
        options: further arguments of the template. That of a text-only model gets contents as strings.
    """
    if processor is tokenizer_of(processor):
        messages = [{**message, "content": message["content"][0]["text"]} for message in messages]
    return str(processor.apply_chat_template(messages, tokenize=False, **options))


def make_batches(prompts: Sequence[Prompt], texts: Sequence[str], batch_size: int) -> list[list[int]]:
    """Groups prompt indices into batches of similar length, text-only prompts separately; deterministic."""
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i].images), -len(texts[i]), i))
    batches: list[list[int]] = []
    for index in order:
        if (
            batches
            and len(batches[-1]) < batch_size
            and len(prompts[batches[-1][0]].images) == len(prompts[index].images)
        ):
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def greedy_settings(model: "PreTrainedModel", processor: "Processor", max_new_tokens: int) -> dict[str, Any]:
    """Returns a complete generation configuration: nothing (such as a repetition penalty) is inherited implicitly."""
    return _settings(model.generation_config.eos_token_id, processor, max_new_tokens)


def resolved_settings(directory: Path, processor: "Processor", max_new_tokens: int) -> dict[str, Any]:
    """Returns the same settings for a checkpoint that is not loaded."""
    from transformers import GenerationConfig

    named = directory / "generation_config.json"
    source = named if named.is_file() else directory / "config.json"
    declared = GenerationConfig.from_pretrained(directory, source.name).eos_token_id
    return _settings(declared, processor, max_new_tokens)


def _settings(declared: Any, processor: "Processor", max_new_tokens: int) -> dict[str, Any]:
    tokenizer = tokenizer_of(processor)
    return {
        "do_sample": False,
        "num_beams": 1,
        "repetition_penalty": 1.0,
        "max_new_tokens": max_new_tokens,
        "eos_token_id": sorted(
            {*(declared if isinstance(declared, list) else [declared]), tokenizer.eos_token_id} - {None}
        ),
        "pad_token_id": tokenizer.pad_token_id,
    }


def generate(
    model: "PreTrainedModel",
    processor: "Processor",
    texts: Sequence[str],
    images: "Sequence[Sequence[Path | Image]]",
    settings: dict[str, Any],
    sampler: SeededSampler | None = None,
    *,
    rows: Sequence[int] | None = None,
    repetition_window: int = 0,
) -> list[Generation]:
    """Answers rendered prompts as one batch: greedily, or by sampling if a sampler is given.

    Args:
        texts: rendered prompts.
        images: the images of each prompt; files are opened in RGB, without resizing.
        settings: a complete generation configuration.
        sampler: samples each row.
        rows: index of the prompt that each row answers; by default every prompt is answered once.
        repetition_window: a reply is stopped when this many tokens repeat one cycle; 0 disables this.
    """
    import torch

    inputs = encode(model, processor, texts, images)
    with torch.inference_mode():
        prompts = read_prompts(model, inputs)
        if rows is not None and list(rows) != list(range(len(texts))):
            prompts.take(torch.tensor(rows, device=model.device))
        replies = decode(model, prompts, settings, repetition_window=repetition_window, sampler=sampler)
    return [as_text(processor, reply) for reply in replies]


def encode(
    model: "PreTrainedModel",
    processor: "Processor",
    texts: Sequence[str],
    images: "Sequence[Sequence[Path | Image]]",
) -> Any:
    """Returns the processor's output for rendered prompts: left-padded, on the model's device.

    Args:
        texts: rendered prompts.
        images: the images of each prompt; files are opened in RGB, without resizing.
    """
    from PIL import Image

    opened = [
        [eight_bits(Image.open(image)).convert("RGB") if isinstance(image, Path) else image for image in own]
        for own in images
    ]
    given = {"images": opened} if any(opened) else {}
    return processor(text=list(texts), padding=True, return_tensors="pt", **given).to(model.device)


def as_text(processor: "Processor", reply: Reply) -> Generation:
    """Returns a decoded reply as text."""
    text = tokenizer_of(processor).decode(reply.tokens, skip_special_tokens=True)
    return Generation(text, num_tokens=len(reply.tokens), finish_reason=reply.finish_reason)
