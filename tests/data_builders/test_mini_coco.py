"""The shipped scenes are what their command builds, and what COCO's readers expect."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_builders.counting.geometry import id_mask
from data_builders.mini_coco_build import (
    CATEGORIES,
    HEIGHT,
    MIN_AREA_FRAC,
    NUM_PHOTOGRAPHS,
    WIDTH,
    describe,
    draw_photograph,
    file_name,
    image_ids,
    outline,
    to_text,
    write_photograph,
)
from data_builders.pairs.pictures import read_rgb
from data_builders.recognition.coco import ANNOTATIONS_FILE, IMAGES_DIR, MINI_COCO, read_annotations, split_of
from data_builders.recognition.draw import PAINTED, draw_mask
from data_builders.recognition.photographs import PhotographRules, usable_photographs

MAX_BYTES = 600_000


@pytest.fixture(scope="module")
def shipped() -> dict[str, Any]:
    read: dict[str, Any] = json.loads((MINI_COCO / ANNOTATIONS_FILE).read_text(encoding="utf-8"))
    return read


@pytest.mark.slow
def test_the_shipped_annotations_are_what_the_command_writes() -> None:
    photographs = {image_id: draw_photograph(image_id)[1] for image_id in image_ids()}
    assert to_text(describe(photographs)) == (MINI_COCO / ANNOTATIONS_FILE).read_text(encoding="utf-8")
    assert {path.name for path in (MINI_COCO / IMAGES_DIR).iterdir()} == set(map(file_name, photographs))


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, -1])
def test_the_shipped_images_are_what_the_command_renders(number: int, tmp_path: Path) -> None:
    image_id = image_ids()[number]
    path = tmp_path / file_name(image_id)
    write_photograph(draw_photograph(image_id)[0], path)
    drawn, shipped = (read_rgb(place).astype(int) for place in (path, MINI_COCO / IMAGES_DIR / path.name))
    difference = np.abs(drawn - shipped)  # Embree rounds otherwise on other processors: here and there by a level
    assert difference.max() <= 8, path.name
    assert (difference > 0).mean() < 0.001, path.name


def test_it_is_small_enough_to_be_shipped() -> None:
    assert sum(path.stat().st_size for path in MINI_COCO.rglob("*") if path.is_file()) < MAX_BYTES


def test_entries_have_cocos_fields_and_agree(shipped: dict[str, Any]) -> None:
    assert set(shipped) == {"info", "licenses", "images", "annotations", "categories"}
    assert {each["name"] for each in shipped["categories"]} == {"sphere", "cube", "cylinder"}
    sizes = {each["id"]: (each["width"], each["height"]) for each in shipped["images"]}
    assert len(sizes) == sum(NUM_PHOTOGRAPHS.values())
    numbers = [each["id"] for each in shipped["annotations"]]
    assert len(set(numbers)) == len(numbers)
    for each in shipped["annotations"]:
        width, height = sizes[each["image_id"]]
        left, top, box_width, box_height = each["bbox"]
        assert 0 <= left < left + box_width <= width
        assert 0 <= top < top + box_height <= height
        assert each["iscrowd"] == 0
        mask = draw_mask(each["segmentation"], (width, height), (width, height), 0) == PAINTED
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        assert (columns[0], rows[0]) == (left, top)
        assert (columns[-1] + 1, rows[-1] + 1) == (left + box_width, top + box_height)
        assert mask.sum() == each["area"]
    for each in shipped["images"]:
        with Image.open(MINI_COCO / IMAGES_DIR / each["file_name"]) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (each["width"], each["height"]))


def test_outlines_give_back_the_mask_of_each_thing() -> None:
    for image_id in image_ids()[:6]:
        scene, annotations = draw_photograph(image_id)
        numbers = id_mask(scene, WIDTH, HEIGHT)
        for number, each in enumerate(annotations, start=1):
            mask = draw_mask(each["segmentation"], (WIDTH, HEIGHT), (WIDTH, HEIGHT), 0) == PAINTED
            assert np.array_equal(mask, numbers == number)
            assert each["category_id"] == CATEGORIES[scene.things[number - 1].shape]


def test_what_polygons_cannot_say_has_no_outline() -> None:
    mask = np.zeros((20, 20), dtype=bool)
    mask[2:12, 2:12] = True
    assert len(outline(mask)) == 1
    mask[15, 15] = True  # a part of one pixel
    assert outline(mask) == []
    mask[15, 15] = False
    mask[6, 6] = False  # a hole
    assert outline(mask) == []


def test_the_test_split_gives_a_hundred_pairs_and_each_category_is_missing_somewhere(shipped: dict[str, Any]) -> None:
    splits = Counter(split_of(each["id"]) for each in shipped["images"])
    assert splits == NUM_PHOTOGRAPHS
    read = read_annotations(MINI_COCO / ANNOTATIONS_FILE, "test")
    usable = usable_photographs(read, PhotographRules(), with_outlines=True)
    assert sum(map(len, usable.values())) >= 100
    for image_ids_with in usable.values():
        assert 0.5 * len(read.photographs) < len(image_ids_with) < 0.8 * len(read.photographs)
    assert PhotographRules().min_area_frac <= MIN_AREA_FRAC
