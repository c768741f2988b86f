"""How do pairs of pictures go through the swap? Variants of several pairs, with their controls, as one batch.

For a decoder of L layers a pair has the variants k = 0 … L of a mode, and beside them two more of this module's:

    from    the source's picture in all layers >= k (the paper's code); k = 0 is the full swap
    only    in layer k alone
    window  in layers k … k + w - 1
    k = L   no swap, in every mode

    full swap  the source's picture in all layers: must be what the model replies to the source picture
    self-swap  half of the layers take the target's own picture, read once more: must change nothing
    no swap    k = L: must be what the model replies to the target picture

The replies to the plain pictures come from Transformers' own `generate`, without any of the machinery here. Greedy
replies whose choice was within rounding (`TIE_LOGITS`) may part there; such a control is a `tie`, and counted as such.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int
from PIL import Image
from torch import Tensor

from analyze.swap.prefix import Continuation, ReadyPrompt, Reply, compose, make_ready, read_prefixes
from analyze.swap.scores import FAMILY_BOX_SPACES, BoxSpace, box_space, gold_texts
from data_builders.pairs.pair import Pair
from eval.replies.generation import tokenizer_of
from eval.replies.prompting import chat_messages

MODES: dict[str, Callable[[int, int, int], range]] = {
    "from": lambda layer, num_layers, window: range(layer, num_layers),
    "only": lambda layer, num_layers, window: range(layer, min(layer + 1, num_layers)),
    "window": lambda layer, num_layers, window: range(layer, min(layer + window, num_layers)),
}
"""Name -> the layers that a swap at a layer takes from the source."""

TIE_LOGITS = {torch.float64: 1e-8, torch.float32: 1e-3, torch.bfloat16: 0.5, torch.float16: 0.1}
"""How near two logits must be for rounding to choose between them, which differs with the rows beside; generous (in
fp32 4e-6 was seen), since a real fault moves them further, and in most pairs."""


class UnusablePairError(ValueError):
    """A pair that this model cannot be swapped with; says `KIND: what was found`."""


def swapped_layers(mode: str, num_layers: int, window: int) -> list[range]:
    """Returns the layers that each variant k = 0 … L of a mode takes from the source."""
    return [MODES[mode](layer, num_layers, window) for layer in range(num_layers + 1)]


def make_plan(swaps: Sequence[range], num_layers: int) -> Bool[Tensor, "variants layers"]:
    """Returns the boolean plan of swaps."""
    return torch.tensor([[layer in layers for layer in range(num_layers)] for layers in swaps])


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
    """How the model writes boxes (`swap_scores.BOX_SPACES`); None for its family's way."""


def open_pair(model: Any, processor: Any, directory: Path, pair: Pair, options: PairOptions) -> ReadyPair:
    """Reads a pair's pictures and prepares its prompt with each of them.

    Raises:
        UnusablePairError: where the pictures have different grids of vision tokens, so that nothing can stand in for
            anything, or where the question has a place for a picture of its own.
    """
    images = []
    for name in (pair.target_image, pair.source_image):
        with Image.open(directory / name) as opened:
            images.append(opened.convert("RGB"))
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
        options.box_space or FAMILY_BOX_SPACES[model.config.model_type],
        image_size=images[0].size,
        grid=target.grid[1:],
        patch_size=model.config.vision_config.patch_size,
    )
    encode = tokenizer_of(processor).encode
    given = encode(options.answer_prefix, add_special_tokens=False) if options.answer_prefix else []
    answers = [torch.tensor([*given, *encode(answer, add_special_tokens=False)]) for answer in gold_texts(pair, space)]
    return ReadyPair(
        pair=pair, target=target, source=source, answers=(answers[0], answers[1]), num_given=len(given), space=space
    )


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What one variant of a pair replied, and how likely both answers were."""

    reply: Reply
    logprob_target: float
    """Of the target picture's answer as the beginning of the reply; natural logarithm."""
    logprob_source: float


@dataclass(frozen=True, kw_only=True)
class Control:
    """How one control came out."""

    status: str
    """`equal`, `tie` or `differs`."""
    expected: Reply
    found: Reply


@dataclass(frozen=True, kw_only=True)
class SwappedPair:
    """All that a pair gave in one mode."""

    variants: tuple[Variant, ...]
    """Of k = 0 … L."""
    plain_target: Reply
    """Of `generate`, to the target picture."""
    plain_source: Reply
    controls: dict[str, Control]


def swap_pairs(
    model: Any, pairs: Sequence[ReadyPair], swaps: Sequence[range], settings: dict[str, Any]
) -> list[SwappedPair]:
    """Swaps several pairs by every variant of a mode, with the controls.

    Args:
        model: any supported model with a vision tower.
        pairs: whose variants form one batch.
        swaps: the layers of k = 0 … L, as `swapped_layers` returns them.
        settings: of greedy generation (`eval.replies.generation.greedy_settings`).
    """
    num_layers = len(swaps) - 1
    variants = run_variants(
        model,
        pairs,
        [*swaps, range(num_layers), range(num_layers // 2, num_layers)],
        with_itself=[False] * (num_layers + 2) + [True],
        settings=settings,
    )
    plain = plain_replies(model, [prompt for pair in pairs for prompt in (pair.target, pair.source)], settings)
    tie = TIE_LOGITS[model.dtype]
    results = []
    for number, (pair, (*swapped, full, itself)) in enumerate(zip(pairs, variants, strict=True)):
        plain_target, plain_source = plain[2 * number : 2 * number + 2]
        unswapped = swapped[-1]
        controls = {
            "self-swap": compare(itself.reply, unswapped.reply, tie),
            "full swap": compare(full.reply, plain_source, tie),
            "no swap": compare(unswapped.reply, plain_target, tie),
        }
        if logprob_shift(itself, unswapped) > 2 * tie * max(len(answer) for answer in pair.answers):
            controls["self-swap"] = replace(controls["self-swap"], status="differs")
        results.append(
            SwappedPair(
                variants=tuple(swapped), plain_target=plain_target, plain_source=plain_source, controls=controls
            )
        )
    return results


def run_variants(
    model: Any,
    pairs: Sequence[ReadyPair],
    swaps: Sequence[range],
    *,
    with_itself: Sequence[bool],
    settings: dict[str, Any],
) -> list[list[Variant]]:
    """Runs every swap of every pair as one batch and returns them by pair.

    Args:
        model: any supported model with a vision tower.
        pairs: of any grids and questions.
        swaps: the layers that each variant takes from another reading.
        with_itself: of each variant, whether that is the target's own picture read once more, and not the source's.
        settings: of greedy generation.
    """
    again = any(with_itself)
    read = [[pair.target, pair.source, *([pair.target] if again else [])] for pair in pairs]
    prefixes = read_prefixes(model, [prompt for prompts in read for prompt in prompts])
    num_read, num_variants = len(read[0]), len(swaps)
    target_rows = torch.arange(len(pairs)).repeat_interleave(num_variants) * num_read
    source_rows = target_rows + torch.tensor([2 if itself else 1 for itself in with_itself]).repeat(len(pairs))
    plan = make_plan(swaps, len(prefixes.layers)).repeat(len(pairs), 1)
    rows = Continuation(
        model,
        compose(prefixes, target_rows, source_rows, plan),
        prompts=[pair.target for pair in pairs for _ in swaps],
        prefix_lengths=prefixes.lengths[target_rows],
    )
    del prefixes
    answers = [pair.answers for pair in pairs for _ in swaps]
    num_given = pairs[0].num_given
    of_target = rows.answer_logprobs([target for target, _ in answers], num_given=num_given).tolist()
    of_source = rows.answer_logprobs([source for _, source in answers], num_given=num_given).tolist()
    replies = rows.decode(max_new_tokens=settings["max_new_tokens"], stop_ids=settings["eos_token_id"])
    variants = [
        Variant(reply=reply, logprob_target=target, logprob_source=source)
        for reply, target, source in zip(replies, of_target, of_source, strict=True)
    ]
    return [variants[start : start + num_variants] for start in range(0, len(variants), num_variants)]


@torch.inference_mode()
def plain_replies(model: Any, prompts: Sequence[ReadyPrompt], settings: dict[str, Any]) -> list[Reply]:
    """Returns what the model replies to whole prompts by Transformers' own `generate`, positions left to it."""
    from transformers import GenerationConfig

    longest = max(len(prompt.input_ids) for prompt in prompts)

    def padded(rows: list[Tensor], value: int) -> Tensor:
        return torch.stack([torch.nn.functional.pad(row, (longest - len(row), 0), value=value) for row in rows])

    inputs = {
        "input_ids": padded([prompt.input_ids for prompt in prompts], settings["pad_token_id"]),
        "attention_mask": padded([torch.ones_like(prompt.input_ids) for prompt in prompts], 0),
        "mm_token_type_ids": padded([prompt.token_types for prompt in prompts], 0),
        "pixel_values": torch.cat([prompt.pixel_values for prompt in prompts]),
        "image_grid_thw": torch.tensor([prompt.grid for prompt in prompts]),
    }
    model.generation_config = GenerationConfig(**settings)
    output = model.generate(**{name: tensor.to(model.device) for name, tensor in inputs.items()})
    return [trimmed(row, settings["eos_token_id"]) for row in output[:, longest:].tolist()]


def trimmed(tokens: Sequence[int], stop_ids: Sequence[int]) -> Reply:
    """Returns the reply in what `generate` gave: what stands before the end of the turn."""
    end = next((place for place, token in enumerate(tokens) if token in stop_ids), None)
    return Reply(tokens=tuple(tokens[:end]), margins=(), finish_reason="length" if end is None else "stop")


def compare(ours: Reply, other: Reply, tie: float) -> Control:
    """Compares two greedy replies; one that parts from the other where its choice was within rounding is a tie."""
    if (ours.tokens, ours.finish_reason) == (other.tokens, other.finish_reason):
        return Control(status="equal", expected=other, found=ours)
    both = zip(ours.tokens, other.tokens, strict=False)
    common = next((place for place, (one, two) in enumerate(both) if one != two), None)
    place = min(len(ours.tokens), len(other.tokens)) if common is None else common
    return Control(status="tie" if ours.margins[place] <= tie else "differs", expected=other, found=ours)


def logprob_shift(one: Variant, other: Variant) -> float:
    """Returns the larger of both answers' differences in log-probability."""
    return max(abs(one.logprob_target - other.logprob_target), abs(one.logprob_source - other.logprob_source))
