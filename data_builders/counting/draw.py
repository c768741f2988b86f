"""Renders scenes with Mitsuba so that each pixel depends only on what is visible from it.

Only direct light from the lamps is rendered (the `direct` integrator). No light passes from one object to another, so
removing an object changes only the pixels that show it and those in its shadow. For this to hold bit by bit, a pixel's
random numbers must depend on the pixel alone. An image is rendered in tiles with separate seeds; within a tile,
Mitsuba's scalar variants reseed their sampler for each pixel by position (`SamplingIntegrator::render_block`, read in
Mitsuba 3.9), and the box filter keeps each sample within its pixel. A tile is therefore independent of threads,
processes and other tiles, and if only part of a scene changes, only the affected tiles are rendered again
(`render_change`).

Metal is a blend of a diffuse colour and a rough conductor that shows the lamps as highlights: under direct light a pure
conductor would be dark. Objects are never reflected in each other.

Known limit: Embree intersects rays with the cubes' triangles using instructions that differ between x86-64 processors
(SSE, AVX2, AVX-512). This changes a cube's light by up to 4e-7 and could change a byte by one level; none of 0.7
million bytes did. Floor, spheres and cylinders are intersected by Mitsuba's own code, which is the same everywhere.
"""

import math
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from data_builders.counting.scenes import COLOURS, FOV_DEGREES, LOOK_AT, Lamp, Scene, Thing

TILE_PIXELS = 32
"""Side of a tile, rendered as one Mitsuba block."""
FLOOR_RADIUS = 150.0
FLOOR_RGB = (150, 150, 150)
ROUGHNESS = {"sphere": (0.2, 0.2), "cube": (0.3, 0.3), "cylinder": (0.15, 0.5)}
"""Roughness of metal, along and across the grain: otherwise flat faces would rarely show a highlight."""
METAL_FRAC = 0.45
"""Weight of the conductor in metal."""


def render_scene(scene: Scene, width: int, height: int, num_samples: int) -> Image.Image:
    """Renders a scene to sRGB; the bytes do not depend on the process or its other work.

    Args:
        scene: what to draw.
        width, height: size of the image in pixels.
        num_samples: rays per pixel.
    """
    light = np.zeros((height, width, 3), dtype=np.float32)
    _render_tiles(scene, light, _tiles(width, height), num_samples)
    return Image.fromarray(to_srgb(light))


def render_change(
    scene: Scene, picture: Image.Image, region: Bool[np.ndarray, "height width"], num_samples: int
) -> Image.Image:
    """Renders a scene that equals another one outside a region; gives the same bytes as `render_scene`.

    The tiles that intersect the region and their neighbours are rendered, so a region that is too small is noticed.

    Args:
        scene: what to draw.
        picture: the other scene's image, from `render_scene`.
        region: pixels that may differ.
        num_samples: rays per pixel, as in that image.
    """
    light = np.zeros((picture.height, picture.width, 3), dtype=np.float32)
    reached = [tile for tile in _tiles(*picture.size) if region[tile.with_surroundings].any()]
    _render_tiles(scene, light, reached, num_samples)
    pixels = np.array(picture)
    for tile in reached:
        pixels[tile.window] = to_srgb(light[tile.window])
    return Image.fromarray(pixels)


class Tile(NamedTuple):
    """A part of an image, and its number."""

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
        """The tile and its neighbourhood of one tile width."""
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
    """Renders some tiles into an image."""
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
    """Returns Mitsuba, restricted to the calling thread, since several processes render."""
    import drjit
    import mitsuba

    mitsuba.set_variant("scalar_rgb")
    drjit.set_thread_count(0)
    return mitsuba


def describe_scene(scene: Scene, width: int, height: int, num_samples: int) -> dict[str, Any]:
    """Returns a scene in the format of `mitsuba.load_dict`."""
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
    """Returns the Mitsuba shapes of an object, by name.

    An object with several surfaces is a separate group, instanced in the scene. Where a ray hits two surfaces at once,
    at an edge, the result depends on the order of the intersection tests, which is fixed within a group. With all faces
    of all cubes in one tree, about one sample in 10^8 changed with cubes elsewhere.
    """
    mi = open_mitsuba()
    bsdf, half = _material(thing), thing.half_height
    place = mi.ScalarTransform4f().translate([thing.x, thing.y, half])
    if thing.shape == "sphere":
        return {name: {"type": "sphere", "to_world": place.scale(thing.radius), "bsdf": bsdf}}
    if thing.shape == "cube":
        parts = {"box": {"type": "cube", "to_world": mi.ScalarTransform4f().scale(half), "bsdf": bsdf}}
    else:  # Mitsuba's cylinder has no caps
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
    """Converts an sRGB colour (0 to 255) to linear light (IEC 61966-2-1)."""
    return tuple(_linear(channel / 255) for channel in colour)


def _linear(value: float) -> float:
    return value / 12.92 if value <= 0.04045 else math.pow((value + 0.055) / 1.055, 2.4)


def to_srgb(light: Float[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "height width 3"]:
    """Converts linear light to the nearest sRGB bytes, by comparison: NumPy's powers differ between processors."""
    limits = np.array([_linear((level + 0.5) / 255) for level in range(255)], dtype=np.float32)
    return np.searchsorted(limits, light).astype(np.uint8)
