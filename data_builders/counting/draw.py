"""What does a scene look like? Rendered with Mitsuba so that a pixel depends on nothing but what it can see.

Only light that comes straight from a lamp is counted (the `direct` integrator): no light goes from one thing to the
next, so a thing that is taken away changes the pixels that show it and those it kept lamps from, and no others. For
that to hold to the bit, a pixel's random numbers must depend on the pixel alone. A picture is rendered tile by tile,
each from its own seed; within a tile Mitsuba's scalar variants seed their sampler anew for each pixel, by its place
(`SamplingIntegrator::render_block`, read in Mitsuba 3.9), and the box filter keeps a sample in its own pixel. So
neither threads, processes nor other tiles change a tile, and where only part of a scene has changed, only the tiles
that can show it are rendered again (`render_change`).

Metal is part coloured ground, part rough conductor that shows the lamps as highlights: under direct light a conductor
alone would mirror the dark. Things are never mirrored in each other.

Known limit: Embree cuts rays with the triangles of cubes by instructions that differ between kinds of x86-64
processors (SSE, AVX2, AVX-512), which moves a cube's light by up to 4e-7 and could move a byte by one level; none of
0.7 million bytes did. Floor, balls and cylinders are cut by Mitsuba's own code, the same everywhere.
"""

import math
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from data_builders.counting.scenes import COLOURS, FOV_DEGREES, LOOK_AT, Lamp, Scene, Thing

TILE_PIXELS = 32
"""Side of what is rendered at once, as a single block of Mitsuba's."""
FLOOR_RADIUS = 150.0
FLOOR_RGB = (150, 150, 150)
ROUGHNESS = {"sphere": (0.2, 0.2), "cube": (0.3, 0.3), "cylinder": (0.15, 0.5)}
"""Of metal, along and across the grain: flat sides and walls would otherwise hardly ever show a lamp."""
METAL_FRAC = 0.45
"""How much of a metal's look is conductor."""


def render_scene(scene: Scene, width: int, height: int, num_samples: int) -> Image.Image:
    """Returns the picture of a scene, in sRGB; the same bytes in every process, whatever else it renders.

    Args:
        scene: what to draw.
        width, height: of the picture, in pixels.
        num_samples: rays per pixel.
    """
    light = np.zeros((height, width, 3), dtype=np.float32)
    _render_tiles(scene, light, _tiles(width, height), num_samples)
    return Image.fromarray(to_srgb(light))


def render_change(
    scene: Scene, picture: Image.Image, region: Bool[np.ndarray, "height width"], num_samples: int
) -> Image.Image:
    """Returns the picture of a scene that looks like another one's outside a region: the bytes of `render_scene`.

    Tiles that the region reaches are rendered, and those beside them, so that a region drawn too small shows.

    Args:
        scene: what to draw.
        picture: of the other scene, as `render_scene` gave it.
        region: outside of it, both look alike.
        num_samples: rays per pixel, as in the picture.
    """
    light = np.zeros((picture.height, picture.width, 3), dtype=np.float32)
    reached = [tile for tile in _tiles(*picture.size) if region[tile.with_surroundings].any()]
    _render_tiles(scene, light, reached, num_samples)
    pixels = np.array(picture)
    for tile in reached:
        pixels[tile.window] = to_srgb(light[tile.window])
    return Image.fromarray(pixels)


class Tile(NamedTuple):
    """A part of a picture, and its number."""

    number: int
    top: int
    left: int
    bottom: int
    right: int

    @property
    def window(self) -> tuple[slice, slice]:
        return slice(self.top, self.bottom), slice(self.left, self.right)

    @property
    def with_surroundings(self) -> tuple[slice, slice]:
        """The tile and all that is no farther from it than its side."""
        top, left = max(self.top - TILE_PIXELS, 0), max(self.left - TILE_PIXELS, 0)
        return slice(top, self.bottom + TILE_PIXELS), slice(left, self.right + TILE_PIXELS)


def _tiles(width: int, height: int) -> list[Tile]:
    corners = [(top, left) for top in range(0, height, TILE_PIXELS) for left in range(0, width, TILE_PIXELS)]
    return [
        Tile(number, top, left, min(top + TILE_PIXELS, height), min(left + TILE_PIXELS, width))
        for number, (top, left) in enumerate(corners)
    ]


def _render_tiles(
    scene: Scene, light: Float[np.ndarray, "height width 3"], tiles: list[Tile], num_samples: int
) -> None:
    """Renders some tiles into their places in a picture."""
    mi = open_mitsuba()
    height, width = light.shape[:2]
    described = describe_scene(scene, width, height, num_samples)
    sensor = described.pop("sensor")
    loaded = mi.load_dict(described, parallel=False, optimize=False)
    for tile in tiles:
        crop = {
            "crop_offset_x": tile.left,
            "crop_offset_y": tile.top,
            "crop_width": tile.right - tile.left,
            "crop_height": tile.bottom - tile.top,
        }
        looking = mi.load_dict({**sensor, "film": {**sensor["film"], **crop}}, parallel=False)
        light[tile.window] = mi.render(loaded, sensor=looking, seed=tile.number * TILE_PIXELS**2)


@cache
def open_mitsuba() -> Any:
    """Returns Mitsuba, set to render on the calling thread alone: pictures are drawn by several processes."""
    import drjit
    import mitsuba

    mitsuba.set_variant("scalar_rgb")
    drjit.set_thread_count(0)
    return mitsuba


def describe_scene(scene: Scene, width: int, height: int, num_samples: int) -> dict[str, Any]:
    """Returns a scene as `mitsuba.load_dict` takes it."""
    mi = open_mitsuba()
    floor_to_world = mi.ScalarTransform4f().scale(FLOOR_RADIUS)
    described: dict[str, Any] = {
        "type": "scene",
        "integrator": {"type": "direct", "emitter_samples": 1, "bsdf_samples": 0, "block_size": TILE_PIXELS},
        "sensor": {
            "type": "perspective",
            "fov": FOV_DEGREES,
            "fov_axis": "y",
            "to_world": mi.ScalarTransform4f().look_at(
                origin=list(scene.camera.position), target=list(LOOK_AT), up=[0, 0, 1]
            ),
            "film": {
                "type": "hdrfilm",
                "width": width,
                "height": height,
                "pixel_format": "rgb",
                "component_format": "float32",
                "rfilter": {"type": "box"},
            },
            "sampler": {"type": "stratified", "sample_count": num_samples},
        },
        "floor": {"type": "disk", "to_world": floor_to_world, "bsdf": _diffuse(FLOOR_RGB)},
    }
    for number, lamp in enumerate(scene.lamps):
        described[f"lamp{number}"] = _lamp(lamp)
    for number, thing in enumerate(scene.things, start=1):
        described |= _shapes(thing, f"thing{number}")
    return described


def _lamp(lamp: Lamp) -> dict[str, Any]:
    emitter = {"type": "area", "radiance": {"type": "rgb", "value": lamp.radiance}}
    return {"type": "sphere", "center": list(lamp.position), "radius": lamp.radius, "emitter": emitter}


def _shapes(thing: Thing, name: str) -> dict[str, dict[str, Any]]:
    """Returns what draws a thing, by its name.

    A thing of several surfaces is a group of its own, placed in the scene: where a ray meets two of them at once, at an
    edge, the one that counts hangs on the order in which they are tried, and within a group that is always the same.
    With all faces of all cubes in one tree, about one sample in 10^8 changed with cubes elsewhere.
    """
    mi = open_mitsuba()
    bsdf, half = _material(thing), thing.half_height
    place = mi.ScalarTransform4f().translate([thing.x, thing.y, half])
    if thing.shape == "sphere":
        return {name: {"type": "sphere", "to_world": place.scale(thing.radius), "bsdf": bsdf}}
    if thing.shape == "cube":
        parts = {"box": {"type": "cube", "to_world": mi.ScalarTransform4f().scale(half), "bsdf": bsdf}}
    else:  # Mitsuba's cylinder has no lid
        top = mi.ScalarTransform4f().translate([0, 0, half]).scale(thing.radius)
        parts = {
            "side": {"type": "cylinder", "p0": [0, 0, -half], "p1": [0, 0, half], "radius": thing.radius, "bsdf": bsdf},
            "lid": {"type": "disk", "to_world": top, "bsdf": bsdf},
        }
    return {
        f"{name}_parts": {"type": "shapegroup", **parts},
        name: {
            "type": "instance",
            "to_world": place.rotate([0, 0, 1], thing.rotation),
            "parts": {"type": "ref", "id": f"{name}_parts"},
        },
    }


def _material(thing: Thing) -> dict[str, Any]:
    colour = COLOURS[thing.colour]
    if thing.material == "rubber":
        return _diffuse(colour)
    tint = [0.25 + 0.75 * channel for channel in to_linear(colour)]
    metal = {
        "type": "roughconductor",
        "material": "none",
        "alpha_u": ROUGHNESS[thing.shape][0],
        "alpha_v": ROUGHNESS[thing.shape][1],
        "distribution": "ggx",
        "specular_reflectance": {"type": "rgb", "value": tint},
    }
    return {"type": "blendbsdf", "weight": METAL_FRAC, "ground": _diffuse(colour), "metal": metal}


def _diffuse(colour: tuple[int, int, int]) -> dict[str, Any]:
    return {"type": "diffuse", "reflectance": {"type": "rgb", "value": list(to_linear(colour))}}


def to_linear(colour: tuple[int, int, int]) -> tuple[float, ...]:
    """Returns an sRGB colour of 0 to 255 as shares of light (IEC 61966-2-1)."""
    return tuple(_linear(channel / 255) for channel in colour)


def _linear(value: float) -> float:
    return value / 12.92 if value <= 0.04045 else math.pow((value + 0.055) / 1.055, 2.4)


def to_srgb(light: Float[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "height width 3"]:
    """Returns light as sRGB bytes, each the nearest: found by comparison, since NumPy's powers differ by processor."""
    limits = np.array([_linear((level + 0.5) / 255) for level in range(255)], dtype=np.float32)
    return np.searchsorted(limits, light).astype(np.uint8)
