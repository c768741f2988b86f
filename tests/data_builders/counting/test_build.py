"""Counting pairs: balanced counts, one scene a pair, the same bytes however they are built."""

import hashlib
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from data_builders.counting.build import COUNTING, CountingArguments, draw_change
from data_builders.counting.check import check_counting
from data_builders.pairs.files import read_pairs
from data_builders.pairs.pair import to_line
from data_builders.pairs.pictures import PairPictures
from data_builders.pairs.sets import Drawing, PairSetArguments, build_pair_set
from data_builders.pairs.vision_grid import open_vision_grid

NUM_PAIRS = 20
OWN = CountingArguments(image_size="96x64", num_samples=4)


def drawing_in(directory: Path, seed: int = 0) -> Drawing:
    grid = open_vision_grid("qwen2_5_vl")
    return Drawing(task="counting", seed=seed, split="test", grid=grid, work_dir=directory / "work")


def build(directory: Path, *, num_pairs: int, num_workers: int) -> Path:
    directory.mkdir()
    shared = PairSetArguments(num_pairs=num_pairs, num_workers=num_workers)
    build_pair_set(directory, COUNTING, OWN, drawing_in(directory), shared)
    return directory


@pytest.fixture(scope="module")
def pairs_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("counting") / "one", num_pairs=NUM_PAIRS, num_workers=1)


def digests(directory: Path) -> dict[str, str]:
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_ten_pairs_in_a_row_have_each_target_count_once_and_half_the_larger_one(tmp_path: Path) -> None:
    drawing = drawing_in(tmp_path)
    changes = [draw_change(drawing, index, 3) for index in range(200)]
    for start in range(0, 200, 10):
        block = changes[start : start + 10]
        assert sorted(change.target for change in block) == list(range(1, 11))
        assert sum(change.target > change.source for change in block) == 5
    assert all(1 <= change.source <= 10 for change in changes)
    steps = Counter(abs(change.target - change.source) for change in changes)
    assert set(steps) == {1, 2, 3}
    assert min(steps.values()) > 30
    assert {draw_change(drawing, index, 1).target - draw_change(drawing, index, 1).source for index in range(20)} == {
        -1,
        1,
    }


def test_every_pair_is_without_defects(pairs_folder: Path) -> None:
    pairs = read_pairs(pairs_folder)
    assert len(pairs) == NUM_PAIRS
    for pair in pairs:
        assert list(check_counting(PairPictures(pairs_folder, pair))) == [], pair.id


@pytest.mark.slow
def test_two_processes_write_the_same_bytes_as_one(pairs_folder: Path, tmp_path: Path) -> None:
    two = digests(build(tmp_path / "two", num_pairs=NUM_PAIRS, num_workers=2))
    assert two == digests(pairs_folder)
    assert len(two) == 5 * NUM_PAIRS + 3


def test_a_pair_depends_on_its_number_and_the_seed_alone(pairs_folder: Path, tmp_path: Path) -> None:
    stored = read_pairs(pairs_folder)[7]
    drawn = COUNTING.open(OWN, drawing_in(tmp_path))(7)
    meta = {name: value for name, value in (stored.meta or {}).items() if name in (drawn.pair.meta or {})}
    assert to_line(replace(stored, meta=meta)) == to_line(drawn.pair)
    image = drawn.files[drawn.pair.target_image]
    assert not isinstance(image, bytes)
    assert image.tobytes() == PairPictures(pairs_folder, stored).target.tobytes()
    other = COUNTING.open(OWN, drawing_in(tmp_path, seed=1))(7)
    assert other.pair.meta != drawn.pair.meta


def test_datasets_reads_the_lines_with_one_schema(pairs_folder: Path, tmp_path: Path) -> None:
    from datasets import load_dataset

    loaded = load_dataset(
        "json", data_files=str(pairs_folder / "pairs.jsonl"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert loaded.num_rows == NUM_PAIRS
    first = json.loads((pairs_folder / "pairs.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert loaded[0]["meta"]["scene"]["things"] == first["meta"]["scene"]["things"]
    assert loaded[0]["meta"]["removed"] == first["meta"]["removed"]


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"num_samples": 32}, "num_samples is 32; expected a square number"),
        ({"image_size": "64x64"}, "image_size is 64x64; expected at least 64 pixels each way, and a width of 1.2"),
        ({"image_size": "640x200"}, "image_size is 640x200; expected"),
        ({"max_change": 10}, "max_change is 10; expected 1 to 9"),
        ({"min_visible_frac": 1.0}, "min_visible_frac is 1.0"),
        ({"min_visible_pixels": 0}, "min_visible_pixels is 0"),
        ({"scenes": " "}, "scenes is empty"),
    ],
)
def test_what_cannot_be_drawn_is_refused(changed: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        CountingArguments(**changed)  # type: ignore[arg-type]


def test_a_pair_that_finds_no_scene_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_builders.counting.layout.NUM_DRAWS", 3)
    crowded = CountingArguments(image_size="96x64", num_samples=4, min_visible_frac=0.9, min_visible_pixels=400)
    draw = COUNTING.open(crowded, drawing_in(tmp_path))
    index = next(number for number in range(20) if draw_change(drawing_in(tmp_path), number, 3).target == 10)
    with pytest.raises(ValueError, match=rf"pair counting-{index:06d}: no scene of 10 objects in 96 x 64"):
        draw(index)


def test_options_of_foreign_scenes_are_no_part_of_what_is_rendered() -> None:
    assert COUNTING.describe(OWN) == {
        "min_visible_pixels": 200,
        "min_visible_frac": 0.35,
        "max_change": 3,
        "image_size": "96x64",
        "num_samples": 4,
    }
