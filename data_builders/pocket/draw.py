"""What does a picture of the pocket world show? Scenes of coloured shapes on a 3 x 3 grid, drawn at random."""

import random
from collections.abc import Mapping
from dataclasses import dataclass

from PIL import Image, ImageDraw

from models.pocket import COLOURS, PLACES, SHAPES

GRID = 3
CELL_PIXELS = 28
"""One vision token of Qwen2.5-VL: patch 14 x spatial merge 2."""
IMAGE_PIXELS = GRID * CELL_PIXELS
MAX_THINGS = 6
OVERSAMPLING = 4
"""Supersampling factor of shapes, for smooth edges."""

RGB = {"red": (214, 40, 40), "green": (38, 150, 60), "blue": (40, 80, 210), "yellow": (235, 200, 30)}
BACKGROUND_RGB = (122, 116, 104)
"""The processor's mean colour: an empty cell is zero for the model."""
RADIUS_PIXELS = (9.0, 10.5)
JITTER_PIXELS = 1.5


@dataclass(frozen=True)
class Thing:
    """One object in a cell; radius and offsets are in pixels."""

    shape: str
    colour: str
    radius: float
    offset_x: float
    offset_y: float


Scene = tuple[Thing | None, ...]
"""The nine cells, row by row."""


def draw_thing(rng: random.Random, colour: str, shape: str | None = None) -> Thing:
    """Draws the shape (unless it is given), the radius and the offsets of an object."""
    return Thing(
        shape or rng.choice(SHAPES),
        colour,
        radius=rng.uniform(*RADIUS_PIXELS),
        offset_x=rng.uniform(-JITTER_PIXELS, JITTER_PIXELS),
        offset_y=rng.uniform(-JITTER_PIXELS, JITTER_PIXELS),
    )


def draw_scene(rng: random.Random) -> Scene:
    """Draws 2 to 6 objects in two to four colours, each in its own cell."""
    num_things = rng.randint(2, MAX_THINGS)
    colours = rng.sample(COLOURS, len(COLOURS))
    cells: list[Thing | None] = [None] * (GRID * GRID)
    for cell in rng.sample(range(GRID * GRID), num_things):
        shape = rng.choice(SHAPES)
        cells[cell] = draw_thing(rng, rng.choice(colours), shape)
    return tuple(cells)


def render(
    scene: Scene,
    *,
    rgb: Mapping[str, tuple[int, int, int]] = RGB,
    background: tuple[int, int, int] = BACKGROUND_RGB,
    line_pixels: float | None = None,
) -> Image.Image:
    """Returns the scene as an 84 x 84 RGB image.

    Args:
        scene: the objects.
        rgb: how each colour is painted.
        background: colour of the empty canvas.
        line_pixels: draws only outlines, of this width in pixels; by default shapes are filled.
    """
    side = IMAGE_PIXELS * OVERSAMPLING
    image = Image.new("RGB", (side, side), background)
    canvas = ImageDraw.Draw(image)
    for cell, thing in enumerate(scene):
        if thing is None:
            continue
        row, column = divmod(cell, GRID)
        x = ((column + 0.5) * CELL_PIXELS + thing.offset_x) * OVERSAMPLING
        y = ((row + 0.5) * CELL_PIXELS + thing.offset_y) * OVERSAMPLING
        r = thing.radius * OVERSAMPLING
        colour = rgb[thing.colour]
        fill, width = (colour, 1) if line_pixels is None else (None, round(line_pixels * OVERSAMPLING))
        if thing.shape == "circle":
            canvas.ellipse((x - 0.85 * r, y - 0.85 * r, x + 0.85 * r, y + 0.85 * r), fill, colour, width)
        elif thing.shape == "square":
            canvas.rectangle((x - 1.1 * r, y - 1.1 * r, x + 1.1 * r, y + 1.1 * r), fill, colour, width)
        else:
            canvas.polygon([(x, y - r), (x - r, y + 0.8 * r), (x + r, y + 0.8 * r)], fill, colour, width)
    return image.resize((IMAGE_PIXELS, IMAGE_PIXELS), Image.Resampling.BOX)


def count_colours(scene: Scene) -> dict[str, int]:
    """Returns the number of objects per colour."""
    return {colour: sum(thing is not None and thing.colour == colour for thing in scene) for colour in COLOURS}


def things_by_place(scene: Scene) -> dict[str, Thing]:
    """Returns the objects by place name, row by row."""
    return {place: thing for place, thing in zip(PLACES, scene, strict=True) if thing is not None}
