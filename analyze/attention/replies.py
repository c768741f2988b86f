"""Labels the tokens of a prompt with a reply: image, question, template, reply.

The reply is tokenised separately, as in generation, and ends before its first special token. The question is located in
the rendered prompt by its position in the text. Sequences of a batch are right-padded: in a causal decoder no token
attends to the padding, and positions start at zero in every row.
"""

import hashlib
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int

from analyze.attention.mass import KEY_SEGMENTS, PADDING, AttentionMass, accumulating
from analyze.attention.records import PARTS
from data_builders.prompt_sets.depth import eight_bits
from eval.replies.generation import tokenizer_of
from models.families import family_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from eval.replies.generation import Processor

VISION, QUESTION, TEMPLATE, SINK, REPLY = range(len(KEY_SEGMENTS))
THINK = re.compile(r"<think>(.*?)(?:</think>|$)", re.DOTALL)
ANSWER = re.compile(r"<answer>(.*?)(?:</answer>|$)", re.DOTALL)
AFTER_THINKING = re.compile(r"</think>(.*)", re.DOTALL)
"""Pattern of the answer if it has no tags."""


@dataclass(frozen=True, kw_only=True)
class PromptedReply:
    """One prompt with one reply, ready for batching."""

    input_ids: Int[torch.Tensor, " tokens"]
    segments: Int[torch.Tensor, " tokens"]
    """Indices in `KEY_SEGMENTS`."""
    weights: Float[torch.Tensor, "parts tokens"]
    """Weight of each token in the mean of each part of the reply; all zero for a missing part."""
    images: dict[str, torch.Tensor]
    """The processor's image inputs; empty without images."""

    @property
    def num_vision_tokens(self) -> int:
        return int((self.segments == VISION).sum())

    @property
    def num_reply_tokens(self) -> int:
        return int((self.segments == REPLY).sum())

    @property
    def digest(self) -> str:
        """A sha256 of the tokens."""
        return hashlib.sha256(str(self.input_ids.tolist()).encode()).hexdigest()

    @property
    def uniform(self) -> dict[str, float]:
        """The vision mass of each existing part under uniform attention over all visible tokens."""
        shares = self.num_vision_tokens / torch.arange(1, len(self.segments) + 1)
        return {part: float(row @ shares) for part, row in zip(PARTS, self.weights, strict=True) if bool(row.any())}


def read_reply(
    processor: "Processor",
    *,
    text: str,
    question: str,
    image_paths: Sequence[Path],
    reply: str,
    vision_ids: Collection[int],
    picture_fields: Collection[str],
    mark_ids: Collection[int],
) -> PromptedReply | None:
    """Tokenises a rendered prompt and a reply; None if the reply has no tokens.

    Args:
        processor: the model's processor.
        text: the prompt rendered with the chat template, up to the start of the reply.
        question: the question within it.
        image_paths: paths of the prompt's images, in order.
        reply: a model's reply, or the teacher-forced text.
        vision_ids: ids of vision tokens.
        picture_fields: the processor's outputs that hold pictures.
        mark_ids: ids of the tokens that the processor adds around a picture's.
    """
    from PIL import Image

    tokenizer = tokenizer_of(processor)
    encoded = tokenizer(reply, add_special_tokens=False, return_offsets_mapping=True)
    special = set(tokenizer.all_special_ids)
    length = next((i for i, token in enumerate(encoded["input_ids"]) if token in special), len(encoded["input_ids"]))
    if not length:
        return None
    images = [eight_bits(Image.open(path)).convert("RGB") for path in image_paths]
    inputs = processor(text=[text], return_tensors="pt", **({"images": images} if images else {}))
    prompt_ids = inputs["input_ids"][0]
    prompt_segments = _prompt_segments(tokenizer, text, question, prompt_ids, vision_ids, mark_ids)
    input_ids = torch.cat([prompt_ids, torch.tensor(encoded["input_ids"][:length])])
    weights = torch.zeros(len(PARTS), len(input_ids))
    for row, (part, spans) in enumerate(_parts(reply).items()):
        assert part == PARTS[row]
        starts = [start for start, _ in encoded["offset_mapping"][:length]]
        chosen = torch.tensor([any(low <= start < high for low, high in spans) for start in starts])
        weights[row, len(prompt_ids) :] = chosen / chosen.sum().clamp(min=1)
    return PromptedReply(
        input_ids=input_ids,
        segments=torch.cat([prompt_segments, torch.full((length,), REPLY)]),
        weights=weights,
        images={name: inputs[name] for name in picture_fields if images},
    )


def read_reply_of(
    model: "PreTrainedModel",
    processor: "Processor",
    *,
    text: str,
    question: str,
    image_paths: Sequence[Path],
    reply: str,
) -> PromptedReply | None:
    """Tokenises a rendered prompt and a reply for a model, as its family handles pictures; see `read_reply`."""
    tokenizer = tokenizer_of(processor)
    family = family_of(model.config.model_type)
    return read_reply(
        processor,
        text=text,
        question=question,
        image_paths=image_paths,
        reply=reply,
        vision_ids=() if family.text_only else (model.config.image_token_id,),
        picture_fields=family.picture_fields,
        mark_ids=tokenizer.convert_tokens_to_ids([getattr(processor, name) for name in family.picture_marks]),
    )


def make_inputs(
    rows: Sequence[PromptedReply], model: "PreTrainedModel", *, pad_id: int
) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    """Returns a batch on the model's device: the model's inputs, the tokens' segments and their weights."""
    longest = max(len(row.input_ids) for row in rows)

    def pad(tensors: Sequence[torch.Tensor], value: float) -> torch.Tensor:
        padded = [torch.nn.functional.pad(t, (0, longest - t.shape[-1]), value=value) for t in tensors]
        return torch.stack(padded).to(model.device)

    segments = pad([row.segments for row in rows], PADDING)
    inputs = {
        "input_ids": pad([row.input_ids for row in rows], pad_id),
        "attention_mask": (segments != PADDING).long(),
    }
    if any(row.images for row in rows):
        if not family_of(model.config.model_type).tiled:
            inputs["mm_token_type_ids"] = (segments == VISION).int()
        for name in next(row.images for row in rows if row.images):
            inputs[name] = torch.cat([row.images[name] for row in rows if row.images]).to(model.device)
    return inputs, segments, pad([row.weights for row in rows], 0)


def measure(
    model: "PreTrainedModel",
    rows: Sequence[PromptedReply],
    *,
    pad_id: int,
    top_tokens: int,
    rebuild_output: bool = False,
) -> AttentionMass:
    """Measures what the tokens of these replies attend to, in one forward pass."""
    inputs, segments, weights = make_inputs(rows, model, pad_id=pad_id)
    mass = AttentionMass(segments, weights, top_tokens=top_tokens, rebuild_output=rebuild_output)
    with torch.inference_mode(), accumulating(model, mass):
        # A tensor, not a number: given a number, Gemma 4 computes only so many last tokens in its last layers.
        last = torch.tensor([segments.shape[1] - 1], device=model.device)
        model(**inputs, use_cache=False, logits_to_keep=last)
    return mass


def _prompt_segments(
    tokenizer: "Processor",
    text: str,
    question: str,
    prompt_ids: torch.Tensor,
    vision_ids: Collection[int],
    mark_ids: Collection[int],
) -> Int[torch.Tensor, " tokens"]:
    """Labels a prompt's tokens; the processor has expanded each image token in the text."""
    encoded = tokenizer(text, return_offsets_mapping=True)
    is_vision, is_mark = (
        torch.isin(prompt_ids, torch.tensor(sorted(ids), dtype=prompt_ids.dtype)) for ids in (vision_ids, mark_ids)
    )
    is_written = ~(is_vision | is_mark)
    kept = [i for i, token in enumerate(encoded["input_ids"]) if token not in {*vision_ids, *mark_ids}]
    written = torch.tensor([encoded["input_ids"][i] for i in kept])
    assert torch.equal(written, prompt_ids[is_written]), "the processor tokenised the prompt in another way"
    start = text.rfind(question.strip())
    if start < 0:
        raise ValueError(
            f"the chat template changed the question {question.strip()[:60]!r}; expected to find it in the prompt as "
            "it is, give questions without its special tokens"
        )
    end = start + len(question.strip())
    places = [encoded["offset_mapping"][i] for i in kept]
    labels = torch.tensor([QUESTION if low < end and high > start else TEMPLATE for low, high in places])
    segments = torch.full_like(prompt_ids, VISION)
    segments[is_mark] = TEMPLATE
    segments[is_written] = labels
    segments[0] = SINK
    return segments


def _parts(reply: str) -> dict[str, list[tuple[int, int]]]:
    """Returns the spans of the parts in the reply's text, without tags."""
    answers = list(ANSWER.finditer(reply)) or list(AFTER_THINKING.finditer(reply))
    return {
        "reply": [(0, len(reply))],
        "think": [match.span(1) for match in THINK.finditer(reply)],
        "answer": [match.span(1) for match in answers],
    }
