"""Places the objects of a scene so that they can be counted: apart, in view, and not hidden by each other.

As in CLEVR, objects keep a distance on the floor, are entirely within the image, and each shows a minimum number of
pixels; here also a minimum share of its unoccluded pixels. A draw that violates a rule is rejected as a whole.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from data_builders.counting.geometry import cover, silhouettes
from data_builders.counting.scenes import COLOURS, MATERIALS, SHAPES, SIZES, Camera, Lamp, Scene, Thing

REACH = 3.0
"""Maximum distance of objects from the centre, along both axes."""
MIN_GAP = 0.25
"""Minimum gap between the floor circles of two objects."""
CAMERA = (7.48, -6.5, 5.34)
CAMERA_JITTER = 0.5
LAMPS = (
    (6.5, 0.0, 8.0, 0.9, 85.0),
    (4.8, -8.6, 6.2, 1.2, 46.0),
    (-6.0, 5.0, 7.5, 0.9, 60.0),
)
"""Key, fill (next to the camera, so that its shadows fall behind objects) and back: x, y, z, radius, radiance."""
LAMP_JITTER = 0.8
NUM_DECIMALS = 4
NUM_PLACES = 60
"""Attempts per object."""
NUM_DRAWS = 400
"""Attempts per scene."""
MARGIN_FRAC = 0.012
"""Free margin on all sides, as a share of the image's width."""


@dataclass(frozen=True, kw_only=True)
class Visibility:
    """Minimum visibility of each object."""

    min_visible_pixels: int = field(
        default=200, metadata={"help": "minimum visible pixels of each object in a picture of 480 x 320"}
    )
    min_visible_frac: float = field(
        default=0.35, metadata={"help": "minimum visible share of each object, relative to the object standing alone"}
    )

    def __post_init__(self) -> None:
        if not 1 <= self.min_visible_pixels <= 400:
            raise ValueError(
                f"min_visible_pixels is {self.min_visible_pixels}; expected 1 to 400: "
                "small objects at the back show about 500"
            )
        if not 0.0 <= self.min_visible_frac <= 0.9:
            raise ValueError(f"min_visible_frac is {self.min_visible_frac}; expected 0 to 0.9")

    def min_pixels(self, width: int, height: int) -> int:
        """Returns the minimum number of pixels for an image of another size."""
        return max(1, round(self.min_visible_pixels * (height / 320) ** 2))


def draw_scene(
    rng: random.Random, num_things: int, width: int, height: int, visibility: Visibility | None = None
) -> Scene:
    """Draws a scene with a number of objects, all sufficiently visible.

    Raises:
        ValueError: if none is found: too many objects, or an image that is too narrow.
    """
    visibility = visibility or Visibility()
    for _ in range(NUM_DRAWS):
        scene = _draw(rng, num_things)
        if scene is not None and is_countable(scene, width, height, visibility):
            return scene
    raise ValueError(
        f"no scene of {num_things} objects in {width} x {height} pixels shows all of them after {NUM_DRAWS} draws; "
        "lower min_visible_pixels or min_visible_frac, or take a wider picture"
    )


def is_countable(scene: Scene, width: int, height: int, visibility: Visibility) -> bool:
    """True if each object is entirely within the image and sufficiently visible."""
    seen = silhouettes(scene, width, height)
    margin = max(1, round(MARGIN_FRAC * width))
    for silhouette in seen:
        rows, columns = silhouette.window
        inside = margin <= rows.start and rows.stop <= height - margin
        if not (inside and margin <= columns.start and columns.stop <= width - margin):
            return False
    numbers = cover(seen, width, height)
    least = visibility.min_pixels(width, height)
    for number, silhouette in enumerate(seen, start=1):
        shown = int((numbers[silhouette.window] == number).sum())
        if shown < least or shown < visibility.min_visible_frac * int(silhouette.hit.sum()):
            return False
    return True


def _draw(rng: random.Random, num_things: int) -> Scene | None:
    x, y, z = _jittered(rng, CAMERA, CAMERA_JITTER)
    lamps = []
    for *place, radius, radiance in LAMPS:
        lamp_x, lamp_y, lamp_z = _jittered(rng, place, LAMP_JITTER)
        lamps.append(Lamp(x=lamp_x, y=lamp_y, z=lamp_z, radius=radius, radiance=radiance))
    things: list[Thing] = []
    for _ in range(num_things):
        thing = _draw_thing(rng, things)
        if thing is None:
            return None
        things.append(thing)
    return Scene(things=tuple(things), camera=Camera(x=x, y=y, z=z), lamps=tuple(lamps))


def _draw_thing(rng: random.Random, others: list[Thing]) -> Thing | None:
    """Returns an object that keeps its distance to the others; None if no position was found."""
    looks = {
        "shape": rng.choice(SHAPES),
        "size": rng.choice(list(SIZES)),
        "material": rng.choice(MATERIALS),
        "colour": rng.choice(list(COLOURS)),
    }
    rotation = _uniform(rng, 0, 360)
    for _ in range(NUM_PLACES):
        thing = Thing(**looks, x=_uniform(rng, -REACH, REACH), y=_uniform(rng, -REACH, REACH), rotation=rotation)
        if all(gap(thing, other) >= MIN_GAP for other in others):
            return thing
    return None


def gap(first: Thing, second: Thing) -> float:
    """Returns the gap between the floor circles of two objects; negative if they overlap."""
    return math.dist((first.x, first.y), (second.x, second.y)) - first.radius - second.radius


def what_was_never_drawn(scene: Scene) -> str | None:
    """Describes the first element of a scene that is outside the ranges of the draw; None if there is none."""
    for thing in scene.things:
        if not (abs(thing.x) <= REACH and abs(thing.y) <= REACH and 0 <= thing.rotation <= 360):
            return f"{thing}: expected x and y within {REACH:g} of 0, and 0 to 360 degrees"
    if not _is_near(scene.camera.position, CAMERA, CAMERA_JITTER):
        return f"{scene.camera}: expected a place within {CAMERA_JITTER:g} of {CAMERA}"
    if len(scene.lamps) != len(LAMPS):
        return f"{len(scene.lamps)} lamps; expected {len(LAMPS)}"
    for lamp, (*place, radius, radiance) in zip(scene.lamps, LAMPS, strict=True):
        if not _is_near(lamp.position, place, LAMP_JITTER) or (lamp.radius, lamp.radiance) != (radius, radiance):
            return f"{lamp}: expected a place within {LAMP_JITTER:g} of {place}, radius {radius}, radiance {radiance}"
    return None


def _is_near(place: Sequence[float], middle: Sequence[float], reach: float) -> bool:
    rounding = 10**-NUM_DECIMALS
    return all(abs(value - near) <= reach + rounding for value, near in zip(place, middle, strict=True))


def _jittered(rng: random.Random, place: Sequence[float], reach: float) -> tuple[float, ...]:
    return tuple(_uniform(rng, value - reach, value + reach) for value in place)


def _uniform(rng: random.Random, low: float, high: float) -> float:
    return round(rng.uniform(low, high), NUM_DECIMALS)
