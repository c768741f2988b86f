"""Masks against Mitsuba's own, and the touched region against rays drawn at random and against rendered pictures."""

import math
import random
from dataclasses import replace

import numpy as np
import pytest

from data_builders.counting.draw import describe_scene, open_mitsuba, render_scene
from data_builders.counting.geometry import grown, id_mask, keeps_light_from, ray_directions, touched_region
from data_builders.counting.layout import LAMPS, draw_scene
from data_builders.counting.scenes import SHAPES, Lamp, Scene, Thing

WIDTH, HEIGHT = 120, 80
LAMP = Lamp(x=LAMPS[0][0], y=LAMPS[0][1], z=LAMPS[0][2], radius=LAMPS[0][3], radiance=LAMPS[0][4])


def drawn_scene(seed: int, num_things: int) -> Scene:
    return draw_scene(random.Random(seed), num_things, WIDTH, HEIGHT)


def shape_numbers(scene: Scene) -> np.ndarray:
    """Returns which thing Mitsuba sees at a random place in each pixel."""
    mi = open_mitsuba()
    described = describe_scene(scene, WIDTH, HEIGHT, 1)
    described["integrator"] = {"type": "aov", "aovs": "shape:shape_index"}
    loaded = mi.load_dict(described, parallel=False, optimize=False)
    names = [shape.id() for shape in loaded.shapes()]
    numbers = [int(name.removeprefix("thing").split("_")[0]) if name.startswith("thing") else 0 for name in names]
    channels = np.asarray(mi.render(loaded))
    return np.array(numbers)[channels[..., -1].round().astype(int) - 1]


def inside(thing: Thing, points: np.ndarray) -> np.ndarray:
    """Tells which points lie in a thing."""
    x, y, z = (points - (thing.x, thing.y, thing.half_height)).T
    angle = math.radians(thing.rotation)
    u, v = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    half, radius = thing.half_height, thing.radius
    return {
        "sphere": x**2 + y**2 + z**2 <= radius**2,
        "cube": np.maximum(np.maximum(np.abs(u), np.abs(v)), np.abs(z)) <= half,
        "cylinder": (x**2 + y**2 <= radius**2) & (np.abs(z) <= half),
    }[thing.shape]


@pytest.mark.parametrize("seed", range(3))
def test_masks_agree_with_mitsuba_apart_from_edges(seed: int) -> None:
    scene = drawn_scene(seed, 10)
    ours, theirs = id_mask(scene, WIDTH, HEIGHT), shape_numbers(scene)
    assert set(np.unique(ours)) == set(range(11))
    edges = np.zeros(ours.shape, dtype=bool)
    for number in range(11):
        edges |= grown(ours == number) & (ours != number)
    assert not ((ours != theirs) & ~grown(edges)).any()
    assert edges.mean() < 0.2


def test_no_lamp_is_in_sight_in_the_widest_view() -> None:
    for seed in range(200):
        scene = drawn_scene(seed, 1)
        rays = ray_directions(scene.camera, 40, 20).reshape(-1, 3)
        rays /= np.linalg.norm(rays, axis=1, keepdims=True)
        for lamp in scene.lamps:
            to = np.subtract(lamp.position, scene.camera.position)
            along = np.maximum(rays @ to, 0)
            assert np.linalg.norm(to - along[:, None] * rays, axis=1).min() > 1.2 * lamp.radius


@pytest.mark.parametrize("shape", SHAPES)
def test_every_point_from_which_a_ray_to_the_lamp_is_blocked_is_found(shape: str) -> None:
    rng = np.random.default_rng(0)
    thing = Thing(shape=shape, size="large", material="rubber", colour="red", x=0.4, y=-0.3, rotation=25.0)
    points = np.column_stack(
        [rng.uniform(-3, 3, 3000), rng.uniform(-3, 3, 3000), np.where(rng.random(3000) < 0.7, 0, 0.6)]
    )
    points = points[~inside(thing, points)]
    found = keeps_light_from(thing, LAMP, points, 0.0)
    blocked = np.zeros(len(points), dtype=bool)
    for _ in range(60):
        to = rng.normal(size=(len(points), 3))
        to = LAMP.position + LAMP.radius * to / np.linalg.norm(to, axis=1, keepdims=True)
        for along in np.linspace(0.003, 0.3, 60):
            blocked |= inside(thing, points + along * (to - points))
    assert blocked.sum() > 50
    assert found[blocked].all()
    assert found.sum() < 1.25 * blocked.sum()


@pytest.mark.slow
def test_pictures_rendered_whole_differ_inside_the_touched_region_alone() -> None:
    touched_fracs, differing_fracs = [], []
    for seed in range(12):
        rng = random.Random(seed)
        scene = drawn_scene(seed, rng.randint(2, 10))
        removed = rng.sample(range(1, len(scene.things) + 1), rng.randint(1, min(3, len(scene.things) - 1)))
        before, after = (np.asarray(render_scene(each, WIDTH, HEIGHT, 4)) for each in (scene, scene.without(removed)))
        differs = (before != after).any(axis=-1)
        region = touched_region(scene, removed, WIDTH, HEIGHT)
        assert not (differs & ~region).any()
        footprint = np.isin(id_mask(scene, WIDTH, HEIGHT), removed)
        assert differs[footprint].mean() > 0.9
        assert (differs & ~grown(footprint)).any(), "the shadow shows"
        touched_fracs.append(region.mean())
        differing_fracs.append(differs.mean())
    assert np.mean(touched_fracs) < 2.5 * np.mean(differing_fracs), "tight, for so few rays and so large pixels"


@pytest.mark.parametrize("step", range(5))
def test_region_of_a_thing_behind_another_covers_what_shows_beside_it(step: int) -> None:
    scene = drawn_scene(1, 2)
    front = replace(scene.things[0], shape="cylinder", size="large", x=1.0, y=-1.0)
    behind = replace(scene.things[1], shape="cube", size="large", x=-0.4 + 0.1 * step, y=0.5 + 0.05 * step)
    scene = replace(scene, things=(front, behind))
    before, after = (np.asarray(render_scene(each, WIDTH, HEIGHT, 16)) for each in (scene, scene.without([2])))
    differs = (before != after).any(axis=-1)
    assert differs.any()
    assert not (differs & ~touched_region(scene, [2], WIDTH, HEIGHT)).any()
