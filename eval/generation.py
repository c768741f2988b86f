"""How are answers generated? Greedy, batched, left-padded, with the checkpoint's own generation settings overridden."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_builders.prompts import Prompt
from eval.prompting import chat_messages

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin


@dataclass(frozen=True)
class Generation:
    """What a model replied to one prompt."""

    response: str
    num_tokens: int
    finish_reason: str
    """`stop` where the model ended its turn, `length` where the limit did."""


def render_prompt(processor: "ProcessorMixin", prompt: Prompt, *, style: str, system_prompt: str | None) -> str:
    """Returns the prompt's text with the chat template applied, ready for the reply."""
    messages = chat_messages(prompt.question, num_images=len(prompt.images), style=style, system_prompt=system_prompt)
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


def greedy_settings(model: "PreTrainedModel", processor: "ProcessorMixin", max_new_tokens: int) -> dict[str, Any]:
    """Returns a whole generation configuration: nothing (a repetition penalty, say) is inherited unseen."""
    declared = model.generation_config.eos_token_id
    stop = set(declared if isinstance(declared, list) else [] if declared is None else [declared])
    stop.add(processor.tokenizer.eos_token_id)
    return {
        "do_sample": False,
        "num_beams": 1,
        "repetition_penalty": 1.0,
        "max_new_tokens": max_new_tokens,
        "eos_token_id": sorted(stop),
        "pad_token_id": processor.tokenizer.pad_token_id,
    }


def generate(
    model: "PreTrainedModel",
    processor: "ProcessorMixin",
    texts: Sequence[str],
    image_paths: Sequence[Sequence[Path]],
    settings: dict[str, Any],
) -> list[Generation]:
    """Generates one reply to each rendered prompt of a batch."""
    import torch
    from PIL import Image
    from transformers import GenerationConfig

    images = [Image.open(path).convert("RGB") for paths in image_paths for path in paths]
    inputs = processor(text=list(texts), images=images or None, padding=True, return_tensors="pt").to(model.device)
    model.generation_config = GenerationConfig(**settings)
    with torch.inference_mode():
        output = model.generate(**inputs)
    replies = output[:, inputs["input_ids"].shape[1] :].tolist()
    stop = set(settings["eos_token_id"])
    generations = []
    for tokens in replies:
        end = next((position for position, token in enumerate(tokens) if token in stop), None)
        kept = tokens if end is None else tokens[:end]
        generations.append(
            Generation(
                processor.tokenizer.decode(kept, skip_special_tokens=True),
                num_tokens=len(kept),
                finish_reason="length" if end is None else "stop",
            )
        )
    return generations
