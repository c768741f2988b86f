"""The description of a rendered counting scene: objects on a grey floor, a camera and three lamps, after CLEVR.

Shapes, sizes, materials and colours are those of CLEVR (Johnson et al. 2017, arXiv 1612.06890, section 3 and its
`image_generation/data/properties.json`), and so are the camera and the area for objects; the lamp positions are ours. A
scene consists of numbers only: `layout.py` draws it, `draw.py` renders it, `geometry.py` computes which pixel shows
which object. Lengths are in CLEVR's units; the objects stand on the floor, z = 0.
"""

from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any, TypeVar, get_type_hints

SHAPES = ("cube", "sphere", "cylinder")
SIZES = {"large": 0.7, "small": 0.35}
"""Name -> radius; a cube's corners are on the circle of that radius."""
MATERIALS = ("rubber", "metal")
COLOURS = {
    "grey": (87, 87, 87), "red": (173, 35, 35), "blue": (42, 75, 215), "green": (29, 105, 20),
    "brown": (129, 74, 25), "purple": (129, 38, 192), "cyan": (41, 208, 208), "yellow": (255, 238, 51),
}  # fmt: skip
"""Name -> sRGB."""
FOV_DEGREES = 33.9
"""Vertical field of view: a 35 mm lens with a sensor of 32 mm by 21.3 mm."""
LOOK_AT = (0.0, 0.0, 0.25)
CUBE_HALF_EDGE = 0.5**0.5
"""As a share of its radius."""


@dataclass(frozen=True, kw_only=True)
class Thing:
    """An object on the floor."""

    shape: str
    size: str
    material: str
    colour: str
    x: float
    y: float
    rotation: float
    """Rotation around the vertical axis, in degrees."""

    def __post_init__(self) -> None:
        legal: dict[str, Collection[str]] = {
            "shape": SHAPES,
            "size": SIZES,
            "material": MATERIALS,
            "colour": COLOURS,
        }
        for name, known in legal.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} {getattr(self, name)!r} is unknown; expected one of {', '.join(known)}")

    @property
    def radius(self) -> float:
        """Radius of the circle around its footprint."""
        return SIZES[self.size]

    @property
    def half_height(self) -> float:
        """Height of its centre above the floor: a cube's half edge, a sphere's radius."""
        return self.radius * CUBE_HALF_EDGE if self.shape == "cube" else self.radius


@dataclass(frozen=True, kw_only=True)
class Camera:
    """The camera's position; it looks at `LOOK_AT`."""

    x: float
    y: float
    z: float

    @property
    def position(self) -> tuple[float, float, float]:
        return self.x, self.y, self.z


@dataclass(frozen=True, kw_only=True)
class Lamp:
    """A spherical light outside the view."""

    x: float
    y: float
    z: float
    radius: float
    radiance: float

    @property
    def position(self) -> tuple[float, float, float]:
        return self.x, self.y, self.z


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Objects, camera and lamps."""

    things: tuple[Thing, ...]
    camera: Camera
    lamps: tuple[Lamp, ...]

    def without(self, numbers: Collection[int]) -> "Scene":
        """Returns the scene without the objects with these numbers, counted from 1."""
        kept = tuple(thing for number, thing in enumerate(self.things, start=1) if number not in numbers)
        return Scene(things=kept, camera=self.camera, lamps=self.lamps)

    def to_json(self) -> dict[str, Any]:
        """Returns the scene as JSON."""
        return {
            "things": list(map(asdict, self.things)),
            "camera": asdict(self.camera),
            "lamps": list(map(asdict, self.lamps)),
        }


Record = TypeVar("Record", Thing, Camera, Lamp)


def scene_from_json(value: Any) -> Scene:
    """Inverse of `to_json`.

    Raises:
        ValueError: if it is not a scene.
    """
    try:
        return Scene(
            things=tuple(_record(Thing, thing) for thing in value["things"]),
            camera=_record(Camera, value["camera"]),
            lamps=tuple(_record(Lamp, lamp) for lamp in value["lamps"]),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a scene ({type(error).__name__}: {error}); expected things, camera and lamps") from error


def _record(kind: type[Record], value: Any) -> Record:
    for name, hint in get_type_hints(kind).items():
        if hint is float and (isinstance(value[name], bool) or not isinstance(value[name], int | float)):
            raise TypeError(f"{name} is {value[name]!r}; expected a number")
    return kind(**value)
