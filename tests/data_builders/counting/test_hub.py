"""Pairs of two unrelated scenes out of a data set of scenes and counts, for reproduction."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_builders.counting.build import COUNTING, CountingArguments
from data_builders.counting.check import check_counting
from data_builders.counting.hub import WINDOW_ROWS, read_count
from data_builders.pairs.files import read_pairs
from data_builders.pairs.pair import Pair
from data_builders.pairs.pictures import PairPictures
from data_builders.pairs.sets import SPLITS, Drawing, PairSetArguments, build_pair_set
from data_builders.pairs.vision_grid import open_vision_grid

ROWS_PER_PAIR = WINDOW_ROWS * len(SPLITS)
NUM_PAIRS = 4


def picture(row: int) -> bytes:
    """Returns a page with one square, at a place of its own in each window of rows."""
    pixels = np.full((64, 128, 3), 240, dtype=np.uint8)
    top, left = row % WINDOW_ROWS // 4 * 32, row % 4 * 32
    pixels[top + 6 : top + 26, left + 6 : left + 26] = (20 + row, 60, 90)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG")
    return stream.getvalue()


def count_of(row: int) -> int:
    return 3 + row % 5


def rows(num_rows: int) -> list[dict[str, Any]]:
    return [
        {
            "images": [{"bytes": picture(row), "path": None}],
            "answer": f"There are {count_of(row)} items in the image.",
            "problem": "How many items are there in the image?",
        }
        for row in range(num_rows)
    ]


@pytest.fixture(scope="module")
def parquet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = tmp_path_factory.mktemp("scenes")
    pq.write_table(pa.Table.from_pylist(rows(ROWS_PER_PAIR * NUM_PAIRS)), folder / "train.parquet")
    return folder


def build(directory: Path, scenes: Path, num_pairs: int, *, split: str = "test", **own: Any) -> list[Pair]:
    directory.mkdir()
    arguments = CountingArguments(scenes=str(scenes), **own)
    grid = open_vision_grid("qwen2_5_vl")
    drawing = Drawing(task="counting", seed=0, split=split, grid=grid, work_dir=directory.parent / "work")
    shared = PairSetArguments(num_pairs=num_pairs, num_workers=1, split=split)
    build_pair_set(directory, COUNTING, arguments, drawing, shared)
    return read_pairs(directory)


def test_pairs_hold_the_stored_bytes_and_counts_of_two_rows(parquet: Path, tmp_path: Path) -> None:
    pairs = build(tmp_path / "set", parquet, NUM_PAIRS)
    assert len(pairs) == NUM_PAIRS
    for number, pair in enumerate(pairs):
        assert pair.meta is not None
        assert pair.meta["minimal"] is False
        for side in ("target", "source"):
            row = pair.meta[f"{side}_row"]
            assert row // WINDOW_ROWS == number * len(SPLITS) + SPLITS.index("test")
            assert getattr(pair, f"{side}_answer") == str(count_of(row))
            assert (tmp_path / "set" / getattr(pair, f"{side}_image")).read_bytes() == picture(row)
        assert [kind for kind, _ in check_counting(PairPictures(tmp_path / "set", pair))] == ["unrelated_scenes"]


def test_splits_share_no_row_and_a_pair_does_not_depend_on_how_many_follow(parquet: Path, tmp_path: Path) -> None:
    seen = set()
    for split in SPLITS:
        (tmp_path / split).mkdir()
        pairs = build(tmp_path / split / "set", parquet, 2, split=split)
        rows_of_it = {(pair.meta or {})[f"{side}_row"] for pair in pairs for side in ("target", "source")}
        assert not seen & rows_of_it
        seen |= rows_of_it
    (tmp_path / "more").mkdir()
    assert build(tmp_path / "more" / "set", parquet, NUM_PAIRS)[:2] == read_pairs(tmp_path / "test" / "set")


def test_lines_of_json_name_their_pictures_by_path(tmp_path: Path) -> None:
    folder = tmp_path / "scenes"
    (folder / "images").mkdir(parents=True)
    lines = []
    for row in range(ROWS_PER_PAIR):
        (folder / "images" / f"{row}.jpg").write_bytes(picture(row))
        lines.append(json.dumps({"image": f"images/{row}.jpg", "count": count_of(row)}) + "\n")
    (folder / "rows.jsonl").write_text("".join(lines), encoding="utf-8")
    pairs = build(tmp_path / "set", folder, 1, image_column="image", count_column="count")
    assert pairs[0].target_answer == str(count_of((pairs[0].meta or {})["target_row"]))


def test_what_a_data_set_lacks_is_said_in_one_line(parquet: Path, tmp_path: Path) -> None:
    wrong: list[tuple[dict[str, Any], int, str]] = [
        ({}, NUM_PAIRS + 1, f"rows make {NUM_PAIRS} pairs of split test"),
        ({"count_column": "number"}, 1, "has no column 'number'; it has"),
        ({"count_column": "images"}, 1, "expected a text with one number"),
        ({"image_column": "answer"}, 1, "is no picture in JPEG or PNG"),
    ]
    for number, (own, num_pairs, told) in enumerate(wrong):
        with pytest.raises(ValueError, match=told):
            build(tmp_path / str(number), parquet, num_pairs, **own)
    with pytest.raises(ValueError, match="neither a folder nor a hub id"):
        build(tmp_path / "nowhere", Path("no such place"), 1)


def test_a_fingerprint_follows_the_contents_and_not_the_place(parquet: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    (moved / "train.parquet").write_bytes((parquet / "train.parquet").read_bytes())
    first, second = (COUNTING.describe(CountingArguments(scenes=str(place))) for place in (parquet, moved))
    assert first == second
    assert str(parquet) not in json.dumps(first)
    changed = tmp_path / "changed"
    changed.mkdir()
    (changed / "train.parquet").write_bytes(b"other")
    assert COUNTING.describe(CountingArguments(scenes=str(changed))) != first


@pytest.mark.parametrize(
    ("value", "count"),
    [(7, 7), ("7", 7), ("There are 10 items.", 10), ("Three.", 3), ("<answer> 3 </answer> so 3", 3)],
)
def test_counts_are_read_out_of_free_text(value: Any, count: int) -> None:
    assert read_count(value) == count


@pytest.mark.parametrize("value", [None, True, "many", "3 or 4", "", 2.5, ["3"]])
def test_what_holds_no_single_count_is_refused(value: Any) -> None:
    assert read_count(value) is None
