"""How are answers generated? Batched, left-padded, with the checkpoint's own generation settings overridden.

Greedy by default. With a `SeededSampler` each reply is drawn from softmax(logits / temperature) with a generator of its
own, by the Gumbel-max trick: argmax(logits / temperature + g), with independent standard Gumbel g, is such a draw.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from data_builders.prompts import Prompt
from eval.prompting import chat_messages

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

    Processor: TypeAlias = ProcessorMixin | PreTrainedTokenizerBase


@dataclass(frozen=True)
class Generation:
    """What a model replied to one prompt."""

    response: str
    num_tokens: int
    finish_reason: str
    """`stop` where the model ended its turn, `length` where the limit did."""


class SeededSampler:
    """Turns the greedy choice into a draw, for each row of a batch by a seed of its own, whatever stands beside it."""

    def __init__(self, seeds: Sequence[int], *, temperature: float, device: "torch.device") -> None:
        import torch

        self._temperature = temperature
        self._generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: "torch.Tensor", scores: "torch.Tensor") -> "torch.Tensor":
        import torch

        # scores: [rows, vocabulary]; -log of an exponential variable is a standard Gumbel one
        noise = torch.stack(
            [torch.empty_like(scores[0]).exponential_(generator=generator) for generator in self._generators]
        )
        return scores / self._temperature - noise.log()


def tokenizer_of(processor: "Processor") -> "PreTrainedTokenizerBase":
    """Returns a processor's tokenizer; a text-only model has nothing else."""
    from transformers import PreTrainedTokenizerBase

    tokenizer: PreTrainedTokenizerBase = (
        processor if isinstance(processor, PreTrainedTokenizerBase) else processor.tokenizer
    )
    return tokenizer


def render_prompt(processor: "Processor", prompt: Prompt, *, style: str, system_prompt: str | None) -> str:
    """Returns the prompt's text with the chat template applied, ready for the reply."""
    messages = chat_messages(prompt.question, num_images=len(prompt.images), style=style, system_prompt=system_prompt)
    if processor is tokenizer_of(processor):
        if prompt.images:
            raise ValueError(f"prompt {prompt.id!r} has images, and the model is text-only")
        messages = [{**message, "content": message["content"][0]["text"]} for message in messages]
    text: str = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return text


def make_batches(prompts: Sequence[Prompt], texts: Sequence[str], batch_size: int) -> list[list[int]]:
    """Groups prompt indices into batches of similar length, text-only ones apart; the same for the same prompts."""
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
    """Returns a whole generation configuration: nothing (a repetition penalty, say) is inherited unseen."""
    declared = model.generation_config.eos_token_id
    stop = set(declared if isinstance(declared, list) else [] if declared is None else [declared])
    tokenizer = tokenizer_of(processor)
    stop.add(tokenizer.eos_token_id)
    return {
        "do_sample": False,
        "num_beams": 1,
        "repetition_penalty": 1.0,
        "max_new_tokens": max_new_tokens,
        "eos_token_id": sorted(stop),
        "pad_token_id": tokenizer.pad_token_id,
    }


def generate(
    model: "PreTrainedModel",
    processor: "Processor",
    texts: Sequence[str],
    image_paths: Sequence[Sequence[Path]],
    settings: dict[str, Any],
    sampler: SeededSampler | None = None,
) -> list[Generation]:
    """Generates one reply to each rendered prompt of a batch: the greedy one, or a draw where a sampler is given."""
    import torch
    from PIL import Image
    from transformers import GenerationConfig, LogitsProcessorList

    images = [Image.open(path).convert("RGB") for paths in image_paths for path in paths]
    given = {"images": images} if images else {}
    inputs = processor(text=list(texts), padding=True, return_tensors="pt", **given).to(model.device)
    model.generation_config = GenerationConfig(**settings)
    with torch.inference_mode():
        output = model.generate(**inputs, logits_processor=LogitsProcessorList([sampler] if sampler else []))
    replies = output[:, inputs["input_ids"].shape[1] :].tolist()
    stop = set(settings["eos_token_id"])
    generations = []
    for tokens in replies:
        end = next((position for position, token in enumerate(tokens) if token in stop), None)
        kept = tokens if end is None else tokens[:end]
        generations.append(
            Generation(
                tokenizer_of(processor).decode(kept, skip_special_tokens=True),
                num_tokens=len(kept),
                finish_reason="length" if end is None else "stop",
            )
        )
    return generations
