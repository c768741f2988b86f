"""The pocket world: small pictures of coloured shapes on a 3 x 3 grid, and questions with answers a rule verifies.

Three abilities mirror the paper's (Table 1): *vision* (what is there), *vision-to-reasoning* (arithmetic over what is
seen) and *reasoning* (the same arithmetic, the counts given in text). Splits are disjoint by construction: the hash of
a sample's content (the cells and the question, without the jitter) decides the only split it may stand in.

    python -m data_builders.build pocket --seed 0 --output-dir outputs/pocket/data
"""

import hashlib
import random
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from data_builders.prompts import Prompt, write_prompts
from models.pocket import COLOURS, POSITIONS, SHAPES

GRID = 3
CELL_PIXELS = 28
"""One vision token of Qwen2.5-VL: patch 14 x spatial merge 2."""
IMAGE_PIXELS = GRID * CELL_PIXELS
OVERSAMPLING = 4
"""Shapes are drawn this much larger and reduced, so that their edges are smooth."""

RGB = {"red": (214, 40, 40), "green": (38, 150, 60), "blue": (40, 80, 210), "yellow": (235, 200, 30)}
BACKGROUND_RGB = (236, 236, 236)

SPLIT_SHARES = {"base": 40, "sft": 15, "rl": 25, "validation": 5, "test": 15}
"""Percent of all possible samples that each split may draw from."""
EVALUATION_SPLITS = ("validation", "test")
"""Splits in which no sample stands twice."""

FACTORS = ((1, 1), (1, 2), (2, 1), (1, 3), (3, 1))
"""Factors (a, b) of the expressions a x FIRST + b x SECOND and a x FIRST - b x SECOND."""


@dataclass(frozen=True, kw_only=True)
class PocketSizes:
    """How many samples each split holds, and the mix of abilities in it."""

    num_base: int = 6000
    num_sft: int = 3000
    num_rl: int = 3000
    num_validation_per_ability: int = 100
    num_test_per_ability: int = 500

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")


@dataclass(frozen=True)
class Thing:
    """One object in a cell; the offsets move it inside the cell, in pixels."""

    shape: str
    colour: str
    radius: float
    offset_x: float
    offset_y: float


Scene = tuple[Thing | None, ...]
"""The nine cells, row by row."""


@dataclass(frozen=True)
class Question:
    text: str
    answer: str
    answer_kind: str
    thought: str
    """The chain a teacher writes before the answer."""


def draw_scene(rng: random.Random) -> Scene:
    """Draws 2 to 9 objects in two to four colours; each fills a cell of its own."""
    num_things = rng.randint(2, GRID * GRID)
    colours = rng.sample(COLOURS, rng.randint(2, len(COLOURS)))
    cells: list[Thing | None] = [None] * (GRID * GRID)
    for cell in rng.sample(range(GRID * GRID), num_things):
        cells[cell] = Thing(
            rng.choice(SHAPES),
            rng.choice(colours),
            radius=rng.uniform(8, 10.5),
            offset_x=rng.uniform(-3, 3),
            offset_y=rng.uniform(-3, 3),
        )
    return tuple(cells)


def render(scene: Scene) -> Image.Image:
    """Returns the scene as an 84 x 84 RGB picture."""
    side = IMAGE_PIXELS * OVERSAMPLING
    image = Image.new("RGB", (side, side), BACKGROUND_RGB)
    canvas = ImageDraw.Draw(image)
    for cell, thing in enumerate(scene):
        if thing is None:
            continue
        row, column = divmod(cell, GRID)
        x = ((column + 0.5) * CELL_PIXELS + thing.offset_x) * OVERSAMPLING
        y = ((row + 0.5) * CELL_PIXELS + thing.offset_y) * OVERSAMPLING
        r = thing.radius * OVERSAMPLING
        fill = RGB[thing.colour]
        if thing.shape == "circle":
            canvas.ellipse((x - r, y - r, x + r, y + r), fill=fill)
        elif thing.shape == "square":
            canvas.rectangle((x - 0.86 * r, y - 0.86 * r, x + 0.86 * r, y + 0.86 * r), fill=fill)
        else:
            canvas.polygon([(x, y - r), (x - r, y + 0.8 * r), (x + r, y + 0.8 * r)], fill=fill)
    return image.resize((IMAGE_PIXELS, IMAGE_PIXELS), Image.Resampling.BOX)


def ask_vision(scene: Scene, rng: random.Random) -> Question:
    """Asks for a count, a colour, a shape or a place."""
    things = [(POSITIONS[cell], thing) for cell, thing in enumerate(scene) if thing is not None]
    names = [f"{thing.colour} {thing.shape}" for _, thing in things]
    unique = [index for index, name in enumerate(names) if names.count(name) == 1]
    kind = rng.choice(("count-colour", "count-shape", "colour", "shape", *(("where",) if unique else ())))
    if kind == "count-colour":
        colour = rng.choice(COLOURS)
        count = sum(thing.colour == colour for _, thing in things)
        return Question(f"How many {colour} objects are there ?", str(count), "number", f"{colour} {count}")
    if kind == "count-shape":
        shape = rng.choice(SHAPES)
        count = sum(thing.shape == shape for _, thing in things)
        return Question(f"How many {shape}s are there ?", str(count), "number", f"{shape}s {count}")
    if kind == "where":
        index = rng.choice(unique)
        place = things[index][0]
        return Question(f"Where is the {names[index]} ?", place, "text", names[index])
    place, thing = rng.choice(things)
    answer = thing.colour if kind == "colour" else thing.shape
    return Question(f"What {kind} is the object in the {place} ?", answer, "text", f"{thing.colour} {thing.shape}")


def ask_description(scene: Scene) -> Question:
    """Asks for everything that is there, cell by cell: what a vision-language model is pretrained on."""
    names = [f"{thing.colour} {thing.shape}" if thing else "empty" for thing in scene]
    return Question("Describe the picture .", " ".join(names), "text", "")


@dataclass(frozen=True)
class Expression:
    """a x FIRST + b x SECOND, or with a minus, over the counts of two colours."""

    first: str
    second: str
    a: int
    b: int
    sign: int

    def __str__(self) -> str:
        return self.write(self.first, self.second)

    def write(self, first: object, second: object) -> str:
        def term(factor: int, value: object) -> str:
            return f"{value}" if factor == 1 else f"{factor} * {value}"

        return f"{term(self.a, first)} {'+' if self.sign > 0 else '-'} {term(self.b, second)}"

    def value(self, num_first: int, num_second: int) -> int:
        return self.a * num_first + self.sign * self.b * num_second


def draw_expression(num_by_colour: dict[str, int], rng: random.Random) -> Expression:
    """Draws an expression whose value is not negative, over two colours that are there (if two are)."""
    present = [colour for colour, num in num_by_colour.items() if num]
    while True:
        first, second = rng.sample(present if len(present) > 1 else COLOURS, 2)
        a, b = rng.choice(FACTORS)
        expression = Expression(first, second, a, b, rng.choice((1, -1)))
        if expression.value(num_by_colour[first], num_by_colour[second]) >= 0:
            return expression


def ask_expression(num_by_colour: dict[str, int], rng: random.Random, *, in_text: bool) -> Question:
    """Asks for the value of an expression over counts, which stand in the picture or in the text."""
    expression = draw_expression(num_by_colour, rng)
    num_first, num_second = num_by_colour[expression.first], num_by_colour[expression.second]
    answer = str(expression.value(num_first, num_second))
    thought = expression.write(num_first, num_second).replace(" ", "") + f"={answer}"
    given = f"There are {num_first} {expression.first} and {num_second} {expression.second} objects . "
    return Question(f"{given if in_text else ''}What is {expression} ?", answer, "number", thought)


def draw_counts(rng: random.Random) -> dict[str, int]:
    """Draws counts of the four colours as in a scene: together at most nine."""
    return count_colours(draw_scene(rng))


def count_colours(scene: Scene) -> dict[str, int]:
    return {colour: sum(thing is not None and thing.colour == colour for thing in scene) for colour in COLOURS}


def split_of(content: str) -> str:
    """Returns the one split in which a sample of this content may stand."""
    bucket = int.from_bytes(hashlib.sha256(content.encode()).digest()[:8], "big") % sum(SPLIT_SHARES.values())
    for split, share in SPLIT_SHARES.items():
        if bucket < share:
            return split
        bucket -= share
    raise AssertionError(f"bucket {bucket} is outside the shares {SPLIT_SHARES}")


def draw_sample(ability: str, split: str, rng: random.Random) -> tuple[Scene | None, Question, str]:
    """Draws until the content's hash falls into the split; returns scene (none for text), question and content."""
    while True:
        scene = draw_scene(rng)
        if ability == "description":
            question = ask_description(scene)
        elif ability == "vision":
            question = ask_vision(scene, rng)
        else:
            question = ask_expression(count_colours(scene), rng, in_text=ability == "reasoning")
        shown = None if ability == "reasoning" else scene
        cells = "" if shown is None else "|".join(f"{t.colour} {t.shape}" if t else "-" for t in shown)
        content = f"{cells}\n{question.text}"
        if split_of(content) == split:
            return shown, question, content


SPLIT_ABILITIES: dict[str, tuple[str, ...]] = {
    "base": ("description", "vision", "description", "vision", "reasoning"),
    "sft": ("vision", "vision-to-reasoning", "vision-to-reasoning", "reasoning"),
    "rl": ("vision", "vision-to-reasoning", "vision-to-reasoning", "reasoning"),
}
"""Abilities of the training splits, in turn. The base model never meets vision-to-reasoning."""


def build_split(directory: Path, split: str, abilities: tuple[str, ...], num_samples: int, seed: int) -> None:
    """Writes one split; sample i depends on the seed, the split and i alone."""
    seen: set[str] = set()
    prompts = []
    for index in range(num_samples):
        ability = abilities[index % len(abilities)]
        rng = random.Random(f"{seed}/{split}/{index}")
        for _ in range(10_000):
            scene, question, content = draw_sample(ability, split, rng)
            if split not in EVALUATION_SPLITS or content not in seen:
                break
        else:
            raise ValueError(f"{split}: no further distinct {ability} sample after {index}; ask for fewer")
        seen.add(content)
        identifier = f"{split}-{index:06d}"
        images: tuple[str, ...] = ()
        if scene is not None:
            images = (f"images/{identifier}.png",)
            render(scene).save(directory / images[0], optimize=False)
        prompts.append(
            Prompt(
                id=identifier,
                ability=ability,
                question=question.text,
                answer=question.answer,
                answer_kind=question.answer_kind,
                images=images,
                response=teacher_response(question, split),
            )
        )
    write_prompts(directory, split, prompts)


def teacher_response(question: Question, split: str) -> str | None:
    """What a teacher replies: the bare answer to the base model, a short chain to the cold start."""
    if split == "base":
        return question.answer
    if split == "sft":
        return f"<think>{question.thought}</think><answer>{question.answer}</answer>"
    return None


def build_pocket_world(directory: Path, *, sizes: PocketSizes, seed: int) -> None:
    """Writes every split of the pocket world, with its images, into an existing folder."""
    from data_builders.prompts import ABILITIES

    (directory / "images").mkdir()
    for split, num_samples in (("base", sizes.num_base), ("sft", sizes.num_sft), ("rl", sizes.num_rl)):
        build_split(directory, split, SPLIT_ABILITIES[split], num_samples, seed)
    build_split(directory, "validation", ABILITIES, len(ABILITIES) * sizes.num_validation_per_ability, seed)
    build_split(directory, "test", ABILITIES, len(ABILITIES) * sizes.num_test_per_ability, seed)
