"""Does the attention probe measure planted masses? Heads with a chosen mass on the picture and on the question.

In a planted head the score of a token depends only on its kind: s_v for the picture's, s_q for the question's words, 0
for all others (`reader.py`). With n_v, n_q and n_o tokens of these kinds before a token of the reply, itself included,

    mass on the picture = n_v e^s_v / (n_v e^s_v + n_q e^s_q + n_o)

so a chosen mass m_v, with m_q on the question, needs s_v = ln(m_v n_o / (m_o n_v)) and m_o = 1 - m_v - m_q. A second
model has scores of 0 throughout: uniform attention. Both read the picture in the last layer, in the same way.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.known_answers.answers import BLOCK_LAYERS, TOLERANCE, Answer
from benchmarks.known_answers.reader import QUESTION_WORDS, SHAPE, Wiring, token_ids, write_reader
from benchmarks.known_answers.workplace import Workplace
from models.loading import load_processor
from models.pocket import COLOURS
from tracking.tables import read_table

NAME = "attention"
READING = SHAPE.num_layers - 1
UNIFORM, PLANTED = "uniform", "planted"
VISION_MASSES = (0.001, 0.01, 0.05, 0.2, 0.4, 0.6, 0.8, 0.95)
"""One per head; the heads of each layer take them in another order."""
QUESTION_SHARES = (0.02, 0.1, 0.3, 0.6, 0.9)
"""Of the mass that is not on the picture; one per layer."""
READING_HEADS = {0: (1.0, 0.0), 2: (0.0, 1.0)}
"""Masses of the two heads that read; the other heads of that layer are uniform."""


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """How many tokens of each kind the reply's one token attends to."""

    vision: int
    question: int
    other: int

    @property
    def uniform(self) -> tuple[float, float]:
        """Masses on picture and question of uniform attention."""
        total = self.vision + self.question + self.other
        return self.vision / total, self.question / total


def measure(work: Workplace) -> list[Answer]:
    """Builds both models, measures them, and returns the mass of every head and the difference in every block."""
    masses = planted_masses()
    uniform = work.checkpoint("attention-uniform")
    zero = {layer: [(0.0, 0.0)] * SHAPE.num_heads for layer in masses}
    answering = dict.fromkeys(COLOURS, READING)
    write_reader(uniform, Wiring(reading=READING, answering=answering, scores=zero))
    tokens = count_tokens(uniform, work)
    planted = work.checkpoint("attention-planted")
    scores = {layer: [scores_of(*own, tokens) for own in heads] for layer, heads in masses.items()}
    write_reader(planted, Wiring(reading=READING, answering=answering, scores=scores))
    output_dir = work.directory / NAME
    words = ("--models", f"{UNIFORM}={uniform}", f"{PLANTED}={planted}", "--tasks", work.task)
    work.run("analyze.attention", *words, "--output-dir", output_dir, config=NAME)
    everywhere = {layer: [tokens.uniform] * SHAPE.num_heads for layer in range(SHAPE.num_layers)}
    for head, own in READING_HEADS.items():
        everywhere[READING][head] = own
    truths = {UNIFORM: everywhere, PLANTED: everywhere | masses}
    return [*read_heads(output_dir, truths), *read_blocks(output_dir, truths)]


def planted_masses() -> dict[int, list[tuple[float, float]]]:
    """Returns the masses on picture and question of every head of the layers below the one that reads."""
    found = {}
    for layer, share in enumerate(QUESTION_SHARES):
        masses = [VISION_MASSES[(head + layer) % len(VISION_MASSES)] for head in range(SHAPE.num_heads)]
        found[layer] = [(mass, share * (1 - mass)) for mass in masses]
    return found


def scores_of(vision: float, question: float, tokens: Tokens) -> tuple[float, float]:
    """Returns the scores that give these masses."""
    other = (1 - vision - question) / tokens.other
    return math.log(vision / tokens.vision / other), math.log(question / tokens.question / other)


def count_tokens(model: Path, work: Workplace) -> Tokens:
    """Counts what the one token of a reply attends to: the prompt's tokens and itself; the same for all prompts.

    Raises:
        ValueError: if the prompts differ in it.
    """
    from PIL import Image

    processor: Any = load_processor(model)
    ids = token_ids()
    words = {ids[word] for word in QUESTION_WORDS}
    found = set()
    for prompt in work.read():
        content = [{"type": "image"}, {"type": "text", "text": prompt.question}]
        text = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        with Image.open(work.prompts / prompt.images[0]) as image:
            encoded = processor(text=[text], images=[image.convert("RGB")])["input_ids"][0]
        num_vision = sum(token == processor.image_token_id for token in encoded)
        num_question = sum(token in words for token in encoded)
        found.add((num_vision, num_question, len(encoded) + 1 - num_vision - num_question))
    if len(found) != 1:
        raise ValueError(f"the prompts have {sorted(found)} tokens of picture, question and rest; expected one length")
    ((vision, question, other),) = found
    return Tokens(vision=vision, question=question, other=other)


Truths = dict[str, dict[int, list[tuple[float, float]]]]
"""Model -> layer -> per head, the masses on picture and question."""


def read_heads(output_dir: Path, truths: Truths) -> list[Answer]:
    """Returns the masses in `attention.csv`, of every model, mode, layer and head."""
    table = read_table(output_dir / "attention.csv")
    heads = table[(table["head"] != "mean") & table["measure"].isin(["vision", "question"])]
    answers = []
    for row in heads.to_dict("records"):
        layer, head = int(row["layer"]), int(row["head"])
        truth = truths[row["model"]][layer][head][int(row["measure"] == "question")]
        answers.append(
            Answer(
                instrument=NAME,
                case=f"{row['model']} attention, {row['mode']} replies",
                place=f"layer {layer}, head {head}",
                quantity=f"mass on {_words(row['measure'])}",
                truth=truth,
                estimate=row["mean"],
                low=row["low"],
                high=row["high"],
                tolerance=TOLERANCE,
            )
        )
    return answers


def read_blocks(output_dir: Path, truths: Truths) -> list[Answer]:
    """Returns the differences of the two models in `blocks.csv`, as means over the heads and layers of a block."""
    table = read_table(output_dir / "blocks.csv")
    chosen = table[(table["part"] == "reply") & table["measure"].isin(["vision", "question"])]
    answers = []
    for row in chosen[chosen["block"] != "all"].to_dict("records"):
        number = int(row["measure"] == "question")
        means = [
            sum(truths[model][layer][head][number] for layer in BLOCK_LAYERS[row["block"]] for head in _heads())
            for model in (row["model"], row["against"])
        ]
        truth = (means[0] - means[1]) / (len(BLOCK_LAYERS[row["block"]]) * SHAPE.num_heads)
        answers.append(
            Answer(
                instrument=NAME,
                case=f"{row['model']} minus {row['against']}, {row['mode']} replies",
                place=row["block"],
                quantity=f"mass on {_words(row['measure'])}",
                truth=truth,
                estimate=row["difference"],
                low=row["low"],
                high=row["high"],
                tolerance=TOLERANCE,
            )
        )
    return answers


def _heads() -> range:
    return range(SHAPE.num_heads)


def _words(measure: str) -> str:
    return {"vision": "the picture", "question": "the question"}[measure]
