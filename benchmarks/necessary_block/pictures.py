"""What is asked? The colour of the only object in a picture of one cell, equally often each of the four.

A model that cannot see the picture answers every prompt alike, so it is right in exactly a quarter of the test prompts,
whichever colour it names. A model that sees is not always right either, so that models differ as in a real task: the
object's colour is blended with another one, which in a sixth of the pictures is the stronger of the two.
"""

import random
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from data_builders.pocket.draw import CELL_PIXELS, JITTER_PIXELS, RADIUS_PIXELS, Thing, render
from data_builders.prompt_sets.prompts import Prompt, write_prompts
from models.pocket import COLOURS, PLACES, SHAPES
from tracking.product import partial_directory

QUESTION = "What colour is it ?"
NUM_PROMPTS = {"base": 640, "sft": 640, "rl": 640, "test": 300}
"""Prompts per split; multiples of the number of colours."""
LEAST_SHARE = 0.4
"""Of the answer's colour in the blend; shares are uniform from here to 1."""
CENTRE = PLACES.index("centre")
CELL = (CELL_PIXELS, CELL_PIXELS, 2 * CELL_PIXELS, 2 * CELL_PIXELS)
"""The central cell of a scene: left, upper, right and lower edge in pixels."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One object in two colours, blended."""

    thing: Thing
    """In the colour that is the answer."""
    other: str
    """The colour that is blended in."""
    share: float
    """Of the answer's colour."""

    @property
    def image(self) -> Image.Image:
        """The picture, 28 x 28 pixels: one vision token."""
        own, other = (_cell(replace(self.thing, colour=colour)) for colour in (self.thing.colour, self.other))
        return Image.blend(other, own, self.share)


def draw(split: str, number: int, seed: int) -> Picture:
    """Returns a picture, which depends only on the arguments."""
    rng = random.Random(f"{seed}/{split}/{number}")
    colour = COLOURS[number % len(COLOURS)]
    thing = Thing(
        rng.choice(SHAPES),
        colour,
        radius=rng.uniform(*RADIUS_PIXELS),
        offset_x=rng.uniform(-JITTER_PIXELS, JITTER_PIXELS),
        offset_y=rng.uniform(-JITTER_PIXELS, JITTER_PIXELS),
    )
    other = rng.choice([name for name in COLOURS if name != colour])
    return Picture(thing=thing, other=other, share=rng.uniform(LEAST_SHARE, 1.0))


def _cell(thing: Thing) -> Image.Image:
    scene = tuple(thing if place == CENTRE else None for place in range(len(PLACES)))
    return render(scene).crop(CELL)


def build_prompts(directory: Path, *, seed: int) -> None:
    """Writes the prompt set, with its pictures."""
    with partial_directory(directory) as partial:
        (partial / "images").mkdir()
        for split, number in NUM_PROMPTS.items():
            write_prompts(partial, split, [_prompt(partial, split, index, seed) for index in range(number)])


def _prompt(directory: Path, split: str, index: int, seed: int) -> Prompt:
    picture, name = draw(split, index, seed), f"{split}-{index:04d}"
    picture.image.save(directory / "images" / f"{name}.png")
    return Prompt(
        id=name,
        ability="vision",
        question=QUESTION,
        answer=picture.thing.colour,
        answer_kind="text",
        images=(f"images/{name}.png",),
        response=picture.thing.colour if split in ("base", "sft") else None,
    )
