"""How does a model take in a pair? Its question with each of the two pictures, and both answers as tokens."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor

from analyze.swap.prefix import ReadyPrompt, make_ready, patch_side
from analyze.swap.scores import BoxSpace, box_space, gold_texts
from data_builders.pairs.pair import Pair
from data_builders.prompt_sets.depth import eight_bits
from eval.replies.generation import tokenizer_of
from eval.replies.prompting import chat_messages
from models.families import family_of


class UnusablePairError(ValueError):
    """A pair that this model cannot be swapped with; says `KIND: what was found`."""


@dataclass(frozen=True, kw_only=True)
class ReadyPair:
    """A pair as the model takes it in."""

    pair: Pair
    target: ReadyPrompt
    source: ReadyPrompt
    answers: tuple[Int[Tensor, " tokens"], Int[Tensor, " tokens"]]
    """The right answers to both pictures, as tokens of a reply."""
    num_given: int
    """Tokens of the answers that open the reply and are not scored."""
    space: BoxSpace


@dataclass(frozen=True, kw_only=True)
class PairOptions:
    """How a pair's question is put, and how its answers are written."""

    style: str = "plain"
    system_prompt: str | None = None
    answer_prefix: str = ""
    """Opens the reply where the log-probabilities of answers are asked for."""
    box_space: str | None = None
    """How the model writes boxes (`scores.BOX_SPACES`); None for its family's way."""


def open_pair(model: Any, processor: Any, directory: Path, pair: Pair, options: PairOptions) -> ReadyPair:
    """Reads a pair's pictures and prepares its prompt with each of them.

    Raises:
        UnusablePairError: where the pictures have different grids of vision tokens, so that nothing can stand in for
            anything, or where the question has a place for a picture of its own.
    """
    images = []
    for name in (pair.target_image, pair.source_image):
        with Image.open(directory / name) as opened:
            images.append(eight_bits(opened).convert("RGB"))
    messages = chat_messages(pair.prompt, num_images=1, style=options.style, system_prompt=options.system_prompt)
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    try:
        target, source = (make_ready(model, processor, text, image) for image in images)
    except ValueError as error:
        raise UnusablePairError(f"image_token_in_prompt: {error}") from error
    if target.grid != source.grid:
        (_, *target_grid), (_, *source_grid) = target.grid, source.grid
        raise UnusablePairError("unequal_grids: {} x {} and {} x {} patches".format(*target_grid, *source_grid))
    space = box_space(
        options.box_space or family_of(model.config.model_type).box_space or "image",
        image_size=images[0].size,
        grid=target.grid[1:],
        patch_size=patch_side(model),
    )
    encode = tokenizer_of(processor).encode
    given = encode(options.answer_prefix, add_special_tokens=False) if options.answer_prefix else []
    answers = [torch.tensor([*given, *encode(answer, add_special_tokens=False)]) for answer in gold_texts(pair, space)]
    return ReadyPair(
        pair=pair, target=target, source=source, answers=(answers[0], answers[1]), num_given=len(given), space=space
    )
