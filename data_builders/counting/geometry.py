"""Which pixel shows which object, and which pixels can an object change? Computed from the scene, not from images.

A ray through the centre of each pixel, as in Mitsuba's perspective camera, is intersected with spheres, cubes,
cylinders and the floor. This gives the masks of object numbers (0 for the floor, i for the i-th object of the scene).

Removing an object changes only the pixels that show it and those that show a point from which it occluded part of a
lamp: only direct light is rendered, without reflections. The segments from a point to a lamp, a sphere of radius r, are
at parameter t (0 at the point, 1 at the lamp's centre) within r t of the segment to the centre. So a point can be
affected only if the centre segment passes, at some t, through the object grown by r t. For spheres and cubes this is
solved in t; a cylinder is grown by the r t at which the segment leaves its height range. As a margin, objects are grown
by one more pixel and the region by one pixel on all sides; a pixel at an object's edge is also tested against what is
behind it, since it shows both.
"""

import math
from collections.abc import Collection, Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8

from data_builders.counting.scenes import FOV_DEGREES, LOOK_AT, Camera, Lamp, Scene, Thing

FLOOR = 0
Window = tuple[slice, slice]
"""Rows and columns of an image."""


class Silhouette(NamedTuple):
    """The visibility of an object without the others."""

    window: Window
    """Window outside of which the object is not visible."""
    distance: Float[np.ndarray, "rows columns"]
    """Distance along the ray, in units of its direction; infinite if the ray misses the object."""

    @property
    def hit(self) -> Bool[np.ndarray, "rows columns"]:
        hit: Bool[np.ndarray, "rows columns"] = np.isfinite(self.distance)
        return hit


class Segments(NamedTuple):
    """Lines from points to a lamp's centre (t from 0 to 1), tested against an object grown by `margin` + t `spread`."""

    starts: Float[np.ndarray, "num_points 3"]
    """Relative to the object's centre."""
    ways: Float[np.ndarray, "num_points 3"]
    margin: float
    spread: float


def id_mask(scene: Scene, width: int, height: int) -> UInt8[np.ndarray, "height width"]:
    """Returns the object visible at each pixel's centre: 0 for the floor, i for the scene's i-th object."""
    return cover(silhouettes(scene, width, height), width, height)


def silhouettes(scene: Scene, width: int, height: int) -> list[Silhouette]:
    """Returns the silhouette of each object of a scene."""
    directions = ray_directions(scene.camera, width, height)
    return [_silhouette(thing, scene.camera, directions) for thing in scene.things]


def cover(
    seen: list[Silhouette], width: int, height: int, without: Collection[int] = ()
) -> UInt8[np.ndarray, "height width"]:
    """Returns the mask of object numbers for all objects except those in `without`."""
    nearest = np.full((height, width), np.inf)
    numbers = np.zeros((height, width), dtype=np.uint8)
    for number, silhouette in enumerate(seen, start=1):
        if number not in without:
            closer = silhouette.distance < nearest[silhouette.window]
            nearest[silhouette.window][closer] = silhouette.distance[closer]
            numbers[silhouette.window][closer] = number
    return numbers


def touched_region(scene: Scene, removed: Collection[int], width: int, height: int) -> Bool[np.ndarray, "height width"]:
    """Returns the pixels that can change when the objects with these numbers are removed from a scene."""
    directions = ray_directions(scene.camera, width, height)
    seen = [_silhouette(thing, scene.camera, directions) for thing in scene.things]
    before, after = cover(seen, width, height), cover(seen, width, height, without=removed)
    origin = np.array(scene.camera.position)
    floor = -origin[2] / directions[..., 2]
    distance = floor.copy()
    for number, silhouette in enumerate(seen, start=1):
        shown = after[silhouette.window] == number
        distance[silhouette.window][shown] = silhouette.distance[shown]
    edge = edges(before) | edges(after)
    behind = edge & (after != FLOOR)

    touched = np.isin(before, list(removed))
    points = origin + distance[..., None] * directions
    points_behind = origin + floor[behind][:, None] * directions[behind]
    touched_behind = np.zeros(len(points_behind), dtype=bool)
    margin = pixel_length(scene.camera, height)
    for number in removed:
        thing, silhouette = scene.things[number - 1], seen[number - 1]
        touched[silhouette.window] |= silhouette.hit & edge[silhouette.window]
        for lamp in scene.lamps:
            touched |= keeps_light_from(thing, lamp, points.reshape(-1, 3), margin).reshape(height, width)
            touched_behind |= keeps_light_from(thing, lamp, points_behind, margin)
    touched[behind] |= touched_behind
    return grown(touched)


def pixel_length(camera: Camera, height: int) -> float:
    """Returns the size of a pixel at the distance of the camera's target."""
    return 2 * math.tan(math.radians(FOV_DEGREES) / 2) / height * math.dist(camera.position, LOOK_AT)


def ray_directions(camera: Camera, width: int, height: int) -> Float[np.ndarray, "height width 3"]:
    """Returns the ray direction of each pixel's centre, scaled so that its component along the axis is 1."""
    forward = _unit(np.array(LOOK_AT) - np.array(camera.position))
    right = _unit(np.cross(forward, (0.0, 0.0, 1.0)))
    up = np.cross(right, forward)
    half_height = math.tan(math.radians(FOV_DEGREES) / 2)
    half_width = half_height * width / height
    across = ((np.arange(width) + 0.5) / width * 2 - 1) * half_width
    upwards = (1 - (np.arange(height) + 0.5) / height * 2) * half_height
    directions: Float[np.ndarray, "height width 3"] = (
        forward + across[None, :, None] * right + upwards[:, None, None] * up
    )
    return directions


def keeps_light_from(
    thing: Thing, lamp: Lamp, points: Float[np.ndarray, "num_points 3"], margin: float
) -> Bool[np.ndarray, " num_points"]:
    """Returns the points from which part of a lamp can be occluded by an object grown by a margin."""
    middle = np.array([thing.x, thing.y, thing.half_height])
    ways = np.array(lamp.position) - points
    starts = points - middle
    bound = math.sqrt(thing.radius**2 + thing.half_height**2) if thing.shape == "cylinder" else thing.radius
    if thing.shape == "cube":
        bound = thing.half_height * math.sqrt(3)
    found = _meets_ball(starts, ways, bound + margin, lamp.radius)
    if thing.shape != "sphere":
        near = np.flatnonzero(found)
        meets = _meets_cube if thing.shape == "cube" else _meets_cylinder
        found[near] = meets(thing, Segments(starts[near], ways[near], margin, lamp.radius))
    return found


def grown(mask: Bool[np.ndarray, "height width"]) -> Bool[np.ndarray, "height width"]:
    """Dilates a mask by one pixel on all sides, including corners."""
    wide = mask.copy()
    wide[:, 1:] |= mask[:, :-1]
    wide[:, :-1] |= mask[:, 1:]
    high = wide.copy()
    high[1:] |= wide[:-1]
    high[:-1] |= wide[1:]
    return high


def edges(numbers: UInt8[np.ndarray, "height width"]) -> Bool[np.ndarray, "height width"]:
    """Returns the pixels on either side of a boundary between objects."""
    edge = np.zeros(numbers.shape, dtype=bool)
    across, down = numbers[:, 1:] != numbers[:, :-1], numbers[1:] != numbers[:-1]
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    edge[1:] |= down
    edge[:-1] |= down
    return edge


def _silhouette(thing: Thing, camera: Camera, directions: Float[np.ndarray, "height width 3"]) -> Silhouette:
    window = _window(thing, camera, *directions.shape[:2])
    rays = directions[window]
    start = np.array(camera.position) - (thing.x, thing.y, thing.half_height)
    return Silhouette(window, _DISTANCES[thing.shape](thing, start, rays))


def _window(thing: Thing, camera: Camera, height: int, width: int) -> Window:
    """Returns a window of the image that contains all pixels where an object can be visible."""
    forward = _unit(np.array(LOOK_AT) - np.array(camera.position))
    right = _unit(np.cross(forward, (0.0, 0.0, 1.0)))
    up = np.cross(right, forward)
    x, y = (np.array([middle - thing.radius, middle + thing.radius]) for middle in (thing.x, thing.y))
    corners = np.stack(np.meshgrid(x, y, [0, 2 * thing.half_height]), axis=-1).reshape(8, 3) - camera.position
    depth = (corners * forward).sum(axis=-1)
    half_height = math.tan(math.radians(FOV_DEGREES) / 2)
    columns = ((corners * right).sum(axis=-1) / depth / (half_height * width / height) + 1) / 2 * width
    rows = (1 - (corners * up).sum(axis=-1) / depth / half_height) / 2 * height

    def part(places: Float[np.ndarray, " 8"], size: int) -> slice:
        first, last = math.floor(places.min()) - 1, math.ceil(places.max()) + 1
        return slice(min(max(first, 0), size), min(max(last, 0), size))

    return part(rows, height), part(columns, width)


def _ball_distance(
    thing: Thing, start: Float[np.ndarray, " 3"], rays: Float[np.ndarray, "rows columns 3"]
) -> Float[np.ndarray, "rows columns"]:
    square = (rays * rays).sum(axis=-1)
    half = (rays * start).sum(axis=-1)
    return _nearer_root(square, half, (start * start).sum() - thing.radius**2)


def _cube_distance(
    thing: Thing, start: Float[np.ndarray, " 3"], rays: Float[np.ndarray, "rows columns 3"]
) -> Float[np.ndarray, "rows columns"]:
    start, rays = _turned(start, thing.rotation), _turned(rays, thing.rotation)
    with np.errstate(divide="ignore"):
        first, second = (-thing.half_height - start) / rays, (thing.half_height - start) / rays
    enters = np.minimum(first, second).max(axis=-1)
    leaves = np.maximum(first, second).min(axis=-1)
    return np.where(enters < leaves, enters, np.inf)


def _cylinder_distance(
    thing: Thing, start: Float[np.ndarray, " 3"], rays: Float[np.ndarray, "rows columns 3"]
) -> Float[np.ndarray, "rows columns"]:
    square = (rays[..., :2] ** 2).sum(axis=-1)
    half = (rays[..., :2] * start[:2]).sum(axis=-1)
    side = _nearer_root(square, half, (start[:2] ** 2).sum() - thing.radius**2)
    lid = (thing.half_height - start[2]) / rays[..., 2]
    at_side = np.abs(start[2] + np.where(np.isfinite(side), side, 0.0) * rays[..., 2]) <= thing.half_height
    on_lid = ((start[:2] + lid[..., None] * rays[..., :2]) ** 2).sum(axis=-1) <= thing.radius**2
    return np.minimum(np.where(at_side, side, np.inf), np.where(on_lid, lid, np.inf))


_DISTANCES = {"sphere": _ball_distance, "cube": _cube_distance, "cylinder": _cylinder_distance}


def _nearer_root(
    square: Float[np.ndarray, "rows columns"], half: Float[np.ndarray, "rows columns"], constant: float
) -> Float[np.ndarray, "rows columns"]:
    """Returns the smaller root t of `square t^2 + 2 half t + constant = 0`, or infinity."""
    inside = half * half - square * constant
    root: Float[np.ndarray, "rows columns"] = np.where(
        inside >= 0, (-half - np.sqrt(np.maximum(inside, 0))) / square, np.inf
    )
    return root


def _meets_ball(
    starts: Float[np.ndarray, "num_points 3"], ways: Float[np.ndarray, "num_points 3"], radius: float, spread: float
) -> Bool[np.ndarray, " num_points"]:
    """Returns whether |start + t way| <= radius + t spread for some t in [0, 1]."""
    square = (ways * ways).sum(axis=-1) - spread**2
    half = (starts * ways).sum(axis=-1) - radius * spread
    constant = (starts * starts).sum(axis=-1) - radius**2
    assert square.min(initial=1.0) > 0, "a point inside a lamp"
    lowest = np.clip(-half / square, 0.0, 1.0)
    meets: Bool[np.ndarray, " num_points"] = (square * lowest + 2 * half) * lowest + constant <= 0
    return meets


def _meets_cube(thing: Thing, segments: Segments) -> Bool[np.ndarray, " num_points"]:
    """Returns whether a segment meets, at some t in [0, 1], the cube whose faces move out by t spread."""
    seen = segments._replace(
        starts=_turned(segments.starts, thing.rotation), ways=_turned(segments.ways, thing.rotation)
    )
    first, last = _between_faces(seen, thing.half_height, axes=range(3))
    return first <= last


def _meets_cylinder(thing: Thing, segments: Segments) -> Bool[np.ndarray, " num_points"]:
    """Returns whether a segment can meet the cylinder grown by t spread.

    Its caps move out by t spread; its side by the spread at the t where the segment leaves that height.
    """
    starts, ways, margin, spread = segments
    first, last = _between_faces(segments, thing.half_height, axes=[2])
    meets: Bool[np.ndarray, " num_points"] = first <= last
    radius = thing.radius + margin + spread * np.where(meets, last, 0.0)
    square = (ways[:, :2] ** 2).sum(axis=-1)
    across = (starts[:, :2] * ways[:, :2]).sum(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        nearest = np.where(square > 0, -across / square, 0.0)
    nearest = np.clip(nearest, first, np.maximum(first, last))
    squares = ((starts[:, :2] + nearest[:, None] * ways[:, :2]) ** 2).sum(axis=-1)
    meets &= squares <= radius**2
    return meets


def _between_faces(
    segments: Segments, half_height: float, *, axes: Iterable[int]
) -> tuple[Float[np.ndarray, " num_points"], Float[np.ndarray, " num_points"]]:
    """Returns the first and the last t in [0, 1] at which segments are between both faces of each axis."""
    starts, ways, margin, spread = segments
    first, last = np.zeros(len(starts)), np.ones(len(starts))
    half = half_height + margin
    for axis in axes:
        for start, way in ((starts[:, axis], ways[:, axis]), (-starts[:, axis], -ways[:, axis])):
            first, last = _narrowed(first, last, start - half, way - spread)
    return first, last


def _narrowed(
    first: Float[np.ndarray, " num"],
    last: Float[np.ndarray, " num"],
    start: Float[np.ndarray, " num"],
    way: Float[np.ndarray, " num"],
) -> tuple[Float[np.ndarray, " num"], Float[np.ndarray, " num"]]:
    """Restricts the interval of t to start + t way <= 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        zero = -start / way
    first = np.where(way < 0, np.maximum(first, zero), first)
    last = np.where(way > 0, np.minimum(last, zero), last)
    never = (way == 0) & (start > 0)
    return np.where(never, np.inf, first), last


def _turned(vectors: Float[np.ndarray, "... 3"], degrees: float) -> Float[np.ndarray, "... 3"]:
    """Rotates vectors into the frame of an object that is rotated around the vertical axis."""
    sine, cosine = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    x, y, z = vectors[..., 0], vectors[..., 1], vectors[..., 2]
    turned: Float[np.ndarray, "... 3"] = np.stack([cosine * x + sine * y, cosine * y - sine * x, z], axis=-1)
    return turned


def _unit(vector: Float[np.ndarray, " 3"]) -> Float[np.ndarray, " 3"]:
    unit: Float[np.ndarray, " 3"] = vector / math.sqrt((vector * vector).sum())
    return unit
