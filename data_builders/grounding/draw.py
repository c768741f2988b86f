"""What does an object of a grounding pair look like? Outlines, colours, and how much of each pixel one covers."""

import math
from typing import NamedTuple

from PIL import Image, ImageDraw

Rgb = tuple[int, int, int]

COLOURS: dict[str, Rgb] = {
    "red": (220, 30, 35), "orange": (250, 135, 15), "yellow": (240, 205, 10), "green": (35, 150, 55),
    "blue": (35, 80, 215), "purple": (125, 45, 175), "pink": (250, 120, 190), "brown": (120, 70, 30),
    "gray": (130, 130, 130), "black": (20, 20, 20),
}  # fmt: skip
BACKGROUNDS: dict[str, Rgb] = {"white": (255, 255, 255), "ivory": (252, 246, 228), "silver": (224, 226, 228)}
"""Each differs from every object colour by 80 or more in a channel, so even slightly covered pixels are visible."""

OVERSAMPLING = 4
"""Supersampling factor: a pixel that is covered at all is covered by 1/16 or more."""


class Shape(NamedTuple):
    """An outline within the unit circle around the origin, y downwards."""

    corners: tuple[tuple[float, float], ...]
    """Empty for the circle."""
    max_rotation: float
    """Maximum rotation in degrees to either side; beyond it the name changes: a square on its corner is a diamond."""


def _regular(num_corners: int) -> tuple[tuple[float, float], ...]:
    angles = [2 * math.pi * corner / num_corners for corner in range(num_corners)]
    return tuple((math.sin(angle), -math.cos(angle)) for angle in angles)


def _star(inner: float) -> tuple[tuple[float, float], ...]:
    return tuple((x * r, y * r) for (x, y), r in zip(_regular(10), (1.0, inner) * 5, strict=True))


def _cross(half_width: float) -> tuple[tuple[float, float], ...]:
    long, short = math.sqrt(1 - half_width**2), half_width
    quarter = ((short, -long), (short, -short), (long, -short))
    turned = [quarter]
    for _ in range(3):
        turned.append(tuple((-y, x) for x, y in turned[-1]))  # type: ignore[arg-type]
    return tuple(corner for corners in turned for corner in corners)


def _heart(num_corners: int) -> tuple[tuple[float, float], ...]:
    """The curve x = 16 sin³t, y = 13 cos t - 5 cos 2t - 2 cos 3t - cos 4t, which is 34 tall, moved to its middle."""
    angles = [2 * math.pi * corner / num_corners for corner in range(num_corners)]
    curve = [
        (16 * math.sin(t) ** 3, -2.5 - 13 * math.cos(t) + 5 * math.cos(2 * t) + 2 * math.cos(3 * t) + math.cos(4 * t))
        for t in angles
    ]
    radius = max(math.hypot(x, y) for x, y in curve)
    return tuple((x / radius, y / radius) for x, y in curve)


SQUARE_SIGNS = ((-1, -1), (1, -1), (1, 1), (-1, 1))
SHAPES: dict[str, Shape] = {
    "circle": Shape((), 0.0),
    "square": Shape(tuple((math.sqrt(0.5) * x, math.sqrt(0.5) * y) for x, y in SQUARE_SIGNS), 15.0),
    "triangle": Shape(_regular(3), 180.0),
    "diamond": Shape(((0.0, -1.0), (0.65, 0.0), (0.0, 1.0), (-0.65, 0.0)), 15.0),
    "pentagon": Shape(_regular(5), 180.0),
    "hexagon": Shape(_regular(6), 180.0),
    "star": Shape(_star(0.42), 180.0),
    "cross": Shape(_cross(0.3), 15.0),
    "heart": Shape(_heart(64), 30.0),
    "arrow": Shape(
        ((0.0, -1.0), (0.7, -0.1), (0.28, -0.1), (0.28, 0.96), (-0.28, 0.96), (-0.28, -0.1), (-0.7, -0.1)), 180.0
    ),
}  # fmt: skip
NAMES = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)


def draw_cover(shape: str, size_pixels: int, rotation_degrees: float) -> Image.Image:
    """Returns an object's coverage of each pixel (0 to 255), cropped to the covered pixels.

    Args:
        shape: one of `SHAPES`.
        size_pixels: diameter of its circumscribed circle.
        rotation_degrees: clockwise.
    """
    corners, _ = SHAPES[shape]
    side = (size_pixels + 2) * OVERSAMPLING
    middle, radius = (side - 1) / 2, size_pixels * OVERSAMPLING / 2
    large = Image.new("L", (side, side))
    canvas = ImageDraw.Draw(large)
    if corners:
        sine, cosine = math.sin(math.radians(rotation_degrees)), math.cos(math.radians(rotation_degrees))
        turned = [(x * cosine - y * sine, x * sine + y * cosine) for x, y in corners]
        canvas.polygon([(round(middle + x * radius, 3), round(middle + y * radius, 3)) for x, y in turned], fill=255)
    else:
        edges = (middle - radius + 0.5, middle + radius - 0.5)  # the first and the last pixel, as Pillow counts them
        canvas.ellipse((edges[0], edges[0], edges[1], edges[1]), fill=255)
    cover = large.reduce(OVERSAMPLING)
    return cover.crop(cover.getbbox())


class Thing(NamedTuple):
    """An object without its position."""

    colour: str
    shape: str
    size_pixels: int
    rotation_degrees: float

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"

    def cover(self) -> Image.Image:
        return draw_cover(self.shape, self.size_pixels, self.rotation_degrees)
