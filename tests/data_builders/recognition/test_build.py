"""Recognition pairs: balanced, minimal, independent of the number of pairs, with skipped photographs reported."""

import json
import random
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import load_dataset
from PIL import Image, ImageDraw
from scipy.ndimage import distance_transform_edt

from data_builders.pairs.defects import preflight
from data_builders.pairs.files import read_pairs
from data_builders.pairs.pair import Pair
from data_builders.pairs.sets import Drawing, PairSetArguments, build_pair_set
from data_builders.pairs.vision_grid import PROCESSORS
from data_builders.recognition.build import RECOGNITION, RecognitionArguments, article_for, prompt_for
from data_builders.recognition.coco import ORIENTATION_TAG, split_of
from data_builders.recognition.draw import PAINTED, draw_mask

SIZE = (96, 64)
NAMES = {1: "dog", 4: "apple", 7: "scissors"}
COLOURS = {1: (200, 40, 40), 4: (40, 200, 40), 7: (40, 40, 220)}


def write_photographs(directory: Path, num: int, **changes: Any) -> tuple[Path, Path]:
    """Writes noisy photographs with one or two categories each, drawn as squares: annotations and images."""
    images_dir = directory / "images"
    images_dir.mkdir(parents=True)
    rng = random.Random(0)
    described: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
    described["categories"] = [{"id": number, "name": name} for number, name in NAMES.items()]
    for image_id in range(1, num + 1):
        noise = np.random.default_rng(image_id).integers(90, 160, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
        picture = Image.fromarray(noise)
        shown = rng.sample(sorted(NAMES), rng.choice([1, 2]))
        for place, category_id in enumerate(shown):
            left, top, edge = 10 + 45 * place, rng.randint(8, 30), rng.randint(12, 20)
            ImageDraw.Draw(picture).rectangle((left, top, left + edge - 1, top + edge - 1), COLOURS[category_id])
            outline = [left, top, left + edge, top, left + edge, top + edge, left, top + edge]
            described["annotations"].append(
                {"image_id": image_id, "category_id": category_id, "segmentation": [outline], "area": edge * edge}
            )
        name = f"{image_id:06d}.jpg"
        picture.save(images_dir / name, quality=92)
        described["images"].append({"id": image_id, "file_name": name, "width": SIZE[0], "height": SIZE[1]})
    for key, change in changes.items():
        described[key] = change(described[key])
    annotations = directory / "instances.json"
    annotations.write_text(json.dumps(described))
    return annotations, images_dir


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_photographs(tmp_path_factory.mktemp("coco"), 90)


def build(
    directory: Path,
    photographs: tuple[Path, Path] | None,
    num_pairs: int,
    *,
    seed: int = 0,
    split: str = "test",
    num_workers: int = 1,
    **options: Any,
) -> list[Pair]:
    """Builds a set into a folder."""
    directory.mkdir(parents=True, exist_ok=True)
    if photographs is not None:
        options = {"annotations": str(photographs[0]), "images": str(photographs[1]), **options}
    work_dir = directory.parent / f"{directory.name}-work"
    grid = PROCESSORS["qwen2_5_vl"]
    drawing = Drawing(task="recognition", seed=seed, split=split, grid=grid, work_dir=work_dir)
    shared = PairSetArguments(num_pairs=num_pairs, split=split, num_workers=num_workers)
    build_pair_set(directory, RECOGNITION, RecognitionArguments(**options), drawing, shared)
    return read_pairs(directory)


def meta_of(pair: Pair) -> dict[str, Any]:
    assert pair.meta is not None
    return pair.meta


def pixels(directory: Path, name: str) -> np.ndarray:
    with Image.open(directory / name) as image:
        return np.asarray(image)


def test_a_canvas_has_the_size_of_the_photograph_and_its_kinds_colour(
    photographs: tuple[Path, Path], tmp_path: Path
) -> None:
    for kind, colour in (("white", 255), ("grey", 128), ("black", 0), ("mean", None)):
        pairs = build(tmp_path / kind, photographs, 6, source_kind=kind)
        assert preflight(tmp_path / kind, pairs) == []
        for pair in pairs:
            target, source = (pixels(tmp_path / kind, name) for name in pair.images)
            expected = target.mean(axis=(0, 1)) if colour is None else np.full(3, colour)
            assert source.shape == target.shape == (SIZE[1], SIZE[0], 3)
            assert np.abs(source - expected).max() <= 0.5
            assert (pair.target_answer, pair.source_answer) == ("Yes", "No")


def test_the_photograph_is_stored_byte_for_byte(photographs: tuple[Path, Path], tmp_path: Path) -> None:
    for pair in build(tmp_path / "set", photographs, 6):
        assert pair.target_image.endswith(".jpg")
        original = photographs[1] / meta_of(pair)["photograph"]
        assert (tmp_path / "set" / pair.target_image).read_bytes() == original.read_bytes()


def test_painting_out_changes_the_category_and_no_pixel_elsewhere(
    photographs: tuple[Path, Path], tmp_path: Path
) -> None:
    directory = tmp_path / "set"
    described = json.loads(photographs[0].read_text())
    for pair in build(directory, photographs, 9, source_kind="inpainted", mask_dilation=3):
        meta = meta_of(pair)
        (entry,) = (
            each
            for each in described["annotations"]
            if (each["image_id"], each["category_id"]) == (meta["image_id"], meta["category_id"])
        )
        left, top, _, _, right, bottom, *_ = entry["segmentation"][0]
        target, source = (pixels(directory, name).astype(int) for name in pair.images)
        assert np.array_equal(target, pixels(photographs[1], meta["photograph"]))
        changed = (target != source).any(axis=-1)
        allowed = np.zeros_like(changed)
        allowed[top - 4 : bottom + 4, left - 4 : right + 4] = True
        assert not changed[~allowed].any()
        assert changed[top:bottom, left:right].mean() > 0.98
        colour = np.array(COLOURS[meta["category_id"]])
        still_there = np.abs(source - colour).sum(axis=-1) < 60
        assert not still_there[allowed].any()
        assert np.array_equal(
            pixels(directory, meta["mask"]) == PAINTED, changed | (pixels(directory, meta["mask"]) > 0)
        )


def test_all_kinds_of_source_ask_about_the_same_photographs(photographs: tuple[Path, Path], tmp_path: Path) -> None:
    asked = []
    for kind in ("white", "inpainted"):
        pairs = build(tmp_path / kind, photographs, 12, source_kind=kind)
        asked.append([(pair.id, pair.prompt, meta_of(pair)["image_id"]) for pair in pairs])
    assert asked[0] == asked[1]


@pytest.mark.slow
def test_pair_i_depends_neither_on_how_many_follow_nor_on_the_processes(
    photographs: tuple[Path, Path], tmp_path: Path
) -> None:
    build(tmp_path / "few", photographs, 5, source_kind="inpainted")
    build(tmp_path / "many", photographs, 14, source_kind="inpainted", num_workers=2)
    build(tmp_path / "other", photographs, 5, source_kind="inpainted", seed=1)
    lines = {name: (tmp_path / name / "pairs.jsonl").read_text().splitlines() for name in ("few", "many", "other")}
    assert lines["few"] == lines["many"][:5]
    assert lines["few"] != lines["other"]
    for path in sorted((tmp_path / "few").glob("*/*.*")):
        assert path.read_bytes() == (tmp_path / "many" / path.relative_to(tmp_path / "few")).read_bytes()


def test_categories_take_turns_and_one_without_photographs_drops_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = iter(range(2))  # of the scissors

    def only_two_scissors(annotations: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [
            each
            for each in annotations
            if each["category_id"] != 7 or (split_of(each["image_id"]) == "test" and next(kept, None) is not None)
        ]

    photographs = write_photographs(tmp_path / "coco", 90, annotations=only_two_scissors)
    pairs = build(tmp_path / "set", photographs, 20)
    counts = Counter(meta_of(pair)["category"] for pair in pairs)
    assert counts == {"dog": 9, "apple": 9, "scissors": 2}
    assert capsys.readouterr().err == "1 categories have too few photographs: scissors (2)\n"
    shown = [(meta_of(pair)["category"], meta_of(pair)["image_id"]) for pair in pairs]
    assert len(set(shown)) == len(shown)
    first_round = [meta_of(pair)["category"] for pair in pairs[:3]]
    assert sorted(first_round) == sorted(NAMES.values())


def test_a_photograph_stands_in_one_split(photographs: tuple[Path, Path], tmp_path: Path) -> None:
    ids = {
        split: {meta_of(pair)["image_id"] for pair in build(tmp_path / split, photographs, 6, split=split)}
        for split in ("train", "validation", "test")
    }
    for split, found in ids.items():
        assert {split_of(image_id) for image_id in found} == {split}


def test_small_large_and_crowded_instances_are_not_asked_about(tmp_path: Path) -> None:
    def change(annotations: list[dict[str, Any]]) -> list[dict[str, Any]]:
        dogs = [each for each in annotations if each["category_id"] == 1 and split_of(each["image_id"]) == "test"]
        dogs[0]["area"] = 0.009 * SIZE[0] * SIZE[1]
        dogs[1]["area"] = 0.51 * SIZE[0] * SIZE[1]
        crowd = {**dogs[2], "iscrowd": 1, "segmentation": {"counts": [1], "size": [64, 96]}}
        refused.extend(each["image_id"] for each in dogs[:3])
        usable.extend(each["image_id"] for each in dogs[3:])
        return [*annotations, crowd]

    refused: list[int] = []
    usable: list[int] = []
    photographs = write_photographs(tmp_path / "coco", 90, annotations=change)
    pairs = build(tmp_path / "set", photographs, len({*usable}), categories=["dog"])
    assert sorted(meta_of(pair)["image_id"] for pair in pairs) == sorted(usable)
    reasons = (
        "1 with no instance of at least min_area_frac 0.01, 1 with instances of more than max_area_frac 0.5 together, "
        "1 with a crowd region"
    )
    found = re.escape(f"there are photographs for {len(usable)} (not used: {reasons}); ask for fewer")
    with pytest.raises(ValueError, match=found):
        build(tmp_path / "more", photographs, len(usable) + 1, categories=["dog"])
    with_small = build(tmp_path / "small", photographs, len(usable) + 1, categories=["dog"], min_area_frac=0.005)
    assert refused[0] in {meta_of(pair)["image_id"] for pair in with_small}


def test_photographs_that_cannot_be_used_are_named_and_another_one_takes_the_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photographs = write_photographs(tmp_path / "coco", 90)
    first = build(tmp_path / "whole", photographs, 8)
    names = [meta_of(pair)["photograph"] for pair in first[:3]]
    cut_short, gone, resized = (photographs[1] / name for name in names)
    cut_short.write_bytes(cut_short.read_bytes()[:400])
    gone.unlink()
    Image.new("RGB", (50, 50)).save(resized)
    capsys.readouterr()
    second = build(tmp_path / "broken", photographs, 8)
    said = capsys.readouterr().err
    for name, reason in zip(names, ("cannot be decoded", "is not there", "has 50 x 50 pixels"), strict=True):
        assert f"left out: {name} {reason}" in said
    found = {meta_of(pair)["photograph"] for pair in second}
    assert len(second) == 8
    assert not found & set(names)


def test_a_photograph_marked_to_be_turned_is_stored_as_its_annotations_see_it(tmp_path: Path) -> None:
    photographs = write_photographs(tmp_path / "coco", 90)
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = 6
    before = {}
    for path in photographs[1].iterdir():
        with Image.open(path) as image:
            image.save(path, exif=exif)
        before[path.name] = pixels(photographs[1], path.name)
    for pair in build(tmp_path / "set", photographs, 4):
        with Image.open(tmp_path / "set" / pair.target_image) as stored:
            assert stored.format == "PNG"
            assert stored.getexif().get(ORIENTATION_TAG, 1) == 1
            assert np.array_equal(np.asarray(stored), before[meta_of(pair)["photograph"]])


def test_large_photographs_are_scaled_down_with_their_outlines(photographs: tuple[Path, Path], tmp_path: Path) -> None:
    directory = tmp_path / "set"
    for pair in build(directory, photographs, 6, source_kind="inpainted", max_pixels=1536, mask_dilation=1):
        meta = meta_of(pair)
        assert meta["image_size"] == [48, 32]
        target, source = (pixels(directory, name).astype(int) for name in pair.images)
        left, top, _, _, right, bottom, *_ = np.array(meta["outlines"][0][0]) / 2
        changed = (target != source).any(axis=-1)
        rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
        found = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        assert np.abs(np.array(found) - (left, top, right, bottom)).max() <= 2


def test_a_mask_is_what_lies_within_a_distance_of_the_polygon() -> None:
    triangle = [20.0, 12.0, 70.0, 30.0, 31.5, 55.25]
    y, x = np.mgrid[0.5:72, 0.5:96]
    corners = np.array(triangle).reshape(-1, 2)
    inside = np.ones_like(x, dtype=bool)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        inside &= (x1 - x0) * (y - y0) - (y1 - y0) * (x - x0) >= 0
    distance = distance_transform_edt(~inside)
    for dilation in (0, 4):
        mask = draw_mask([triangle], (96, 72), (96, 72), dilation) == PAINTED
        assert mask[distance <= dilation].all()
        assert not mask[distance > dilation + 2.5].any()  # OpenCV fills every pixel that an edge touches
    halved = draw_mask([triangle], (96, 72), (48, 36), 0) == PAINTED
    assert abs(halved.sum() - inside.sum() / 4) < 0.15 * inside.sum()


@pytest.mark.parametrize("kind", ["white", "inpainted"])
def test_hugging_face_datasets_reads_a_set(kind: str, photographs: tuple[Path, Path], tmp_path: Path) -> None:
    pairs = build(tmp_path / "set", photographs, 8, source_kind=kind)
    options = {"split": "train", "cache_dir": str(tmp_path / "cache")}
    folder = load_dataset("imagefolder", data_dir=str(tmp_path / "set"), **options)
    lines = load_dataset("json", data_files=str(tmp_path / "set" / "pairs.jsonl"), **options)
    for pair, row, line in zip(pairs, folder, lines, strict=True):
        assert row["meta"] == line["meta"] == pair.meta
        for side, name in (("target", pair.target_image), ("source", pair.source_image)):
            assert np.array_equal(np.asarray(row[side]), pixels(tmp_path / "set", name))


@pytest.mark.parametrize(
    ("category", "asked"),
    [
        ("dog", "Is there a dog in the image?"),
        ("airplane", "Is there an airplane in the image?"),
        ("umbrella", "Is there an umbrella in the image?"),
        ("scissors", "Are there scissors in the image?"),
        ("broccoli", "Is there broccoli in the image?"),
    ],
)
def test_the_question_is_english(category: str, asked: str) -> None:
    assert prompt_for(category) == f"{asked} Answer Yes or No only."


def test_the_article_follows_the_first_sound() -> None:
    for noun in ("apple", "elephant", "oven", "orange", "igloo", "hourglass", "undershirt", "unimpressive dog", "Owl"):
        assert article_for(noun) == "an", noun
    for noun in ("bicycle", "unicycle", "ukulele", "ewe", "one-way sign", "European car", "utensil", "hot dog", "yak"):
        assert article_for(noun) == "a", noun


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source_kind": "gray"}, "source_kind 'gray' is unknown; .* did you mean 'grey'"),
        ({"inpaint_method": "tela"}, "inpaint_method 'tela' is unknown"),
        ({"images": "x"}, "annotations is None, images is x; name both"),
        ({"hub_dataset": "a/b", "source_kind": "inpainted"}, "inpainted needs outlines"),
        ({"hub_dataset": "a/b", "annotations": "x", "images": "y"}, "both named"),
        ({"min_area_frac": 0.6}, "min_area_frac 0.6, max_area_frac 0.5"),
        ({"max_pixels": -1}, "max_pixels is -1"),
        ({"mask_dilation": 101}, "mask_dilation is 101; expected 0 to 100"),
        ({"categories": ["dog", "dog"]}, "one appears twice"),
        ({"hub_rows": 0}, "hub_rows is 0"),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RecognitionArguments(**options)


def test_mistakes_that_only_the_annotations_show_are_named(photographs: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"category 'dogs' is not one of the 3 .* did you mean 'dog'"):
        build(tmp_path / "set", photographs, 3, categories=["dogs"])
    with pytest.raises(ValueError, match="gone is not a folder"):
        build(tmp_path / "set", (photographs[0], tmp_path / "gone"), 3)
    with pytest.raises(ValueError, match=r"gone\.json does not exist"):
        build(tmp_path / "set", (tmp_path / "gone.json", photographs[1]), 3)
    with pytest.raises(ValueError, match=r"recognition-00000\d: everything would be painted out"):
        build(tmp_path / "all", photographs, 3, source_kind="inpainted", mask_dilation=100)


def test_too_few_photographs_say_why_the_others_are_not_used(tmp_path: Path) -> None:
    def as_run_lengths(annotations: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{**each, "segmentation": {"counts": [9, 3], "size": [64, 96]}} for each in annotations]

    def without_size(images: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{**each, "width": -1} for each in images]

    masks = write_photographs(tmp_path / "masks", 20, annotations=as_run_lengths)
    with pytest.raises(
        ValueError, match=r"photographs for 0 \(not used: \d+ with masks as run lengths, which inpainting"
    ):
        build(tmp_path / "set", masks, 3, source_kind="inpainted")
    assert len(build(tmp_path / "white", masks, 3)) == 3, "a blank canvas needs no outline"
    sizes = write_photographs(tmp_path / "sizes", 20, images=without_size)
    with pytest.raises(
        ValueError, match=r"photographs for 0 \(not used: \d+ that has -1 x 64 pixels in its annotations\)"
    ):
        build(tmp_path / "set", sizes, 3)
    with pytest.raises(ValueError, match=r"\d+ with no instance of at least min_area_frac 0\.4"):
        build(tmp_path / "set", write_photographs(tmp_path / "small", 20), 3, min_area_frac=0.4)


def test_what_is_described_names_the_annotations_by_content_and_no_place(
    photographs: tuple[Path, Path], tmp_path: Path
) -> None:
    there = RecognitionArguments(annotations=str(photographs[0]), images=str(photographs[1]))
    elsewhere = tmp_path / "elsewhere.json"
    elsewhere.write_bytes(photographs[0].read_bytes())
    described = [RECOGNITION.describe(each) for each in (there, replace(there, annotations=str(elsewhere)))]
    assert described[0] == described[1]
    assert str(photographs[0].parent) not in json.dumps(described)
    elsewhere.write_text(elsewhere.read_text() + " ")
    assert RECOGNITION.describe(replace(there, annotations=str(elsewhere))) != described[0]


def test_options_that_change_nothing_are_said(
    photographs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build(tmp_path / "set", photographs, 2, mask_dilation=9, hub_rows=9)
    assert capsys.readouterr().err == "mask_dilation has no effect here\nhub_rows has no effect here\n"
