"""What is asked? The colour of the only object in a picture of one cell, equally often each of the four.

A model that cannot see the picture answers every prompt alike, so it is right in exactly a quarter of the test prompts,
whichever colour it names.
"""

import random
from pathlib import Path

from data_builders.pocket.draw import CELL_PIXELS, JITTER_PIXELS, RADIUS_PIXELS, Scene, Thing, render
from data_builders.prompt_sets.prompts import Prompt, write_prompts
from models.pocket import COLOURS, PLACES, SHAPES
from tracking.product import partial_directory

QUESTION = "What colour is it ?"
NUM_PROMPTS = {"base": 640, "sft": 640, "rl": 640, "test": 300}
"""Prompts per split; multiples of the number of colours."""
CENTRE = PLACES.index("centre")
CELL = (CELL_PIXELS, CELL_PIXELS, 2 * CELL_PIXELS, 2 * CELL_PIXELS)
"""The central cell of a scene: left, upper, right and lower edge in pixels."""


def draw(split: str, number: int, seed: int) -> Scene:
    """Returns a scene with one object, in the centre; it depends only on the arguments."""
    rng = random.Random(f"{seed}/{split}/{number}")
    thing = Thing(
        rng.choice(SHAPES),
        COLOURS[number % len(COLOURS)],
        radius=rng.uniform(*RADIUS_PIXELS),
        offset_x=rng.uniform(-JITTER_PIXELS, JITTER_PIXELS),
        offset_y=rng.uniform(-JITTER_PIXELS, JITTER_PIXELS),
    )
    return tuple(thing if place == CENTRE else None for place in range(len(PLACES)))


def build_prompts(directory: Path, *, seed: int) -> None:
    """Writes the prompt set, with its pictures of 28 x 28 pixels: one vision token each."""
    with partial_directory(directory) as partial:
        (partial / "images").mkdir()
        for split, number in NUM_PROMPTS.items():
            write_prompts(partial, split, [_prompt(partial, split, index, seed) for index in range(number)])


def _prompt(directory: Path, split: str, index: int, seed: int) -> Prompt:
    scene, name = draw(split, index, seed), f"{split}-{index:04d}"
    render(scene).crop(CELL).save(directory / "images" / f"{name}.png")
    thing = scene[CENTRE]
    assert thing is not None
    return Prompt(
        id=name,
        ability="vision",
        question=QUESTION,
        answer=thing.colour,
        answer_kind="text",
        images=(f"images/{name}.png",),
        response=thing.colour if split in ("base", "sft") else None,
    )
