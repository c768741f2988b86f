"""How are recognition pairs built without a download? Renders scenes and annotates them in COCO's format.

Each scene shows two of the three categories sphere, cube and cylinder, with an instance of each that is large enough to
be asked about; outlines, boxes and areas refer to the visible part of an object. A scene depends only on its number,
and most numbers are chosen so that `coco.split_of` assigns them to the test split. The result is shipped in
`mini_coco/`; it can be rebuilt with

    python -m data_builders.mini_coco_build --output-dir outputs/mini_coco
"""

import json
import random
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool
from PIL import Image

from data_builders.counting.draw import render_scene
from data_builders.counting.geometry import id_mask
from data_builders.counting.layout import draw_scene
from data_builders.counting.scenes import SHAPES, Scene
from data_builders.pairs.pictures import box_around
from data_builders.recognition.coco import ANNOTATIONS_FILE, IMAGES_DIR, MIN_POLYGON_NUMBERS, Polygon, split_of
from tracking.command import parse_arguments, run_command
from tracking.product import partial_directory
from tracking.progress import progress
from tracking.run import OVERWRITE_ARGUMENT, open_run

NUM_PHOTOGRAPHS = {"train": 10, "validation": 10, "test": 56}
"""Number of scenes per split; each can be used for two pairs."""
WIDTH, HEIGHT = 240, 160
NUM_SAMPLES = 144
JPEG_QUALITY = 88
NUM_THINGS = (2, 3, 4)
MIN_AREA_FRAC = 0.012
"""Minimum share of the image for one instance of each category: slightly more than `PhotographRules` requires."""
CATEGORIES = {name: number for number, name in enumerate(sorted(SHAPES), start=1)}
DATA_DIR = "data"


@dataclass(frozen=True, kw_only=True)
class MiniCocoArguments:
    """The location of the scenes."""

    output_dir: str = field(
        metadata={"help": "output directory; annotations and images are written to its subfolder data/"}
    )
    overwrite: bool = field(default=False, metadata=OVERWRITE_ARGUMENT)


def image_ids() -> list[int]:
    """Returns the numbers of the scenes: the first ones of each split."""
    missing = dict(NUM_PHOTOGRAPHS)
    found: list[int] = []
    numbers = count(1)
    while any(missing.values()):
        number = next(numbers)
        if missing[split_of(number)]:
            missing[split_of(number)] -= 1
            found.append(number)
    return found


def file_name(image_id: int) -> str:
    """Returns an image's file name in COCO's format."""
    return f"{image_id:012d}.jpg"


def draw_photograph(image_id: int) -> tuple[Scene, list[dict[str, Any]]]:
    """Draws the scene of a number, and returns the annotations of its objects, without ids."""
    rng = random.Random(f"mini_coco/{image_id}")
    absent = SHAPES[image_id % len(SHAPES)]
    while True:
        scene = draw_scene(rng, rng.choice(NUM_THINGS), WIDTH, HEIGHT)
        if {thing.shape for thing in scene.things} != set(SHAPES) - {absent}:
            continue
        annotations = annotate(scene, image_id)
        largest = {
            number: max(each["area"] for each in annotations if each["category_id"] == number)
            for number in {each["category_id"] for each in annotations}
        }
        is_outlined = all(each["segmentation"] for each in annotations)
        if is_outlined and min(largest.values()) >= MIN_AREA_FRAC * WIDTH * HEIGHT:
            return scene, annotations


def annotate(scene: Scene, image_id: int) -> list[dict[str, Any]]:
    """Returns the COCO annotation of each object in a scene."""
    numbers = id_mask(scene, WIDTH, HEIGHT)
    annotations = []
    for number, thing in enumerate(scene.things, start=1):
        shown = numbers == number
        box = box_around(shown)
        assert box is not None, f"thing {number} of scene {image_id} is hidden"
        left, top, right, bottom = map(float, box)
        annotations.append(
            {
                "image_id": image_id,
                "category_id": CATEGORIES[thing.shape],
                "segmentation": outline(shown),
                "area": float(shown.sum()),
                "bbox": [left, top, right - left, bottom - top],
                "iscrowd": 0,
            }
        )
    return annotations


def outline(shown: Bool[np.ndarray, "height width"]) -> list[Polygon]:
    """Returns polygons around a mask, through the centres of its outermost pixels; none if they would not reproduce it.

    This is the case if the mask has holes, or parts that are too narrow for a polygon.
    """
    import cv2

    contours, parents = cv2.findContours(shown.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    polygons = [(contour.reshape(-1) + 0.5).tolist() for contour in contours]
    has_holes = bool((parents.reshape(-1, 4)[:, 3] >= 0).any())
    if has_holes or any(len(polygon) < MIN_POLYGON_NUMBERS for polygon in polygons):
        return []
    return polygons


def describe(photographs: dict[int, list[dict[str, Any]]]) -> dict[str, Any]:
    """Returns the contents of the annotation file."""
    annotations = [each for of_one in photographs.values() for each in of_one]
    return {
        "info": {
            "description": "Rendered spheres, cubes and cylinders, made by data_builders/mini_coco_build.py",
            "version": "1.0",
            "year": 2026,
            "contributor": "the Frankenstein suite",
        },
        "licenses": [{"id": 1, "name": "MIT License", "url": "https://opensource.org/license/mit"}],
        "images": [
            {"id": image_id, "file_name": file_name(image_id), "width": WIDTH, "height": HEIGHT, "license": 1}
            for image_id in photographs
        ],
        "annotations": [{"id": number, **each} for number, each in enumerate(annotations, start=1)],
        "categories": [{"id": number, "name": name, "supercategory": "solid"} for name, number in CATEGORIES.items()],
    }


def write_photograph(scene: Scene, path: Path) -> None:
    """Renders a scene into a JPEG file."""
    picture: Image.Image = render_scene(scene, WIDTH, HEIGHT, NUM_SAMPLES)
    picture.save(path, format="JPEG", quality=JPEG_QUALITY)


def build_mini_coco(directory: Path) -> None:
    """Writes annotations and images into a folder."""
    (directory / IMAGES_DIR).mkdir()
    photographs = {}
    for image_id in progress(image_ids(), label="mini-COCO", unit="scene"):
        scene, photographs[image_id] = draw_photograph(image_id)
        write_photograph(scene, directory / IMAGES_DIR / file_name(image_id))
    (directory / ANNOTATIONS_FILE).write_text(to_text(describe(photographs)), encoding="utf-8")


def to_text(described: dict[str, Any]) -> str:
    """Returns JSON with one line per entry."""
    parts = []
    for name, value in described.items():
        entries = value if isinstance(value, list) else None
        text = json.dumps(value) if entries is None else "[\n" + ",\n".join(map(json.dumps, entries)) + "\n]"
        parts.append(f"{json.dumps(name)}: {text}")
    return "{" + ",\n".join(parts) + "}\n"


def main(argv: list[str] | None = None) -> None:
    (arguments,) = parse_arguments(argv, MiniCocoArguments, description=__doc__)
    output_dir = Path(arguments.output_dir)
    settings = {"num_photographs": NUM_PHOTOGRAPHS}
    with open_run(
        output_dir, command="data_builders.mini_coco_build", settings=settings, overwrite=arguments.overwrite
    ) as run:
        if not run.finished and not (output_dir / DATA_DIR).exists():
            with partial_directory(output_dir / DATA_DIR) as partial:
                build_mini_coco(partial)
    print(f"data: {output_dir / DATA_DIR}")


if __name__ == "__main__":
    run_command(main)
