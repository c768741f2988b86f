import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_builders import build
from data_builders.pairs.files import read_pairs
from data_builders.pairs.pair import PAIRS_FILE
from data_builders.pairs.sets import METADATA_FILE
from data_builders.pocket.build import KINDS
from data_builders.validate.checks import check_pair
from data_builders.validate.command import main, survey, validate
from data_builders.validate.set_files import open_set
from tracking.command import REPOSITORY_ROOT

BUILDS: dict[str, list[str]] = {
    "pocket_pairs": ["pocket_pairs", "--num-pairs", "12", "--kinds", *KINDS],
    "ocr": ["ocr", "--num-pairs", "4", "--image-size", "168x56", "--max-letters", "7", "--min-font-pixels", "20",
            "--max-font-pixels", "24"],
    "counting": ["counting", "--num-pairs", "3", "--image-size", "120x80", "--num-samples", "4"],
    "grounding": ["grounding", "--num-pairs", "3", "--image-size", "168", "--num-distractors", "1",
                  "--min-object-pixels", "24", "--max-object-pixels", "32"],
    "recognition": ["recognition", "--num-pairs", "3"],
    "painted": ["recognition", "--num-pairs", "3", "--source-kind", "inpainted"],
}  # fmt: skip

Built = Callable[[str], Path]
"""Builds the set of a name in `BUILDS`, once, and returns its folder."""
Plant = Callable[[Path], None]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    output_dir = tmp_path_factory.mktemp("sets")

    def build_once(name: str) -> Path:
        if not (output_dir / name).exists():
            build.main([*BUILDS[name], "--num-workers", "1", "--output-dir", str(output_dir / name)])
        return output_dir / name / "data"

    return build_once


def rows_of(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / PAIRS_FILE).read_text().splitlines()]


def write_rows(directory: Path, rows: list[dict[str, Any]]) -> None:
    """Writes the pairs, and what must agree with them: metadata and manifest."""
    (directory / PAIRS_FILE).write_text("".join(json.dumps(row) + "\n" for row in rows))
    for row in rows:
        for side in ("target", "source"):
            row[f"{side}_file_name"] = row.pop(f"{side}_image")
    (directory / METADATA_FILE).write_text("".join(json.dumps(row) + "\n" for row in rows))
    rewrite_manifest(directory)


def rewrite_manifest(directory: Path, **arguments: Any) -> None:
    manifest = json.loads((directory / "manifest.json").read_text())
    (directory / "manifest.json").unlink()
    build.write_manifest(directory, manifest["task"], manifest["arguments"] | arguments)


def edit_row(number: int, **changes: Any) -> Plant:
    """Returns a plant: other values in the line of a pair; those of `meta` by `meta__NAME`."""

    def plant(directory: Path) -> None:
        rows = rows_of(directory)
        for name, value in changes.items():
            place = rows[number]["meta"] if name.startswith("meta__") else rows[number]
            key = name.removeprefix("meta__")
            place[key] = value(rows[number]) if callable(value) else value
        write_rows(directory, rows)

    return plant


def edit_picture(number: int, name: str, change: Callable[[np.ndarray], np.ndarray]) -> Plant:
    """Returns a plant: other pixels in a picture, or in a mask that `meta` names."""

    def plant(directory: Path) -> None:
        row = rows_of(directory)[number]
        path = directory / (row[name] if name in row else row["meta"][name])
        Image.fromarray(change(np.asarray(Image.open(path)).copy())).save(path)
        rewrite_manifest(directory)

    return plant


def change_pixel(row: int, column: int) -> Callable[[np.ndarray], np.ndarray]:
    def change(pixels: np.ndarray) -> np.ndarray:
        pixels[row, column] = 255 - pixels[row, column]
        return pixels

    return change


def swap_pictures(number: int) -> Plant:
    def plant(directory: Path) -> None:
        paths = [directory / rows_of(directory)[number][name] for name in ("target_image", "source_image")]
        contents = [path.read_bytes() for path in paths]
        for path, content in zip(paths, reversed(contents), strict=True):
            path.write_bytes(content)
        rewrite_manifest(directory)

    return plant


def swap_answers(number: int) -> Plant:
    """Returns a plant: the pictures change places by name, since a JPEG cannot stand in a PNG's file."""

    def plant(directory: Path) -> None:
        rows = rows_of(directory)
        row = rows[number]
        row["target_image"], row["source_image"] = row["source_image"], row["target_image"]
        write_rows(directory, rows)

    return plant


def copy_pictures(first: int, second: int) -> Plant:
    """Returns a plant: a pair shows and asks what another one does."""

    def plant(directory: Path) -> None:
        rows = rows_of(directory)
        kept = {name: rows[second][name] for name in ("id", "target_image", "source_image")}
        for name in ("target_image", "source_image"):
            shutil.copyfile(directory / rows[first][name], directory / kept[name])
        rows[second] = rows[first] | kept
        write_rows(directory, rows)

    return plant


def add_file(name: str, *, listed: bool) -> Plant:
    def plant(directory: Path) -> None:
        Image.new("RGB", (8, 8)).save(directory / name)
        if listed:
            rewrite_manifest(directory)

    return plant


def edit_manifest(change: Callable[[dict[str, Any]], Any]) -> Plant:
    def plant(directory: Path) -> None:
        manifest = json.loads((directory / "manifest.json").read_text())
        change(manifest)
        (directory / "manifest.json").write_text(json.dumps(manifest))

    return plant


def edit_metadata(change: Callable[[list[str]], list[str]]) -> Plant:
    def plant(directory: Path) -> None:
        path = directory / METADATA_FILE
        path.write_text("".join(f"{line}\n" for line in change(path.read_text().splitlines())))
        rewrite_manifest(directory)

    return plant


def both(*plants: Plant) -> Plant:
    def plant(directory: Path) -> None:
        for each in plants:
            each(directory)

    return plant


def paint_empty_cell(pixels: np.ndarray) -> np.ndarray:
    """Puts a square into the first cell of the pocket world that shows nothing but background."""
    for top in range(0, 84, 28):
        for left in range(0, 84, 28):
            cell = pixels[top : top + 28, left : left + 28]
            if (cell == cell[0, 0]).all():
                cell[6:20, 6:20] = (214, 40, 40)
                return pixels
    raise AssertionError("no cell is empty")


def grow(pixels: np.ndarray) -> np.ndarray:
    """Makes every object of the pocket world a pixel wider."""
    ink = (pixels != pixels[0, 0]).any(axis=-1)
    right = np.roll(ink, 1, axis=1) & ~ink
    pixels[right] = np.roll(pixels, 1, axis=1)[right]
    return pixels


def append_byte(name: str) -> Plant:
    """Returns a plant: a byte behind a picture's end, which no decoder looks at."""

    def plant(directory: Path) -> None:
        with (directory / name).open("ab") as file:
            file.write(b"\0")

    return plant


def set_hash(directory: Path) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["files"][FIRST] = "0" * 64

    edit_manifest(change)(directory)


def moved(name: str) -> Callable[[dict[str, Any]], list[float]]:
    return lambda row: [row[name][0] + 1, row[name][1], row[name][2] + 1, row[name][3]]


def plus_one(name: str) -> Callable[[dict[str, Any]], str]:
    return lambda row: str(int(row[name]) + 1)


def invert(pixels: np.ndarray) -> np.ndarray:
    return 255 - pixels


def halve(pixels: np.ndarray) -> np.ndarray:
    return pixels[::2, ::2]


def shift(pixels: np.ndarray) -> np.ndarray:
    return np.roll(pixels, 2, axis=1)


TARGET, SOURCE = "target_image", "source_image"
FIRST = "images/pocket_pairs-000000-target.png"
NUM_GRID_OF_16 = {"patch_size": 16, "merge_size": 2, "min_pixels": 1, "max_pixels": 10**6}

FILES_PLANTED: dict[str, tuple[str, Plant, str, str]] = {
    "other bytes behind the same pixels": ("pocket_pairs", append_byte(FIRST), "changed_file", FIRST),
    "another hash in the manifest": ("pocket_pairs", set_hash, "changed_file", FIRST),
    "a missing picture": ("pocket_pairs", lambda path: (path / FIRST).unlink(), "missing_file", FIRST),
    "a missing preview": ("grounding", lambda path: (path / "preview.png").unlink(), "missing_file", "preview.png"),
    "an extra file": ("grounding", add_file("images/x.png", listed=False), "unlisted_file", "images/x.png"),
    "a picture of no pair": ("grounding", add_file("masks/x.png", listed=True), "unused_file", "masks/x.png"),
    "no manifest": ("counting", lambda path: (path / "manifest.json").unlink(), "missing_manifest", "manifest.json"),
    "more pairs asked for": (
        "pocket_pairs", lambda path: rewrite_manifest(path, num_pairs=13), "wrong_arguments", PAIRS_FILE,
    ),
    "an unknown split": ("ocr", lambda path: rewrite_manifest(path, split="dev"), "wrong_arguments", PAIRS_FILE),
    "metadata of another answer": (
        "grounding", edit_metadata(lambda lines: [lines[0].replace("Locate", "Find"), *lines[1:]]), "metadata_differs",
        PAIRS_FILE,
    ),
    "metadata of fewer pairs": ("grounding", edit_metadata(lambda lines: lines[:-1]), "metadata_differs", PAIRS_FILE),
    "no metadata": ("grounding", lambda path: (path / METADATA_FILE).unlink(), "metadata_differs", PAIRS_FILE),
}  # fmt: skip
"""What is planted -> into which set, how, as which kind it must be found, and with which file."""

PAIRS_PLANTED: dict[str, tuple[str, int, Plant, str]] = {
    "the number of another pair": ("pocket_pairs", 4, edit_row(4, id="pocket_pairs-000099"), "wrong_id"),
    "an id that stands twice": ("pocket_pairs", 3, edit_row(4, id="pocket_pairs-000003"), "repeated_id"),
    "another recorded size": ("pocket_pairs", 0, edit_row(0, meta__image_size=[84, 112]), "wrong_image_size"),
    "another grid": ("pocket_pairs", 0, edit_row(0, meta__grid=[6, 8]), "wrong_grid"),
    "no resized size": ("pocket_pairs", 0, edit_row(0, meta__resized_size=None), "wrong_grid"),
    "another processor": (
        "pocket_pairs", 0, lambda path: rewrite_manifest(path, processor=NUM_GRID_OF_16), "wrong_grid",
    ),
    "a resized box beside the box": (
        "grounding", 1, edit_row(1, meta__source_box_resized=[0, 0, 32, 32]), "wrong_resized_box",
    ),
    "a picture of another size": ("grounding", 1, edit_picture(1, TARGET, halve), "unequal_sizes"),
    "a missing picture of a pair": ("pocket_pairs", 0, lambda path: (path / FIRST).unlink(), "unreadable_image"),
    "twice the same picture": ("pocket_pairs", 0, edit_row(0, source_image=FIRST), "identical_images"),
    "the same answer": ("recognition", 1, edit_row(1, source_answer="Yes"), "same_answer"),
    "the same word": ("ocr", 1, edit_row(1, source_answer=lambda row: row["target_answer"]), "same_answer"),
    "a literal placeholder": (
        "grounding", 0, edit_row(0, prompt=lambda row: "<image>" + row["prompt"]), "placeholder_in_prompt",
    ),
    "a pair that stands twice": ("pocket_pairs", 6, copy_pictures(0, 6), "repeated_pair"),
    "a pair that stands twice, turned": (
        "pocket_pairs", 6, both(copy_pictures(0, 6), swap_pictures(6)), "repeated_pair",
    ),
    "the same two words": (
        "ocr", 2,
        both(
            edit_row(2, target_answer=lambda row: "kernel", source_answer=lambda row: "matrix"),
            edit_row(1, target_answer=lambda row: "matrix", source_answer=lambda row: "kernel"),
        ),
        "repeated_words",
    ),
    "pocket: swapped pictures": ("pocket_pairs", 0, swap_pictures(0), "wrong_pocket_answer"),
    "pocket: a wrong count": ("pocket_pairs", 0, edit_row(0, target_answer="7"), "wrong_pocket_answer"),
    "pocket: a wrong sum": ("pocket_pairs", 1, edit_row(1, source_answer="17"), "wrong_pocket_answer"),
    "pocket: one more object": ("pocket_pairs", 0, edit_picture(0, SOURCE, paint_empty_cell), "other_cells_differ"),
    "pocket: an object on the canvas": (
        "pocket_pairs", 5, edit_picture(5, SOURCE, paint_empty_cell), "other_cells_differ",
    ),
    "pocket: another outline": ("pocket_pairs", 2, edit_picture(2, SOURCE, grow), "more_than_one_change"),
    "pocket: the moved object changes": ("pocket_pairs", 4, edit_picture(4, SOURCE, grow), "more_than_one_change"),
    "pocket: a pixel in both pictures": (
        "pocket_pairs", 0,
        both(*(edit_picture(0, side, change_pixel(0, 0)) for side in (TARGET, SOURCE))), "recorded_otherwise",
    ),
    "pocket: another colour": ("pocket_pairs", 2, edit_picture(2, SOURCE, invert), "unreadable_cell"),
    "pocket: another question": ("pocket_pairs", 3, edit_row(3, prompt="What is it ?"), "wrong_pocket_question"),
    "pocket: an unknown kind": ("pocket_pairs", 0, edit_row(0, meta__kind="colors"), "unknown_pocket_kind"),
    "pocket: no cells": ("pocket_pairs", 0, edit_row(0, meta__target_cells=["red"]), "malformed_cells"),
    "grounding: a pixel of the page": (
        "grounding", 0, edit_picture(0, SOURCE, change_pixel(0, 0)), "changed_outside_boxes",
    ),
    "grounding: swapped pictures": ("grounding", 0, swap_pictures(0), "pictures_swapped"),
    "grounding: a box beside the object": (
        "grounding", 0, edit_row(0, target_box=moved("target_box"), source_box=moved("source_box")), "box_off_pixels",
    ),
    "grounding: another box size": ("grounding", 0, edit_row(0, target_box=[9, 9, 30, 31]), "box_sizes_differ"),
    "grounding: a mask off the object": ("grounding", 0, edit_picture(0, "mask", invert), "mask_off_pixels"),
    "ocr: a pixel of the page": ("ocr", 0, edit_picture(0, SOURCE, change_pixel(0, 0)), "differs_outside_words"),
    "ocr: swapped pictures": ("ocr", 0, swap_pictures(0), "swapped_words"),
    "ocr: another place": ("ocr", 0, edit_picture(0, SOURCE, shift), "word_moved"),
    "ocr: another word": ("ocr", 0, edit_row(0, target_answer="lemma"), "wrong_rendering"),
    "ocr: another ink": ("ocr", 0, edit_picture(0, SOURCE, invert), "wrong_ink_colour"),
    "counting: a pixel of the floor": (
        "counting", 0, edit_picture(0, SOURCE, change_pixel(0, 0)), "changed_outside_region",
    ),
    "counting: swapped pictures": ("counting", 0, swap_pictures(0), "pictures_swapped"),
    "counting: a wrong count": ("counting", 0, edit_row(0, target_answer=plus_one("target_answer")), "wrong_count"),
    "counting: a mask off the objects": ("counting", 1, edit_picture(1, "target_ids", shift), "mask_off_scene"),
    "counting: a region off the change": ("counting", 1, edit_picture(1, "touched", invert), "mask_off_scene"),
    "recognition: swapped pictures": ("recognition", 0, swap_answers(0), "pictures_swapped"),
    "recognition: a pixel on the canvas": (
        "recognition", 0, edit_picture(0, SOURCE, change_pixel(0, 0)), "canvas_not_blank",
    ),
    "recognition: another canvas": ("recognition", 0, edit_picture(0, SOURCE, invert), "wrong_canvas_colour"),
    "painted: a pixel outside the mask": (
        "painted", 0, edit_picture(0, SOURCE, change_pixel(0, 0)), "changed_outside_mask",
    ),
    "painted: swapped pictures": ("painted", 0, swap_pictures(0), "pictures_swapped"),
    "painted: a mask off the outlines": ("painted", 0, edit_picture(0, "mask", shift), "mask_off_outlines"),
}  # fmt: skip
"""What is planted -> into which set and which of its pairs, how, and as which kind it must be found."""


def found_in(*directories: Path, num_workers: int = 1) -> list[tuple[str, str]]:
    """Returns the defects as kind and name, in the order in which they are reported."""
    reports = validate(survey(directories), num_workers=num_workers)
    return [(defect.kind, defect.name) for report in reports for defect in report.defects]


@pytest.mark.parametrize("name", BUILDS)
@pytest.mark.cases_slow
def test_what_the_builders_make_has_no_defects(name: str, built: Built) -> None:
    assert found_in(built(name)) == []


@pytest.mark.parametrize("name", FILES_PLANTED)
def test_a_planted_defect_of_files_is_found_and_named(name: str, built: Built, tmp_path: Path) -> None:
    task, plant, kind, file = FILES_PLANTED[name]
    directory = shutil.copytree(built(task), tmp_path / "data")
    plant(directory)
    assert (kind, file) in found_in(directory)


@pytest.mark.parametrize("name", PAIRS_PLANTED)
def test_a_planted_defect_of_a_pair_is_found_and_named(name: str, built: Built, tmp_path: Path) -> None:
    task, number, plant, kind = PAIRS_PLANTED[name]
    directory = shutil.copytree(built(task), tmp_path / "data")
    plant(directory)
    found = found_in(directory)
    assert (kind, rows_of(directory)[number]["id"]) in found
    assert "changed_file" not in {each for each, _ in found}  # the manifest agrees: what is in the file was judged


def test_a_word_that_stands_in_two_splits_is_found(built: Built, tmp_path: Path) -> None:
    first = shutil.copytree(built("ocr"), tmp_path / "first")
    second = shutil.copytree(built("ocr"), tmp_path / "second")
    rewrite_manifest(second, split="train")
    found = found_in(first, second)
    for kind in ("repeated_pair", "repeated_words", "shared_by_splits"):
        assert {name for each, name in found if each == kind} == {row["id"] for row in rows_of(first)}
    assert not {kind for kind, _ in found_in(second)} & {"repeated_pair", "repeated_words", "shared_by_splits"}


def test_a_photograph_that_stands_in_two_splits_is_found(built: Built, tmp_path: Path) -> None:
    other = shutil.copytree(built("recognition"), tmp_path / "train")
    rewrite_manifest(other, split="train")
    assert ("shared_by_splits", "recognition-000000") in found_in(built("painted"), other)


@pytest.mark.slow
def test_reports_do_not_depend_on_the_number_of_workers(
    built: Built, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = shutil.copytree(built("pocket_pairs"), tmp_path / "sets" / "pocket")
    shutil.copytree(built("grounding"), tmp_path / "sets" / "grounding")
    edit_picture(7, SOURCE, paint_empty_cell)(directory)
    append_byte(FIRST)(directory)
    printed = []
    for num_workers in ("1", "2"):
        with pytest.raises(RuntimeError, match=r"^\d+ defects of \d+ kinds in 2 sets of 15 pairs$"):
            main([str(tmp_path / "sets"), "--num-workers", num_workers])
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    assert f"  {FIRST}: changed_file: sha256" in printed[0]
    assert "  1 of 12 pairs: recorded_otherwise (drawn again from the recorded cells, " in printed[0]


def test_exit_status_and_words_of_a_sound_set(built: Built) -> None:
    command = [sys.executable, "-m", "data_builders.validate", str(built("ocr").parent)]
    done = subprocess.run(command, cwd=REPOSITORY_ROOT, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[0] == f"{built('ocr')}: 4 pairs (4 ocr, split test)"
    assert any(
        line.startswith("  not checked: whether the words can be read, by Tesseract (--words)") for line in lines
    )
    assert lines[-1] == "no defects in 1 set of 4 pairs"


@pytest.mark.skipif(shutil.which("tesseract") is None, reason="Tesseract is not installed")
def test_words_are_read_back_on_request(built: Built, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(built("ocr")), "--words"])
    assert "word_misread" in capsys.readouterr().out
    directory = shutil.copytree(built("ocr"), tmp_path / "data")
    edit_row(0, source_answer="lemma")(directory)
    reports = validate(survey([directory]), read_back=True)
    assert ("word_misread", "ocr-000000") in {(each.kind, each.name) for report in reports for each in report.defects}


def cut_last_line(directory: Path) -> None:
    path = directory / PAIRS_FILE
    path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.parametrize(
    ("plant", "message"),
    [
        (cut_last_line, r"pairs.jsonl:12: not a JSON object"),
        (lambda path: (path / PAIRS_FILE).write_text(""), "is empty; expected at least one pair"),
        (lambda path: (path / PAIRS_FILE).unlink(), "holds no set of pairs"),
        (lambda path: (path / "manifest.json").write_text("{"), "manifest.json is not readable as JSON"),
        (lambda path: (path / "manifest.json").write_text("[]"), "expected an object with task, builder_version, "),
        (
            lambda path: rewrite_manifest(path, processor={"patch_size": 14}),
            "processor is {'patch_size': 14}; expected",
        ),
        (lambda path: rewrite_manifest(path, processor="qwen"), "processor is 'qwen'; expected patch_size"),
    ],
)
def test_what_cannot_be_read_is_one_mistake(plant: Plant, message: str, built: Built, tmp_path: Path) -> None:
    directory = shutil.copytree(built("pocket_pairs"), tmp_path / "data")
    plant(directory)
    with pytest.raises(ValueError, match=message):
        main([str(directory)])


def test_a_set_given_twice_and_a_folder_that_is_missing_are_mistakes(built: Built, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is given 2 times; all its pairs would be repeated"):
        main([str(built("ocr")), str(built("ocr").parent)])
    with pytest.raises(ValueError, match="is not a folder; expected a set of pairs, or a folder of sets"):
        main([str(tmp_path / "nowhere")])


@pytest.mark.parametrize("name", BUILDS)
@pytest.mark.cases_slow
def test_a_record_of_rubbish_ends_no_check_with_an_error(name: str, built: Built) -> None:
    pair_set, pair = open_set(built(name)), read_pairs(built(name))[0]
    meta = pair.meta or {}
    for key in meta:
        for value in (None, "x", -1, [], {}, [None] * 9):
            check_pair(pair_set, replace(pair, meta={**meta, key: value}), 0, read_back=False)
    for broken in (None, {}, dict.fromkeys(meta)):
        kinds = {kind for kind, _ in check_pair(pair_set, replace(pair, meta=broken), 0, read_back=False).found}
        assert kinds & {"malformed_meta", "ocr_record", "unknown_pocket_kind"}
