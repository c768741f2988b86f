"""Renders are reproducible, have the named colours, and change only where the scene does."""

import hashlib
import random
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from data_builders.counting.check import looks
from data_builders.counting.draw import describe_scene, open_mitsuba, render_change, render_scene, to_linear, to_srgb
from data_builders.counting.geometry import id_mask, touched_region
from data_builders.counting.layout import Visibility, draw_scene, is_countable
from data_builders.counting.scenes import COLOURS, MATERIALS, SHAPES, Scene, Thing, scene_from_json
from tracking.command import REPOSITORY_ROOT

WIDTH, HEIGHT = 120, 80


def drawn_scene(seed: int, num_things: int) -> Scene:
    return draw_scene(random.Random(seed), num_things, WIDTH, HEIGHT)


@pytest.mark.slow
def test_another_process_renders_the_same_bytes() -> None:
    scene = drawn_scene(3, 6)
    render_scene(drawn_scene(4, 2), WIDTH, HEIGHT, 4)
    here = hashlib.sha256(render_scene(scene, WIDTH, HEIGHT, 4).tobytes()).hexdigest()
    code = (
        "import hashlib, json, sys\n"
        "from data_builders.counting.draw import render_scene\n"
        "from data_builders.counting.scenes import scene_from_json\n"
        f"scene = scene_from_json({scene.to_json()!r})\n"
        f"print(hashlib.sha256(render_scene(scene, {WIDTH}, {HEIGHT}, 4).tobytes()).hexdigest())\n"
    )
    told = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY_ROOT, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == here


def test_a_change_rendered_in_part_has_the_bytes_of_the_whole_picture() -> None:
    for seed in range(6):
        scene = drawn_scene(seed, 5)
        emptier = scene.without([2])
        region = touched_region(scene, [2], WIDTH, HEIGHT)
        changed = render_change(emptier, render_scene(scene, WIDTH, HEIGHT, 4), region, 4)
        assert changed.tobytes() == render_scene(emptier, WIDTH, HEIGHT, 4).tobytes()


def test_a_region_that_misses_a_shadow_shows_in_the_tiles_around_it() -> None:
    scene = drawn_scene(3, 4)
    picture = render_scene(scene, WIDTH, HEIGHT, 4)
    footprint = id_mask(scene, WIDTH, HEIGHT) == 1
    changed = render_change(scene.without([1]), picture, footprint, 4)
    assert ((np.asarray(changed) != np.asarray(picture)).any(axis=-1) & ~footprint).any()


@pytest.mark.parametrize(("column", "row"), [(327, 102), (282, 135)])
def test_a_ray_that_meets_two_faces_at_once_does_not_see_what_else_stands_in_the_scene(column: int, row: int) -> None:
    """In these pixels such rays went to one face or the other with cubes elsewhere, when all faces shared one tree."""
    mi = open_mitsuba()
    scene = draw_scene(random.Random(2), 8, 480, 320)
    scene = replace(scene, things=tuple(replace(thing, shape="cube") for thing in scene.things))
    assert not touched_region(scene, [1, 2, 3, 4], 480, 320)[row, column]
    crop = {"crop_offset_x": column, "crop_offset_y": row, "crop_width": 1, "crop_height": 1}
    seen = []
    for each in (scene, scene.without([1, 2, 3, 4])):
        described = describe_scene(each, 480, 320, 4900)
        described["sensor"]["film"] |= crop
        seen.append(np.asarray(mi.render(mi.load_dict(described, parallel=False, optimize=False), seed=0)))
    assert np.array_equal(*seen)


@pytest.mark.parametrize("colour", COLOURS)
def test_things_of_a_colour_look_it_in_every_shape_and_material(colour: str) -> None:
    scene = drawn_scene(0, 1)
    for shape in SHAPES:
        for material in MATERIALS:
            thing = Thing(shape=shape, size="large", material=material, colour=colour, x=0.5, y=0.5, rotation=30.0)
            alone = replace(scene, things=(thing,))
            picture = np.asarray(render_scene(alone, 96, 64, 4))
            mean = picture[id_mask(alone, 96, 64) == 1].mean(axis=0)
            assert [name for name in COLOURS if looks(name, mean)] == [colour], (shape, material, mean)
            assert mean.mean() > 30, "bright enough to be seen"


def test_light_becomes_the_nearest_srgb_byte() -> None:
    light = np.linspace(-0.1, 1.5, 3 * 4001, dtype=np.float32).reshape(1, -1, 3)
    clipped = np.clip(light.astype(np.float64), 0, 1)
    exact = 255 * np.where(clipped <= 0.0031308, 12.92 * clipped, 1.055 * clipped ** (1 / 2.4) - 0.055)
    assert np.abs(to_srgb(light) - exact).max() <= 0.5 + 1e-4
    for rgb in COLOURS.values():
        assert tuple(to_srgb(np.array([[to_linear(rgb)]], dtype=np.float32))[0, 0]) == rgb


def test_drawn_scenes_show_every_thing_whole() -> None:
    for seed in range(5):
        ids = id_mask(drawn_scene(seed, 10), WIDTH, HEIGHT)
        border = np.concatenate([ids[0], ids[-1], ids[:, 0], ids[:, -1]])
        assert not border.any()
        counts = np.bincount(ids.ravel(), minlength=11)
        assert counts[1:].min() >= Visibility().min_pixels(WIDTH, HEIGHT)


def test_a_hidden_thing_makes_a_scene_uncountable() -> None:
    scene = drawn_scene(5, 1)
    camera = scene.camera
    front = replace(scene.things[0], shape="cube", size="large", x=1.5, y=-1.3)
    back = replace(front, shape="sphere", size="small", x=front.x - 0.15 * camera.x, y=front.y - 0.15 * camera.y)
    assert is_countable(replace(scene, things=(back,)), WIDTH, HEIGHT, Visibility())
    assert not is_countable(replace(scene, things=(front, back)), WIDTH, HEIGHT, Visibility())


def test_scenes_come_back_from_json_and_others_are_refused() -> None:
    scene = drawn_scene(6, 3)
    assert scene_from_json(scene.to_json()) == scene
    for broken in ({}, None, {**scene.to_json(), "camera": {"x": 1.0, "y": 2.0, "z": "3"}}):
        with pytest.raises(ValueError, match="not a scene"):
            scene_from_json(broken)
    with pytest.raises(ValueError, match="shape 'cone'"):
        scene_from_json({**scene.to_json(), "things": [{**scene.to_json()["things"][0], "shape": "cone"}]})
