"""How does a model read a picture in one known layer? Builds pocket checkpoints whose weights are set by hand.

The checkpoint is an ordinary pocket model (`models/pocket.py`) that any command loads. It answers one question, "How
many red objects are there ?" (or green, blue, yellow), and always correctly:

    tower      the colour of each cell, as one of four numbers that is 1; of an empty cell, as a fifth
    reading    attention of one decoder layer: one head averages over the picture's tokens, another copies the asked
               colour; together they put all four counts and the asked colour into each later token
    answering  MLPs of given layers: each passes on the counts of some colours, if they are asked for
    head       the logits of the digits: 2 n a - n² for the digit n and the count a, largest at n = a

All other attention and MLPs of the decoder keep random weights up to their last map, which is zero. So they compute
something and add nothing. What a layer does is therefore known without a measurement. With the reading or the answering
taken away, the model answers 0.

Every token that enters the decoder has the same norm (`FILLER`), so RMSNorm changes nothing. The rotary base is so
large (`ROPE_THETA`) that the last dimensions of a head do not rotate: attention there depends on what a token is, and
not on its distance. These dimensions also take planted masses (`attention.py`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_builders.pocket.draw import BACKGROUND_RGB, RGB
from models.pocket import COLOURS, PocketShape, write_pocket_checkpoint
from tracking.product import partial_directory

if TYPE_CHECKING:
    import torch

SHAPE = PocketShape(tie_embeddings=False)
QUESTION_WORDS = ("How", " many", " objects", " are", " there", " ?", *(f" {colour}" for colour in COLOURS))
DIGITS = tuple(map(str, range(10)))
END_OF_TURN = "<|im_end|>"

CELL = {colour: number for number, colour in enumerate(COLOURS)}
EMPTY, VISION, QUESTION = 4, 5, 6
ASKED = {colour: 7 + number for number, colour in enumerate(COLOURS)}
DIGIT = 11
COUNT = {colour: 12 + number for number, colour in enumerate(COLOURS)}
KNOWN = {colour: 16 + number for number, colour in enumerate(COLOURS)}
ANSWER, UNIT, ONE, FILLER, PRESENCE = 20, 21, 22, 23, 24
"""Places in the hidden state: what a vision token shows (`CELL`, `EMPTY`), what kind of token it is (`VISION`,
`QUESTION`, `DIGIT`, `ASKED`), what reading adds (`COUNT`, `KNOWN`), what answering adds (`ANSWER`, and the same for a
count of one, `UNIT`), a 1 in every token (`ONE`), and what fills each token up to the same norm (`FILLER`);
from `PRESENCE` on, a place per head for what carries nothing of the picture's content."""

ROPE_THETA = 1e12
"""The eighth pair of a head turns by 3e-11 radians per token."""
STILL = (7, 15)
"""The two dimensions of that pair."""
NUM_CELLS = 9
DETECTION_COSINE = 0.8
"""Between an object's colour and a patch; the patches of another colour have at most 0.55."""
DETECTION_STEEPNESS = 400.0
READING_SCORE = 30.0
"""Of a head that attends to one kind of token; every other gets e^-30 as much."""
GATE = 80.0
ANSWER_GAIN = 0.1 / (GATE / 2)
PRESENCE_GAIN = 0.1
"""Small beside a token's norm, so that the norm stays what it was for the next layer."""
DIGIT_LOGIT, ZERO_LOGIT, STEP_LOGIT, END_LOGIT = 20.0, 0.5, 8.0, 1000.0
"""Logits of all digits, of 0 in addition, of a count too few or too many, and of the end of the turn after a digit."""


@dataclass(frozen=True, kw_only=True)
class Wiring:
    """What the layers of a model do."""

    reading: int | None = None
    """The layer whose attention reads the picture and the question; None for a model that cannot."""
    answering: Mapping[str, int] = field(default_factory=dict)
    """Colour -> the layer whose MLP passes its count on; the counts of other colours are answered with 0."""
    scores: "Mapping[int, Sequence[tuple[float, float]]]" = field(default_factory=dict)
    """Layer -> per head, the score that a token of the picture and one of the question gets; all others get 0."""
    carries_presence: bool = False
    """Whether the layers with planted scores add their heads' mass on the picture to the hidden state: that there is a
    picture, and nothing of what it shows."""
    seed: int = 0
    """Of the random weights that have no effect."""


def write_reader(directory: Path, wiring: Wiring) -> None:
    """Writes a checkpoint with these layers, unless it is there."""
    if directory.exists():
        return
    from models.loading import load_model

    with partial_directory(directory) as partial:
        write_pocket_checkpoint(partial / "untrained", shape=SHAPE, seed=wiring.seed)
        model: Any = load_model(partial / "untrained")
        wire(model, wiring)
        for file in (partial / "untrained").iterdir():
            file.rename(partial / file.name)
        (partial / "untrained").rmdir()
        model.save_pretrained(partial)


def wire(model: Any, wiring: Wiring) -> None:
    """Sets a pocket model's weights.

    Args:
        model: an untrained one of `SHAPE`.
        wiring: what its layers do.
    """
    import torch

    tokenizer_ids = token_ids()
    model.config.get_text_config().rope_parameters["rope_theta"] = ROPE_THETA
    with torch.no_grad():
        _wire_tower(model)
        _wire_words(model, tokenizer_ids)
        for number, layer in enumerate(model.base_model.language_model.layers):
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
            if number in wiring.scores:
                _plant_scores(layer.self_attn, wiring.scores[number])
                if wiring.carries_presence:
                    _carry_presence(layer.self_attn)
            if number == wiring.reading:
                _wire_reading(layer.self_attn)
            own = [colour for colour, place in wiring.answering.items() if place == number]
            first = wiring.answering and number == min(wiring.answering.values())
            if own:
                _wire_answering(layer.mlp, own, with_unit=bool(first))


def token_ids() -> dict[str, int]:
    """Returns the ids of the words that the wiring knows; each must be a single token.

    Raises:
        ValueError: naming a word that the tokenizer splits.
    """
    from models.pocket import build_tokenizer

    tokenizer = build_tokenizer()
    found = {}
    for word in (*QUESTION_WORDS, *DIGITS, END_OF_TURN):
        encoded = tokenizer.encode(word, add_special_tokens=False)
        if len(encoded) != 1:
            raise ValueError(f"the pocket tokenizer splits {word!r} into {len(encoded)} tokens; expected one")
        found[word] = encoded[0]
    return found


def _wire_tower(model: Any) -> None:
    """Patches become mean colours, and cells the colour of their object."""
    import torch

    tower = model.base_model.visual
    for block in tower.blocks:
        for last in (block.attn.proj, block.mlp.down_proj):
            last.weight.zero_()
            last.bias.zero_()
    kernel = tower.patch_embed.proj.weight  # [hidden, 3, frames, patch, patch]
    kernel.zero_()
    for channel in range(3):
        kernel[channel, channel] = 1 / kernel[0, 0].numel()
    merger = tower.merger
    merger.ln_q.weight.fill_(1)
    first, last = merger.mlp[0], merger.mlp[2]
    for linear in (first, last):
        linear.weight.zero_()
        linear.bias.zero_()
    width = kernel.shape[0]
    num_patches = first.in_features // width
    # Two units a patch and colour; GELU(z) - GELU(z - 1) is 0 far below 0 and 1 far above 1.
    scale = DETECTION_STEEPNESS / math.sqrt(width)  # ln_q turns a colour into a vector of norm sqrt(width)
    for number, colour in enumerate(COLOURS):
        direction = torch.tensor(_direction(colour))
        for patch in range(num_patches):
            unit = 2 * (number * num_patches + patch)
            for step in range(2):
                first.weight[unit + step, width * patch : width * patch + 3] = scale * direction
                first.bias[unit + step] = -DETECTION_STEEPNESS * DETECTION_COSINE - step
                share = (1 - 2 * step) / num_patches
                last.weight[CELL[colour], unit + step] = share
                last.weight[EMPTY, unit + step] = -share
    last.bias[EMPTY] = last.bias[VISION] = last.bias[ONE] = 1
    last.bias[FILLER] = filler(3)


def _direction(colour: str) -> list[float]:
    """Returns the unit vector of an object's colour against the background, as the processor scales the channels."""
    from transformers.image_utils import OPENAI_CLIP_STD

    scaled = [
        (own - other) / (255 * std)
        for own, other, std in zip(RGB[colour], BACKGROUND_RGB, OPENAI_CLIP_STD, strict=True)
    ]
    return [value / math.hypot(*scaled) for value in scaled]


def filler(squares: float) -> float:
    """Returns what fills a token with this sum of squares up to the norm at which RMSNorm divides by one."""
    return math.sqrt(SHAPE.hidden_size - squares)


def _wire_words(model: Any, ids: Mapping[str, int]) -> None:
    """Words become what they are for the reading, and the answer becomes digits."""
    words, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    words.zero_()
    words[:, ONE] = 1
    for word in QUESTION_WORDS:
        words[ids[word], QUESTION] = 1
    for colour in COLOURS:
        words[ids[f" {colour}"], ASKED[colour]] = 1
    for digit in DIGITS:
        words[ids[digit], DIGIT] = 1
    words[:, FILLER] = (SHAPE.hidden_size - words.square().sum(1)).sqrt()
    head.zero_()
    for number, digit in enumerate(DIGITS):
        gain = STEP_LOGIT / (ANSWER_GAIN * GATE / 2)
        head[ids[digit], ANSWER] = 2 * number * gain
        head[ids[digit], UNIT] = -(number**2) * gain
        head[ids[digit], ONE] = DIGIT_LOGIT
    head[ids["0"], ONE] += ZERO_LOGIT
    head[ids[END_OF_TURN], DIGIT] = END_LOGIT
    model.base_model.language_model.norm.weight.fill_(1)
    for layer in model.base_model.language_model.layers:
        layer.input_layernorm.weight.fill_(1)
        layer.post_attention_layernorm.weight.fill_(1)


def _clear(*linears: "torch.nn.Linear") -> None:
    for linear in linears:
        linear.weight.zero_()
        if linear.bias is not None:
            linear.bias.zero_()


def _plant_scores(attention: Any, scores: Sequence[tuple[float, float]]) -> None:
    """Queries are the same for every token; keys say whether a token belongs to the picture or to the question."""
    _clear(attention.q_proj, attention.k_proj)
    size = SHAPE.hidden_size // SHAPE.num_heads
    for key_head in range(SHAPE.num_kv_heads):
        for place, mark in zip(STILL, (VISION, QUESTION), strict=True):
            attention.k_proj.weight[key_head * size + place, mark] = 1
    for head, own in enumerate(scores):
        for place, score in zip(STILL, own, strict=True):
            attention.q_proj.bias[head * size + place] = score * math.sqrt(size)


def _carry_presence(attention: Any) -> None:
    """Values are 1 for tokens of the picture and 0 for others; each head writes into a place that nothing reads."""
    _clear(attention.v_proj)
    size, shared = SHAPE.hidden_size // SHAPE.num_heads, SHAPE.num_heads // SHAPE.num_kv_heads
    for head in range(SHAPE.num_heads):
        attention.v_proj.weight[head // shared * size, VISION] = 1
        attention.o_proj.weight[PRESENCE + head, head * size] = PRESENCE_GAIN


def _wire_reading(attention: Any) -> None:
    """One head averages over the picture, another copies the asked colour; the others have no effect."""
    size, shared = SHAPE.hidden_size // SHAPE.num_heads, SHAPE.num_heads // SHAPE.num_kv_heads
    _clear(attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
    parts: list[tuple[Sequence[int], Mapping[str, int], Mapping[str, int], float]] = [
        ([VISION], CELL, COUNT, NUM_CELLS),
        (list(ASKED.values()), ASKED, KNOWN, 1.0),
    ]
    for key_head, (marks, source, target, gain) in enumerate(parts):
        head = key_head * shared
        for mark in marks:
            attention.k_proj.weight[key_head * size + STILL[0], mark] = 1
        attention.q_proj.bias[head * size + STILL[0]] = READING_SCORE * math.sqrt(size)
        for number, colour in enumerate(COLOURS):
            attention.v_proj.weight[key_head * size + number, source[colour]] = 1
            attention.o_proj.weight[target[colour], head * size + number] = gain


def _wire_answering(mlp: Any, colours: Sequence[str], *, with_unit: bool) -> None:
    """A unit per colour: the gate is open where that colour is asked for, and what it passes is the colour's count."""
    _clear(mlp.gate_proj, mlp.up_proj, mlp.down_proj)
    for unit, colour in enumerate(colours):
        mlp.gate_proj.weight[unit, KNOWN[colour]] = GATE
        mlp.gate_proj.weight[unit, ONE] = -GATE / 2
        mlp.up_proj.weight[unit, COUNT[colour]] = 1
        mlp.down_proj.weight[ANSWER, unit] = ANSWER_GAIN
    if with_unit:
        mlp.gate_proj.weight[len(colours), ONE] = GATE / 2
        mlp.up_proj.weight[len(colours), ONE] = 1
        mlp.down_proj.weight[UNIT, len(colours)] = ANSWER_GAIN
