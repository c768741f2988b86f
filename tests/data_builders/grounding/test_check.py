"""The checks of grounding pairs: what the builder makes passes, and each planted defect is named for what it is."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_builders.grounding.build import GROUNDING, GroundingArguments
from data_builders.grounding.check import DEFECTS, check_grounding
from data_builders.grounding.draw import COLOURS, draw_cover
from data_builders.pairs.defects import DEFECTS as PREFLIGHT_DEFECTS
from data_builders.pairs.files import read_pairs
from data_builders.pairs.pair import Pair, box_text
from data_builders.pairs.pictures import PairPictures
from data_builders.pairs.sets import Drawing, PairSetArguments, build_pair_set
from data_builders.pairs.vision_grid import open_vision_grid

NUM_PAIRS = 12


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("built")
    arguments = GroundingArguments(
        image_size="240", min_object_pixels=24, max_object_pixels=40, num_distractors=2, backgrounds=["ivory", "white"]
    )
    grid = open_vision_grid("qwen2_5_vl")
    drawing = Drawing(task="grounding", seed=5, split="test", grid=grid, work_dir=directory)
    shared = PairSetArguments(num_pairs=NUM_PAIRS, num_workers=1)
    build_pair_set(directory, GROUNDING, arguments, drawing, shared)
    return directory


def kinds_in(directory: Path, pair: Pair) -> set[str]:
    return {kind for kind, _ in check_grounding(PairPictures(directory, pair))}


def test_what_the_builder_makes_has_no_defect(built: Path) -> None:
    for pair in read_pairs(built):
        assert list(check_grounding(PairPictures(built, pair))) == []


def meta_of(pair: Pair) -> dict[str, Any]:
    assert pair.meta is not None
    return pair.meta


def with_meta(pair: Pair, **changes: Any) -> Pair:
    return replace(pair, meta={**meta_of(pair), **changes})


def repaint(path: Path, change: Callable[[np.ndarray], None]) -> None:
    picture = np.array(Image.open(path))
    change(picture)
    Image.fromarray(picture).save(path)


def boxes_of(pair: Pair) -> tuple[tuple[int, ...], tuple[int, ...]]:
    assert pair.target_box is not None and pair.source_box is not None
    return tuple(map(int, pair.target_box)), tuple(map(int, pair.source_box))


def empty_corner(pair: Pair) -> tuple[int, int]:
    """The frame's corner, where no object may be: row and column."""
    return 2, 2


def one_pixel_of_the_page(directory: Path, pair: Pair) -> Pair:
    def change(picture: np.ndarray) -> None:
        picture[empty_corner(pair)] ^= 1

    repaint(directory / pair.source_image, change)
    return pair


def one_pixel_of_the_page_in_both(directory: Path, pair: Pair) -> Pair:
    def change(picture: np.ndarray) -> None:
        picture[empty_corner(pair)] ^= 1

    repaint(directory / pair.target_image, change)
    repaint(directory / pair.source_image, change)
    return pair


def one_pixel_of_the_object(directory: Path, pair: Pair) -> Pair:
    left, top, right, bottom = boxes_of(pair)[1]

    def change(picture: np.ndarray) -> None:
        picture[(top + bottom) // 2, (left + right) // 2] ^= 1

    repaint(directory / pair.source_image, change)
    return pair


def swapped_pictures(directory: Path, pair: Pair) -> Pair:
    target, source = directory / pair.target_image, directory / pair.source_image
    kept = target.read_bytes()
    target.write_bytes(source.read_bytes())
    source.write_bytes(kept)
    return pair


def a_shifted_box(directory: Path, pair: Pair) -> Pair:
    left, top, right, bottom = boxes_of(pair)[0]
    box = (left + 1, top, right + 1, bottom)
    return replace(pair, target_box=box, target_answer=box_text(box))


def a_wider_box(directory: Path, pair: Pair) -> Pair:
    left, top, right, bottom = boxes_of(pair)[1]
    box = (left, top, right + 1, bottom)
    return replace(pair, source_box=box, source_answer=box_text(box))


def an_answer_of_another_place(directory: Path, pair: Pair) -> Pair:
    return replace(pair, target_answer=pair.source_answer)


def redraw_object(directory: Path, pair: Pair, *names: str, **changes: Any) -> Pair:
    """Paints another object over the one in the named pictures, and moves their boxes to it."""
    meta = {**meta_of(pair), **changes}
    cover = draw_cover(meta["shape"], meta["size_pixels"], meta["rotation_degrees"])
    boxes = dict(zip(("target", "source"), boxes_of(pair), strict=True))
    for name in names:
        path = directory / getattr(pair, f"{name}_image")
        picture = Image.open(path)
        left, top = boxes[name][:2]
        picture.paste(tuple(meta["background_rgb"]), boxes[name])
        picture.paste(COLOURS[meta["colour"]], (left, top), cover)
        picture.save(path)
        box = (left, top, left + cover.width, top + cover.height)
        pair = replace(pair, **{f"{name}_box": box, f"{name}_answer": box_text(box)})
    return pair


def another_size(directory: Path, pair: Pair) -> Pair:
    return redraw_object(directory, pair, "source", size_pixels=meta_of(pair)["size_pixels"] - 3)


def another_rotation(directory: Path, pair: Pair) -> Pair:
    return redraw_object(directory, pair, "source", rotation_degrees=meta_of(pair)["rotation_degrees"] + 9)


def another_size_in_both(directory: Path, pair: Pair) -> Pair:
    return redraw_object(directory, pair, "target", "source", size_pixels=meta_of(pair)["size_pixels"] - 3)


def another_colour_in_both(directory: Path, pair: Pair) -> Pair:
    colour = next(name for name in COLOURS if name != meta_of(pair)["colour"])
    return redraw_object(directory, pair, "target", "source", colour=colour)


def another_name(directory: Path, pair: Pair) -> Pair:
    return replace(pair, prompt=pair.prompt.replace(meta_of(pair)["colour"], "violet"))


def a_moved_distractor(directory: Path, pair: Pair) -> Pair:
    left, top, right, bottom = meta_of(pair)["distractors"][0]["box"]

    def change(picture: np.ndarray) -> None:
        moved = picture[top:bottom, left:right].copy()
        picture[top:bottom, left:right] = meta_of(pair)["background_rgb"]
        picture[top + 1 : bottom + 1, left:right] = moved

    repaint(directory / pair.source_image, change)
    return pair


def a_namesake(directory: Path, pair: Pair) -> Pair:
    meta = meta_of(pair)
    first, *others = meta["distractors"]
    name = {"colour": meta["colour"], "shape": meta["shape"], "rotation_degrees": 0.0}
    return with_meta(pair, distractors=[{**first, **name}, *others])


def a_mask_one_pixel_off(directory: Path, pair: Pair) -> Pair:
    def change(mask: np.ndarray) -> None:
        mask[:] = np.roll(mask, 1, axis=1)

    repaint(directory / meta_of(pair)["mask"], change)
    return pair


def a_mask_that_covers_less_at_one_place(directory: Path, pair: Pair) -> Pair:
    left, top, right, bottom = boxes_of(pair)[0]

    def change(mask: np.ndarray) -> None:
        mask[(top + bottom) // 2, (left + right) // 2] = 100

    repaint(directory / meta_of(pair)["mask"], change)
    return pair


def no_mask(directory: Path, pair: Pair) -> Pair:
    (directory / meta_of(pair)["mask"]).unlink()
    return pair


def a_small_mask(directory: Path, pair: Pair) -> Pair:
    Image.new("L", (40, 40)).save(directory / meta_of(pair)["mask"])
    return pair


def an_empty_page(directory: Path, pair: Pair) -> Pair:
    def change(picture: np.ndarray) -> None:
        picture[:] = meta_of(pair)["background_rgb"]

    repaint(directory / pair.target_image, change)
    return pair


@pytest.mark.parametrize(
    ("plant", "kinds"),
    [
        (one_pixel_of_the_page, {"changed_outside_boxes", "stray_pixels"}),
        (one_pixel_of_the_page_in_both, {"stray_pixels"}),
        (one_pixel_of_the_object, {"object_changed"}),
        (swapped_pictures, {"pictures_swapped"}),
        (a_shifted_box, {"box_off_pixels", "changed_outside_boxes"}),
        (a_wider_box, {"box_off_pixels"}),
        (an_answer_of_another_place, {"answer_off_box"}),
        (another_size, {"object_changed", "mask_off_pixels"}),
        (another_rotation, {"object_changed", "mask_off_pixels"}),
        (another_size_in_both, {"redrawn_otherwise", "mask_off_pixels"}),
        (another_colour_in_both, {"wrong_colour"}),
        (another_name, {"wrong_name"}),
        (a_moved_distractor, {"changed_outside_boxes", "stray_pixels"}),
        (a_namesake, {"ambiguous_object", "redrawn_otherwise"}),
        (a_mask_one_pixel_off, {"mask_off_pixels"}),
        (a_mask_that_covers_less_at_one_place, {"mask_off_pixels"}),
        (no_mask, {"malformed_mask"}),
        (a_small_mask, {"malformed_mask"}),
        (an_empty_page, {"box_off_pixels", "changed_outside_boxes", "redrawn_otherwise"}),
    ],
)
@pytest.mark.parametrize("number", [1, 7])
def test_a_planted_defect_is_named(
    plant: Callable[[Path, Pair], Pair], kinds: set[str], number: int, built: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "set"
    shutil.copytree(built, directory)
    pair = read_pairs(directory)[number]
    assert kinds_in(directory, plant(directory, pair)) == kinds


def test_places_that_are_too_near_are_named(built: Path) -> None:
    pair = read_pairs(built)[0]
    (left, top, right, bottom), _ = boxes_of(pair)
    near = replace(pair, source_box=(right + 1, top, 2 * right + 1 - left, bottom))
    assert "objects_too_near" in kinds_in(built, near)
    at_the_frame = replace(pair, source_box=(0, 0, right - left, bottom - top))
    assert "objects_too_near" in kinds_in(built, at_the_frame)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("shape", None), ("shape", "blob"), ("colour", 3), ("size_pixels", "40"), ("size_pixels", -4),
        ("size_pixels", 10**9), ("rotation_degrees", None), ("background", "leopard"), ("mask", None),
        ("distractors", None), ("distractors", [3]), ("distractors", [{"colour": "red"}]), ("image_size", [240]),
        ("object_name", None), ("rotation_degrees", float("nan")), ("rotation_degrees", 400.0),
        ("colour_rgb", [1, 2, 3]), ("background_rgb", [9, 9, 9]), ("gap_pixels", 4), ("background", ["white"]),
    ],
)  # fmt: skip
def test_a_parameter_that_is_missing_or_of_another_type_is_named(built: Path, name: str, value: Any) -> None:
    pair = read_pairs(built)[0]
    assert kinds_in(built, with_meta(pair, **{name: value})) == {"malformed_meta"}
    meta = {key: kept for key, kept in meta_of(pair).items() if key != name}
    assert kinds_in(built, replace(pair, meta=meta)) == {"malformed_meta"}


def test_a_pair_without_meta_or_without_boxes_is_named(built: Path) -> None:
    pair = read_pairs(built)[0]
    assert kinds_in(built, replace(pair, meta=None)) == {"malformed_meta"}
    assert kinds_in(built, replace(pair, target_box=None, source_box=None)) == {"malformed_meta"}
    assert kinds_in(built, replace(pair, target_box=(1.5, 2, 30.5, 31))) == {"malformed_meta"}


def test_every_kind_has_a_meaning_of_its_own() -> None:
    assert not DEFECTS.keys() & PREFLIGHT_DEFECTS.keys()
