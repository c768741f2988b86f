"""How does one scene look in four kinds of pictures? Line drawings, speckle, negatives and a stain.

    outline    line drawings: only the edges of the objects are drawn, in their colours
    speckle    multiplicative noise and blur, as in ultrasound
    negative   all pixels inverted, as in X-rays
    stained    every cell holds an object in one stain. What the questions call red, green, blue or yellow are shades
               of it, `SHADE_STEP` levels apart; the objects in the scene's empty cells have a fifth shade

In the first three looks the colours are plain to see. In `stained` they are in the pixels, but hard to see, and the
number of objects shown is always nine: without the shades, the picture says nothing about any answer.
"""

import random
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter

from data_builders.pocket.draw import IMAGE_PIXELS, Scene, draw_thing, render
from models.pocket import COLOURS

LINE_PIXELS = 3.0
SPECKLE_SD = 0.5
"""Standard deviation of the multiplicative noise before the blur."""
GRAIN_PIXELS = 3
"""Side of a grain of the noise."""
BLUR_PIXELS = 1.0
STAIN_RGB = (168, 84, 140)
SHADE_STEP = 2
"""Levels of the green channel between two shades of the stain."""
UNNAMED = "unnamed"
SHADES = {
    name: (STAIN_RGB[0], STAIN_RGB[1] + SHADE_STEP * shade, STAIN_RGB[2])
    for shade, name in enumerate((*COLOURS, UNNAMED))
}
"""Colour -> shade of the stain; `UNNAMED` fills the cells that are empty in the scene."""


def draw_outline(scene: Scene, rng: random.Random) -> Image.Image:
    return render(scene, line_pixels=LINE_PIXELS)


def draw_speckle(scene: Scene, rng: random.Random) -> Image.Image:
    pixels = np.asarray(render(scene), np.float64)
    num_grains = IMAGE_PIXELS // GRAIN_PIXELS
    grains = np.random.default_rng(rng.getrandbits(64)).normal(1.0, SPECKLE_SD, (num_grains, num_grains))
    noise = np.kron(grains, np.ones((GRAIN_PIXELS, GRAIN_PIXELS)))[..., None]
    speckled = np.clip(np.rint(pixels * noise), 0, 255).astype(np.uint8)
    return Image.fromarray(speckled).filter(ImageFilter.GaussianBlur(BLUR_PIXELS))


def draw_negative(scene: Scene, rng: random.Random) -> Image.Image:
    return Image.fromarray(255 - np.asarray(render(scene)))


def draw_stained(scene: Scene, rng: random.Random) -> Image.Image:
    things = tuple(draw_thing(rng, UNNAMED) if thing is None else thing for thing in scene)
    return render(things, rgb=SHADES)


LOOKS: dict[str, Callable[[Scene, random.Random], Image.Image]] = {
    "outline": draw_outline,
    "speckle": draw_speckle,
    "negative": draw_negative,
    "stained": draw_stained,
}


def draw_look(scene: Scene, look: str, seed: str) -> Image.Image:
    """Returns the scene as an 84 x 84 RGB image in one look; noise and unnamed objects depend on the seed."""
    return LOOKS[look](scene, random.Random(f"{seed}/{look}"))


def draw_looks(scenes: list[Scene]) -> Image.Image:
    """Returns a sheet with the scenes side by side, one look per row, in the order of `LOOKS`."""
    rows = [
        np.concatenate([np.asarray(draw_look(scene, look, str(column))) for column, scene in enumerate(scenes)], axis=1)
        for look in LOOKS
    ]
    return Image.fromarray(np.concatenate(rows))
