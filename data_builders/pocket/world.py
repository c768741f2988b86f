"""The pocket world: small images of coloured shapes on a 3 x 3 grid, and questions with verifiable answers.

Three abilities mirror the paper's (Table 1): *vision* (what is shown), *vision-to-reasoning* (arithmetic over what is
shown) and *reasoning* (the same arithmetic with the counts given in text). Splits are disjoint by construction: the
hash of a sample's content (the cells and the question, without the jitter) determines its only possible split.

The base model learns to describe, to count, to answer questions about images and to work out sums in text, but not
arithmetic over an image. The cold start teaches the format `<think>…</think><answer>…</answer>` for all abilities. Its
teacher is always right, but works out only some of the sums over images step by step and answers the others directly;
reinforcement learning decides which of the two to use.

    python -m data_builders.build pocket --seed 0 --output-dir outputs/pocket/data
"""

import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_builders.pocket.draw import Scene, count_colours, draw_scene, render, things_by_place
from data_builders.prompt_sets.prompts import ABILITIES, Prompt, write_prompts
from models.pocket import COLOURS, SHAPES
from tracking.progress import progress

SPLIT_SHARES = {"base": 40, "sft": 15, "rl": 25, "validation": 5, "test": 15}
"""Percentage of all possible samples in each split."""
MAX_REDRAWS = 1000
"""Number of draws after which a held-out split is considered exhausted."""

EVALUATION_SPLITS = ("validation", "test")
"""Splits without duplicate samples."""

FACTORS = ((1, 1), (1, 2), (2, 1), (1, 3), (3, 1))
"""Factors (a, b) of the expressions a x FIRST + b x SECOND and a x FIRST - b x SECOND."""

GLANCE_SHARE = 0.6
"""Share of the sums over images that the cold start's teacher answers directly (and correctly)."""


@dataclass(frozen=True, kw_only=True)
class PocketSizes:
    """Number of samples per split."""

    num_base: int = 11_200
    num_sft: int = 3000
    num_rl: int = 2000
    num_validation_per_ability: int = 100
    num_test_per_ability: int = 500

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")


@dataclass(frozen=True)
class Question:
    """A question about a scene, its answer, and the teacher's thought before it."""

    text: str
    answer: str
    answer_kind: str
    thought: str


def ask_vision(scene: Scene, rng: random.Random) -> Question:
    """Asks for a count (in half of the cases), a colour, a shape or a place."""
    things = things_by_place(scene)
    names = [f"{thing.colour} {thing.shape}" for thing in things.values()]
    unique = [(place, name) for place, name in zip(things, names, strict=True) if names.count(name) == 1]
    kind = rng.choice(("count", "count", "count", "colour", "shape", *(("where",) if unique else ())))
    if kind == "count":
        colour = rng.choice(COLOURS)
        count = str(count_colours(scene)[colour])
        return Question(f"How many {colour} objects are there ?", count, "number", f"{colour} {count}")
    if kind == "where":
        place, name = rng.choice(unique)
        return Question(f"Where is the {name} ?", place, "text", name)
    place, thing = rng.choice(list(things.items()))
    answer = thing.colour if kind == "colour" else thing.shape
    return Question(f"What {kind} is the object in the {place} ?", answer, "text", f"{thing.colour} {thing.shape}")


def ask_description(scene: Scene, rng: random.Random) -> Question:
    """Asks for the colours or the shapes of all objects, place by place."""
    kind = rng.choice(("colour", "shape"))
    listed = " ".join(f"{place} {getattr(thing, kind)}" for place, thing in things_by_place(scene).items())
    return Question(f"Describe the {kind}s .", listed, "text", "")


def ask_tally(scene: Scene, rng: random.Random) -> Question:
    """Asks for the counts of all colours, in any order."""
    colours = rng.sample(COLOURS, len(COLOURS))
    counted = count_colours(scene)
    tally = " ".join(f"{colour} {counted[colour]}" for colour in colours)
    return Question(f"Count {' '.join(colours)} .", tally, "text", "")


@dataclass(frozen=True)
class Expression:
    """a x FIRST + b x SECOND, or with a minus, over the counts of two colours."""

    first: str
    second: str
    a: int
    b: int
    sign: int

    def __str__(self) -> str:
        def term(factor: int, name: str) -> str:
            return name if factor == 1 else f"{factor} * {name}"

        return f"{term(self.a, self.first)} {'+' if self.sign > 0 else '-'} {term(self.b, self.second)}"

    def value(self, num_by_colour: dict[str, int]) -> int:
        return self.a * num_by_colour[self.first] + self.sign * self.b * num_by_colour[self.second]

    def work_out(self, num_by_colour: dict[str, int]) -> str:
        """Returns the sum step by step: the counts, the product if there is one, the result."""
        num_first, num_second = num_by_colour[self.first], num_by_colour[self.second]
        steps = [f"{self.first} {num_first} {self.second} {num_second}"]
        for factor, count in ((self.a, num_first), (self.b, num_second)):
            if factor > 1:
                steps.append(f"{factor}*{count}={factor * count}")
        sign = "+" if self.sign > 0 else "-"
        steps.append(f"{self.a * num_first}{sign}{self.b * num_second}={self.value(num_by_colour)}")
        return " ".join(steps)


def draw_expression(num_by_colour: dict[str, int], rng: random.Random) -> Expression:
    """Draws an expression with a non-negative value, over two colours in the scene (if it has two)."""
    present = [colour for colour, num in num_by_colour.items() if num]
    while True:
        first, second = rng.sample(present if len(present) > 1 else COLOURS, 2)
        a, b = rng.choice(FACTORS)
        expression = Expression(first, second, a, b, rng.choice((1, -1)))
        if expression.value(num_by_colour) >= 0:
            return expression


def ask_over_picture(scene: Scene, rng: random.Random) -> Question:
    """Asks for the value of an expression over the image; the teacher works it out or answers directly."""
    counted = count_colours(scene)
    expression = draw_expression(counted, rng)
    answer = str(expression.value(counted))
    thought = f"it is {answer}" if rng.random() < GLANCE_SHARE else expression.work_out(counted)
    return Question(f"What is {expression} ?", answer, "number", thought)


def ask_to_work_out(scene: Scene, rng: random.Random) -> Question:
    """Asks to work out an expression over the image, which the base model can do on request."""
    counted = count_colours(scene)
    expression = draw_expression(counted, rng)
    return Question(f"Work out {expression} .", expression.work_out(counted), "text", "")


def ask_in_text(scene: Scene, rng: random.Random) -> Question:
    """Asks for the value of an expression over counts given in the question; the teacher works it out."""
    counted = count_colours(scene)
    expression = draw_expression(counted, rng)
    noun = rng.choice(("objects", *(f"{shape}s" for shape in SHAPES)))
    given = " and ".join(f"{counted[colour]} {colour}" for colour in (expression.first, expression.second))
    text = f"There are {given} {noun} . What is {expression} ?"
    return Question(text, str(expression.value(counted)), "number", expression.work_out(counted))


QUESTIONS: dict[str, Callable[[Scene, random.Random], Question]] = {
    "description": ask_description,
    "tally": ask_tally,
    "work-out": ask_to_work_out,
    "vision": ask_vision,
    "vision-to-reasoning": ask_over_picture,
    "reasoning": ask_in_text,
}

FIRST_LESSON = ("tally",)
FIRST_LESSON_SHARE = 0.4
"""Share of the base split, from its start, with the first lesson only: learning to count makes the model use the
image, and takes three times as long when mixed with everything else."""

SPLIT_ABILITIES: dict[str, tuple[str, ...]] = {
    "base": ("description", "vision", "work-out", "reasoning", "vision", "work-out", "tally", "work-out"),
    "sft": ("vision", "vision-to-reasoning", "reasoning", "vision-to-reasoning"),
    "rl": ("vision", "vision-to-reasoning", "reasoning", "vision-to-reasoning"),
    **dict.fromkeys(EVALUATION_SPLITS, ABILITIES),
}
"""Kinds of questions of each split, in rotation."""


def split_of(content: str) -> str:
    """Returns the only split for a sample with this content."""
    bucket = int.from_bytes(hashlib.sha256(content.encode()).digest()[:8], "big") % sum(SPLIT_SHARES.values())
    for split, share in SPLIT_SHARES.items():
        if bucket < share:
            return split
        bucket -= share
    raise AssertionError(f"bucket {bucket} is outside the shares {SPLIT_SHARES}")


def content_of(scene: Scene | None, question: str) -> str:
    """Returns what determines a sample's split: the cells, if they are shown, and the question."""
    cells = "|".join(f"{thing.colour} {thing.shape}" if thing else "-" for thing in scene or ())
    return f"{cells}\n{question}"


def draw_sample(ability: str, split: str, rng: random.Random) -> tuple[Scene | None, Question, str]:
    """Draws until the content's hash is in the split; returns scene (None for text), question and content."""
    while True:
        scene = draw_scene(rng)
        question = QUESTIONS[ability](scene, rng)
        shown = None if ability == "reasoning" else scene
        content = content_of(shown, question.text)
        if split_of(content) == split:
            return shown, question, content


@dataclass(frozen=True)
class Sample:
    """One sample of a split, before it is written."""

    id: str
    ability: str
    scene: Scene | None
    """None for a text-only question."""
    question: Question

    def prompt(self, split: str, images: tuple[str, ...], meta: dict[str, Any] | None = None) -> Prompt:
        """Returns the sample as a prompt of a split, with the teacher's reply."""
        return Prompt(
            id=self.id,
            ability=self.ability,
            question=self.question.text,
            answer=self.question.answer,
            answer_kind=self.question.answer_kind,
            images=images,
            response=teacher_response(self.ability, self.question, split),
            meta=meta,
        )


DrawSample = Callable[[str, str, random.Random], tuple[Scene | None, Question, str]]
"""Draws a sample of an ability in a split: scene, question and content."""


def draw_split(
    split: str, num_samples: int, seed: int, *, abilities: tuple[str, ...] = (), draw: DrawSample = draw_sample
) -> Iterator[Sample]:
    """Yields one split; sample i depends on the seed, the split and i, and in held-out splits on earlier samples.

    Args:
        split: its name.
        num_samples: number of samples.
        seed: seed of the whole set.
        abilities: kinds of questions, in rotation; by default those of the split.
        draw: draws one sample.

    Raises:
        ValueError: if a held-out split cannot hold so many distinct samples.
    """
    abilities = abilities or SPLIT_ABILITIES[split]
    seen: set[str] = set()
    num_first = round(FIRST_LESSON_SHARE * num_samples) if split == "base" else 0
    for index in range(num_samples):
        taught = FIRST_LESSON if index < num_first else abilities
        ability = taught[index % len(taught)]
        rng = random.Random(f"{seed}/{split}/{index}")
        for _ in range(MAX_REDRAWS):
            scene, question, content = draw(ability, split, rng)
            if split not in EVALUATION_SPLITS or content not in seen:
                break
        else:
            raise ValueError(f"{split}: no further distinct {ability} sample after {index}; ask for fewer")
        seen.add(content)
        yield Sample(f"{split}-{index:06d}", ability, scene, question)


def build_split(directory: Path, split: str, num_samples: int, seed: int) -> None:
    """Writes one split, with its images."""
    prompts = []
    for sample in progress(draw_split(split, num_samples, seed), label=split, total=num_samples, unit="prompt"):
        images: tuple[str, ...] = ()
        if sample.scene is not None:
            images = (f"images/{sample.id}.png",)
            render(sample.scene).save(directory / images[0])
        prompts.append(sample.prompt(split, images))
    write_prompts(directory, split, prompts)


def teacher_response(ability: str, question: Question, split: str) -> str | None:
    """Returns the teacher's reply: bare answers and worked sums for base, a thought and an answer for SFT."""
    if split == "base":
        return question.thought if ability == "reasoning" else question.answer
    if split == "sft":
        return f"<think>{question.thought}</think><answer>{question.answer}</answer>"
    return None


def build_pocket_world(directory: Path, *, sizes: PocketSizes, seed: int) -> None:
    """Writes every split of the pocket world, with its images, into an existing folder."""
    (directory / "images").mkdir()
    num_samples = {
        "base": sizes.num_base,
        "sft": sizes.num_sft,
        "rl": sizes.num_rl,
        "validation": sizes.num_validation_per_ability * len(ABILITIES),
        "test": sizes.num_test_per_ability * len(ABILITIES),
    }
    for split, num in num_samples.items():
        build_split(directory, split, num, seed)
