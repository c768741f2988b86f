"""Sets that the builder made have no defect, and each planted one is found under its own name."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_builders.pairs.defects import DEFECTS as PREFLIGHT_DEFECTS
from data_builders.pairs.files import read_pairs
from data_builders.pairs.pair import Pair
from data_builders.pairs.pictures import PairPictures
from data_builders.pairs.sets import Drawing, PairSetArguments, build_pair_set
from data_builders.pairs.vision_grid import PROCESSORS
from data_builders.recognition.build import RECOGNITION, SOURCE_KINDS, RecognitionArguments
from data_builders.recognition.check import DEFECTS, META_TYPES, check_recognition

NUM_PAIRS = 6


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A set of each kind, over the shipped scenes."""
    root = tmp_path_factory.mktemp("recognition")
    for kind in SOURCE_KINDS:
        (root / kind).mkdir()
        drawing = Drawing(
            task="recognition", seed=0, split="test", grid=PROCESSORS["qwen2_5_vl"], work_dir=root / f"{kind}-work"
        )
        shared = PairSetArguments(num_pairs=NUM_PAIRS, num_workers=1)
        build_pair_set(root / kind, RECOGNITION, RecognitionArguments(source_kind=kind), drawing, shared)
    return {kind: root / kind for kind in SOURCE_KINDS}


def kinds_found(directory: Path, pair: Pair) -> set[str]:
    found = list(check_recognition(PairPictures(directory, pair)))
    assert all(text for _, text in found)
    return {kind for kind, _ in found}


def copied(directory: Path, pair: Pair, tmp_path: Path) -> Pair:
    """Copies a pair's files, and returns the pair, pictures as PNG files that can be written to."""
    assert pair.meta is not None
    for name in (*pair.images, *([pair.meta["mask"]] if "mask" in pair.meta else [])):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.open(directory / name).save((tmp_path / name).with_suffix(".png"))
    target_image = str(Path(pair.target_image).with_suffix(".png"))
    return replace(pair, target_image=target_image, meta=json.loads(json.dumps(pair.meta)))


def edit(path: Path, change: Callable[[np.ndarray], np.ndarray | None]) -> None:
    """Changes a picture's pixels in place."""
    pixels = np.array(Image.open(path))
    changed = change(pixels)
    Image.fromarray(pixels if changed is None else changed).save(path)


def swap(first: Path, second: Path) -> None:
    contents = second.read_bytes(), first.read_bytes()
    for path, content in zip((first, second), contents, strict=True):
        path.write_bytes(content)


def one_more(pixels: np.ndarray) -> None:
    pixels[0, 0] ^= 1


def far_from(mask: np.ndarray) -> tuple[int, int]:
    row, column = np.argwhere(mask == 0)[0]
    return int(row), int(column)


@pytest.mark.parametrize("kind", SOURCE_KINDS)
def test_a_built_set_has_no_defect(kind: str, sets: dict[str, Path]) -> None:
    pairs = read_pairs(sets[kind])
    assert len(pairs) == NUM_PAIRS
    for pair in pairs:
        assert kinds_found(sets[kind], pair) == set()


def test_no_kind_is_the_preflights() -> None:
    assert not set(DEFECTS) & set(PREFLIGHT_DEFECTS)


def planted_in_files(kind: str, directory: Path, pair: Pair, planted: str) -> None:
    """Plants one defect into the files of a pair."""
    assert pair.meta is not None
    target, source = (directory / name for name in pair.images)
    mask_path = directory / pair.meta.get("mask", "none")
    if planted == "swapped":
        swap(target, source)
    elif planted == "pixel_in_source":
        edit(source, one_more)
    elif planted == "other_colour":
        edit(source, lambda pixels: pixels ^ np.uint8(1))
    elif planted == "blank_target":
        edit(target, lambda pixels: pixels * np.uint8(0) + np.uint8(7))
    elif planted == "mirrored_target_in_other_light":
        edit(target, lambda pixels: pixels[:, ::-1] // 2)
    elif planted == "smaller":
        for path in (target, source):
            edit(path, lambda pixels: pixels[:-8, :-8])
    elif planted == "nothing_painted_out":
        source.write_bytes(target.read_bytes())
    elif planted == "other_paint":
        mask = np.array(Image.open(mask_path))
        edit(source, lambda pixels: np.where(mask[..., None] > 0, np.uint8(90), pixels))
    elif planted == "mask_shifted":
        edit(mask_path, lambda mask: np.roll(mask, 1, axis=1))
    elif planted == "mask_pixel":
        row, column = far_from(np.array(Image.open(mask_path)))
        edit(mask_path, lambda mask: mask.__setitem__((row, column), 255))
    elif planted == "mask_gone":
        mask_path.unlink()
    elif planted == "mask_garbled":
        mask_path.write_bytes(b"no picture")
    elif planted == "mask_smaller":
        edit(mask_path, lambda mask: mask[1:])
    else:
        raise AssertionError(planted)


@pytest.mark.parametrize(
    ("kind", "planted", "expected"),
    [
        ("white", "swapped", {"pictures_swapped", "blank_photograph", "canvas_not_blank"}),
        ("mean", "swapped", {"pictures_swapped", "blank_photograph", "canvas_not_blank"}),
        ("inpainted", "swapped", {"pictures_swapped", "other_photograph"}),
        ("white", "pixel_in_source", {"canvas_not_blank"}),
        ("inpainted", "pixel_in_source", {"changed_outside_mask"}),
        ("grey", "other_colour", {"wrong_canvas_colour"}),
        ("mean", "other_colour", {"wrong_canvas_colour"}),
        ("black", "blank_target", {"blank_photograph"}),
        ("black", "mirrored_target_in_other_light", {"other_photograph"}),
        ("mean", "mirrored_target_in_other_light", {"other_photograph", "wrong_canvas_colour"}),
        ("white", "smaller", {"unexpected_size", "other_photograph"}),
        ("inpainted", "nothing_painted_out", {"object_not_painted_out", "painted_otherwise"}),
        ("inpainted", "other_paint", {"painted_otherwise"}),
        ("inpainted", "mask_shifted", {"mask_off_outlines", "painted_otherwise", "changed_outside_mask"}),
        ("inpainted", "mask_pixel", {"mask_off_outlines", "painted_otherwise"}),
        ("inpainted", "mask_gone", {"malformed_mask"}),
        ("inpainted", "mask_garbled", {"malformed_mask"}),
        ("inpainted", "mask_smaller", {"malformed_mask"}),
    ],
)
def test_a_defect_planted_into_the_files_is_found(
    kind: str, planted: str, expected: set[str], sets: dict[str, Path], tmp_path: Path
) -> None:
    pair = copied(sets[kind], read_pairs(sets[kind])[0], tmp_path)
    assert kinds_found(tmp_path, pair) == set()
    planted_in_files(kind, tmp_path, pair, planted)
    assert kinds_found(tmp_path, pair) == expected


@pytest.mark.parametrize(
    ("kind", "changes", "expected"),
    [
        ("white", {"category": "zebra"}, {"wrong_question"}),
        ("white", {"largest_area_frac": 0.001}, {"object_too_small"}),
        ("white", {"num_instances": 0}, {"object_too_small"}),
        ("white", {"canvas_colour": [255, 255, 254]}, {"wrong_canvas_colour"}),
        ("white", {"source_kind": "black"}, {"wrong_canvas_colour"}),
        ("white", {"annotated_size": [241, 160]}, {"unexpected_size"}),
        ("inpainted", {"min_area_frac": 0.2, "largest_area_frac": 0.21}, {"object_too_small"}),
        ("inpainted", {"num_instances": 9}, {"mask_off_outlines"}),
        ("inpainted", {"mask_dilation": 5}, {"mask_off_outlines"}),
    ],
)
def test_a_defect_planted_into_the_meta_is_found(
    kind: str, changes: dict[str, Any], expected: set[str], sets: dict[str, Path]
) -> None:
    pair = read_pairs(sets[kind])[0]
    assert kinds_found(sets[kind], replace(pair, meta={**(pair.meta or {}), **changes})) == expected


def test_other_words_and_answers_are_found(sets: dict[str, Path]) -> None:
    pair = read_pairs(sets["white"])[0]
    prompt = pair.prompt.replace("a c", "a s").replace("a sphere", "a cube")
    assert kinds_found(sets["white"], replace(pair, prompt=prompt + " ")) == {"wrong_question"}
    assert kinds_found(sets["white"], replace(pair, target_answer="No", source_answer="Yes")) == {"wrong_answer"}


def test_meta_that_is_missing_or_garbled_is_a_defect_and_no_error(sets: dict[str, Path]) -> None:
    for kind in ("white", "inpainted"):
        pair = read_pairs(sets[kind])[0]
        meta = pair.meta or {}
        own = {"white": {"canvas_colour"}, "inpainted": {"mask", "outlines", "mask_dilation", "inpaint_method"}}[kind]
        for name in sorted({*META_TYPES, *own} - {"photograph"}):
            values = [None, "x", -1, [], [[]], {"a": 1}, [["x"]], 1e300, [None, 1], True, [[[1e300] * 6]]]
            for value in [*values, [[[float("nan")] * 6]], [1e9, 1e9], [0, 0], [1, 2, 3]]:
                found = kinds_found(sets[kind], replace(pair, meta={**meta, name: value}))
                assert found, (name, value)
            without = {key: value for key, value in meta.items() if key != name}
            assert kinds_found(sets[kind], replace(pair, meta=without)) == {"malformed_meta"}, name
        assert kinds_found(sets[kind], replace(pair, meta=None)) == {"malformed_meta"}
