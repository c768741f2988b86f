"""Defects planted into counting pairs are named, each by its kind."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_builders.counting.build import COUNTING, CountingArguments
from data_builders.counting.check import DEFECTS, check_counting
from data_builders.pairs.defects import DEFECTS as PREFLIGHT_DEFECTS
from data_builders.pairs.files import read_pairs
from data_builders.pairs.pair import Pair
from data_builders.pairs.pictures import PairPictures
from data_builders.pairs.sets import Drawing, PairSetArguments, build_pair_set
from data_builders.pairs.vision_grid import open_vision_grid

Meta = dict[str, Any]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("counting")
    own = CountingArguments(image_size="96x64", num_samples=4)
    drawing = Drawing(
        task="counting", seed=5, split="test", grid=open_vision_grid("qwen2_5_vl"), work_dir=directory / "work"
    )
    build_pair_set(directory, COUNTING, own, drawing, PairSetArguments(num_pairs=12, num_workers=1))
    return directory


@pytest.fixture
def planted(built: Path, tmp_path: Path) -> tuple[Path, Pair]:
    """A copy of the set, and a pair of it with several objects, one of them in colour among those that go."""
    copy = tmp_path / "set"
    shutil.copytree(built, copy)
    for pair in read_pairs(copy):
        meta = pair.meta or {}
        things = meta["scene"]["things"]
        if len(things) - len(meta["removed"]) >= 3 and any(things[i - 1]["colour"] != "grey" for i in meta["removed"]):
            assert kinds(copy, pair) == set()
            return copy, pair
    raise AssertionError("no such pair in the set")


def kinds(directory: Path, pair: Pair) -> set[str]:
    found = dict(check_counting(PairPictures(directory, pair)))
    assert set(found) <= set(DEFECTS)
    return set(found)


def with_meta(pair: Pair, change: Callable[[Meta], None]) -> Pair:
    meta = json.loads(json.dumps(pair.meta))
    change(meta)
    return replace(pair, meta=meta)


def edit(path: Path, change: Callable[[np.ndarray], None]) -> None:
    pixels = np.array(Image.open(path))
    change(pixels)
    Image.fromarray(pixels).save(path)


def test_one_changed_pixel_outside_the_region(planted: tuple[Path, Pair]) -> None:
    directory, pair = planted
    assert pair.meta is not None
    touched = np.array(Image.open(directory / pair.meta["touched"]))
    row, column = np.argwhere(touched == 0)[1234]

    def nudge(pixels: np.ndarray) -> None:
        pixels[row, column, 1] ^= 1

    edit(directory / pair.source_image, nudge)
    found = dict(check_counting(PairPictures(directory, pair)))
    assert found == {"changed_outside_region": f"1 pixels, the first at x {column}, y {row}"}


def test_swapped_pictures(planted: tuple[Path, Pair]) -> None:
    directory, pair = planted
    swapped = replace(pair, target_image=pair.source_image, source_image=pair.target_image)
    assert {"pictures_swapped", "wrong_colour"} <= kinds(directory, swapped)


def test_swapped_answers(planted: tuple[Path, Pair]) -> None:
    directory, pair = planted
    swapped = replace(pair, target_answer=pair.source_answer, source_answer=pair.target_answer)
    assert kinds(directory, swapped) == {"wrong_count"}


def test_an_object_of_another_colour_than_recorded(planted: tuple[Path, Pair]) -> None:
    directory, pair = planted

    def recolour(meta: Meta) -> None:
        thing = meta["scene"]["things"][0]
        thing["colour"] = "cyan" if thing["colour"] != "cyan" else "red"

    assert kinds(directory, with_meta(pair, recolour)) == {"wrong_colour"}


def test_a_picture_painted_over_where_objects_go(planted: tuple[Path, Pair]) -> None:
    directory, pair = planted
    assert pair.meta is not None
    ids = np.array(Image.open(directory / pair.meta[f"{pair.meta['fuller']}_ids"]))
    where = np.isin(ids, pair.meta["removed"])

    def paint(pixels: np.ndarray) -> None:
        pixels[where] = (200, 20, 200)

    edit(directory / (pair.target_image if pair.meta["fuller"] == "source" else pair.source_image), paint)
    assert kinds(directory, pair) == {"removed_look_otherwise"}


@pytest.mark.parametrize("name", ["target_ids", "source_ids", "touched"])
def test_a_mask_that_does_not_fit(planted: tuple[Path, Pair], name: str) -> None:
    directory, pair = planted
    assert pair.meta is not None
    path = directory / pair.meta[name]
    shifted = np.roll(np.array(Image.open(path)), 2, axis=1)
    Image.fromarray(shifted).save(path)
    assert kinds(directory, pair) == {"mask_off_scene"}
    Image.fromarray(shifted[:-1]).save(path)
    assert kinds(directory, pair) == {"malformed_mask"}
    path.write_bytes(b"no picture")
    assert kinds(directory, pair) == {"malformed_mask"}
    path.unlink()
    assert kinds(directory, pair) == {"malformed_mask"}


def test_an_object_wiped_out_of_a_mask(planted: tuple[Path, Pair]) -> None:
    directory, pair = planted
    assert pair.meta is not None
    kept = next(i for i in range(1, 11) if i not in pair.meta["removed"])
    for share, expected in ((1.0, "wrong_count"), (0.9, "object_hidden")):

        def wipe(pixels: np.ndarray, share: float = share) -> None:
            of_it = np.flatnonzero(pixels.ravel() == kept)
            pixels.ravel()[of_it[: int(len(of_it) * share)]] = 0

        path = directory / pair.meta["target_ids"]
        stored = path.read_bytes()
        edit(path, wipe)
        assert kinds(directory, pair) == {"mask_off_scene", expected}
        path.write_bytes(stored)


def test_another_object_of_the_scene_moved(planted: tuple[Path, Pair]) -> None:
    directory, pair = planted

    def move(meta: Meta) -> None:
        kept = next(i for i in range(1, 11) if i not in meta["removed"])
        meta["scene"]["things"][kept - 1]["x"] *= 0.5

    assert "mask_off_scene" in kinds(directory, with_meta(pair, move))


def test_other_objects_gone_than_recorded(planted: tuple[Path, Pair]) -> None:
    directory, pair = planted

    def rename(meta: Meta) -> None:
        kept = next(i for i in range(1, 11) if i not in meta["removed"])
        meta["removed_rgb"][0]["number"] = kept
        meta["removed"] = sorted(each["number"] for each in meta["removed_rgb"])

    assert {"changed_outside_region", "mask_off_scene", "removed_look_otherwise"} <= kinds(
        directory, with_meta(pair, rename)
    )


def test_objects_in_one_another_and_cut_off(planted: tuple[Path, Pair]) -> None:
    directory, pair = planted

    def push(meta: Meta) -> None:
        first, second = meta["scene"]["things"][:2]
        first["x"], first["y"] = second["x"], second["y"]

    def to_the_front(meta: Meta) -> None:
        meta["scene"]["things"][0] |= {"x": 3.0, "y": -3.0, "size": "large"}

    assert "objects_collide" in kinds(directory, with_meta(pair, push))
    assert "object_cut_off" in kinds(directory, with_meta(pair, to_the_front))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("scene", {}),
        ("scene", None),
        ("removed", []),
        ("removed", [99]),
        ("removed", ["1"]),
        ("removed", [1, 1]),
        ("removed_rgb", []),
        ("fuller", "both"),
        ("touched", 7),
        ("min_visible_pixels", "12"),
    ],
)
def test_meta_that_is_missing_or_of_another_type(planted: tuple[Path, Pair], key: str, value: Any) -> None:
    directory, pair = planted
    assert kinds(directory, with_meta(pair, lambda meta: meta.update({key: value}))) == {"malformed_meta"}
    assert kinds(directory, with_meta(pair, lambda meta: meta.pop(key))) == {"malformed_meta"}
    assert kinds(directory, replace(pair, meta=None)) == {"malformed_meta"}


@pytest.mark.parametrize("place", ["camera", "lamps", "things"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e9, "far"])
def test_numbers_that_no_scene_has(planted: tuple[Path, Pair], place: str, value: Any) -> None:
    directory, pair = planted

    def move(meta: Meta) -> None:
        record = meta["scene"][place]
        (record if place == "camera" else record[0])["x"] = value

    assert kinds(directory, with_meta(pair, move)) == {"malformed_meta"}


def test_kinds_do_not_repeat_those_of_the_preflight() -> None:
    assert not set(DEFECTS) & set(PREFLIGHT_DEFECTS)
