"""Defects of the pairs released with the paper are found, and none of them in minimal pairs."""

import json
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from data_builders import build
from data_builders.pairs.files import read_pairs
from data_builders.pairs.pair import TASKS
from data_builders.pairs.pictures import read_rgb
from data_builders.pairs.published import PUBLISHED_FILE
from data_builders.pairs.unproven import MAX_OWN_FRAC, outlines_of_own
from data_builders.validate.command import survey, validate
from tracking.command import REPOSITORY_ROOT

PUBLISHED = REPOSITORY_ROOT.parent / "shared" / "data" / "published_pairs"
Printed = dict[str, str]

ALL = set(range(100))
SAME_WORD = {10, 15, 16, 48, 59, 75, 95, 96}


def numbers_by_kind(directory: Path) -> dict[str, set[int]]:
    """Returns for each kind of defect the numbers of the pairs that have it."""
    numbers: dict[str, set[int]] = defaultdict(set)
    (report,) = validate(survey([directory]))
    for defect in report.defects:
        numbers[defect.kind].add(int(defect.name.rsplit("_", 1)[1]))
    return dict(numbers)


@pytest.fixture(scope="module")
def printed() -> Printed:
    """Validates all four published sets at once, as a person would; returns what is printed of each, and of all."""
    if not PUBLISHED.is_dir():
        pytest.skip("the published pairs are not here")
    command = [sys.executable, "-m", "data_builders.validate", str(PUBLISHED), "--num-workers", "2"]
    done = subprocess.run(command, cwd=REPOSITORY_ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines() == ["error: 545 defects of 9 kinds in 4 sets of 400 pairs"]
    sections = re.split(rf"^{re.escape(str(PUBLISHED))}/(\w+): 100 pairs.*$", done.stdout, flags=re.MULTILINE)
    return dict(zip(sections[1::2], sections[2::2], strict=True))


def found_in(section: str) -> dict[str, set[int]]:
    """Returns for each kind of defect the numbers of the pairs whose lines name it; the counts must agree."""
    numbers: dict[str, set[int]] = defaultdict(set)
    for number, kind in re.findall(r"^  \w+_0*(\d+): (\w+): ", section, flags=re.MULTILINE):
        numbers[kind].add(int(number))
    counted = re.findall(r"^  (\d+) of 100 pairs: (\w+) \(", section, flags=re.MULTILINE)
    assert {kind: int(count) for count, kind in counted} == {kind: len(pairs) for kind, pairs in numbers.items()}
    return dict(numbers)


@pytest.mark.slow
def test_published_words_move_and_eight_pairs_hold_the_same_word(printed: Printed) -> None:
    found = found_in(printed["ocr"])
    assert found.pop("same_answer") == SAME_WORD
    assert found.pop("words_move") == ALL
    assert len(found.pop("repeated_words")) == 15
    assert found == {}


@pytest.mark.slow
def test_published_boxes_change_their_size_and_21_overlap(printed: Printed) -> None:
    found = found_in(printed["grounding"])
    assert found.pop("box_sizes_differ") == ALL
    assert found.pop("boxes_shift") == ALL
    overlapping = found.pop("boxes_overlap")
    assert len(overlapping) == 21
    assert found == {}
    for number, pair in enumerate(read_pairs(PUBLISHED / "grounding")):
        assert (number in overlapping) == all(
            set(range(*map(int, pair.target_box[axis::2]))) & set(range(*map(int, pair.source_box[axis::2])))  # type: ignore[index]
            for axis in (0, 1)
        )


@pytest.mark.slow
def test_published_scenes_are_unrelated_and_their_prompts_hold_a_placeholder(printed: Printed) -> None:
    assert found_in(printed["counting"]) == {"unrelated_scenes": ALL, "placeholder_in_prompt": ALL}


@pytest.mark.slow
def test_one_published_photograph_is_cut_short_and_the_canvases_are_blank(printed: Printed) -> None:
    assert found_in(printed["recognition"]) == {"unreadable_image": {58}}


@pytest.mark.slow
def test_what_could_not_be_checked_of_the_published_sets_is_said(printed: Printed) -> None:
    for section in printed.values():
        assert "  not checked: files, sizes and grids against a manifest, as there is none" in section
    assert "  not checked: whether the words can be read, by Tesseract (--words)" in printed["ocr"]


BUILT: dict[str, list[str]] = {
    "ocr": ["--num-pairs", "12"],
    "counting": ["--num-pairs", "4", "--image-size", "240x160", "--num-samples", "4"],
    "grounding": ["--num-pairs", "12"],
    "recognition": ["--num-pairs", "12"],
}


@pytest.fixture(scope="module")
def as_published(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Returns what builds pairs of our own and writes them as the published ones are, scenes as JPEG."""

    def write(task: str) -> Path:
        run = tmp_path_factory.mktemp(task)
        build.main([task, *BUILT[task], "--num-workers", "1", "--output-dir", str(run)])
        directory = run / "published"
        (directory / "images").mkdir(parents=True)
        rows = []
        for number, pair in enumerate(read_pairs(run / "data")):
            names = {}
            for side, name in zip(("target", "source"), pair.images, strict=True):
                suffix = ".jpg" if task in ("counting", "recognition") else ".png"
                names[f"{side}_image"] = f"images/{task}_{number:06d}_{side[0]}{suffix}"
                Image.open(run / "data" / name).convert("RGB").save(directory / names[f"{side}_image"], quality=90)
            meta: dict[str, Any] = {"target_answer": pair.target_answer, "source_answer": pair.source_answer}
            if pair.target_box is not None:
                meta |= {"target_bbox_xyxy": pair.target_box, "source_bbox_xyxy": pair.source_box}
            rows.append({"id": f"{task}_{number:06d}", "task": task, "prompt": pair.prompt, **names, "meta": meta})
        (directory / PUBLISHED_FILE).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return directory

    return write


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.cases_slow
def test_nothing_of_it_is_said_of_minimal_pairs_in_the_same_form(
    task: str, as_published: Callable[[str], Path]
) -> None:
    assert numbers_by_kind(as_published(task)) == {}


def scene(*discs: tuple[int, int], light: int = 0) -> np.ndarray:
    """Returns a floor that fades, with discs, as JPEG leaves it."""
    floor = np.linspace(90, 150, 320)[:, None, None] + light + np.zeros((320, 480, 3))
    picture = Image.fromarray(floor.astype(np.uint8))
    for x, y in discs:
        ImageDraw.Draw(picture).ellipse((x - 30, y - 30, x + 30, y + 30), fill=(20, 35, 90))
    file = BytesIO()
    picture.save(file, "JPEG", quality=80)
    return read_rgb(file)  # type: ignore[arg-type]


def test_outlines_tell_a_change_from_another_scene() -> None:
    both, first, elsewhere = scene((100, 100), (300, 200)), scene((100, 100)), scene((400, 80), (180, 240))
    own = outlines_of_own(both, first)
    assert own[0] == pytest.approx(0.5, abs=0.02)  # one of two equal outlines
    assert own[1] == 0.0
    assert outlines_of_own(first, both) == own[::-1]
    assert outlines_of_own(both, scene((100, 100), (300, 200), light=25)) == (0.0, 0.0)
    assert min(outlines_of_own(both, elsewhere)) > 0.95 > MAX_OWN_FRAC
