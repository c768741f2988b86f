"""The sheet shows the pairs: images side by side with their boxes, texts below."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_builders.contact_sheet import main
from data_builders.pairs.files import write_pairs
from data_builders.pairs.pair import Pair
from data_builders.pairs.sheet import (
    BOX_RGB,
    GAP_PIXELS,
    MARGIN_PIXELS,
    PAGE_RGB,
    PICTURE_PIXELS,
    _wrap,
    draw_sheet,
    sheet_font,
)

RED, BLUE = (220, 30, 30), (30, 30, 220)


def a_set(directory: Path, num_pairs: int, size: tuple[int, int] = (100, 50), **changes: object) -> list[Pair]:
    pairs = []
    for number in range(num_pairs):
        names = (f"{number}-t.png", f"{number}-s.png")
        for name, rgb in zip(names, (RED, BLUE), strict=True):
            Image.new("RGB", size, rgb).save(directory / name)
        values = {
            "id": f"pair-{number}", "task": "ocr", "prompt": "Read the word .", "target_image": names[0],
            "source_image": names[1], "target_answer": "tensor", "source_answer": "vector",
        }  # fmt: skip
        pairs.append(Pair(**{**values, **changes}))  # type: ignore[arg-type]
    write_pairs(directory, pairs)
    return pairs


def test_target_and_source_stand_side_by_side_as_large_as_they_may_be(tmp_path: Path) -> None:
    sheet = np.asarray(draw_sheet(tmp_path, a_set(tmp_path, 2), columns=2))
    width, height = PICTURE_PIXELS, PICTURE_PIXELS // 2
    middle = MARGIN_PIXELS + height // 2
    for column in range(2):
        left = MARGIN_PIXELS + column * (2 * width + GAP_PIXELS + MARGIN_PIXELS)
        assert tuple(sheet[middle, left + width // 2]) == RED
        assert tuple(sheet[middle, left + width + GAP_PIXELS + width // 2]) == BLUE
        assert tuple(sheet[middle, left + width + GAP_PIXELS // 2]) == PAGE_RGB
    assert (sheet[MARGIN_PIXELS + height + 2 :].min(axis=-1) < 128).any()  # the texts


def test_rows_fill_from_the_left_and_a_single_pair_leaves_no_empty_column(tmp_path: Path) -> None:
    pairs = a_set(tmp_path, 4)
    wide, single = draw_sheet(tmp_path, pairs, columns=3), draw_sheet(tmp_path, pairs[:1], columns=3)
    row = single.height - MARGIN_PIXELS
    assert wide.height == 2 * row + MARGIN_PIXELS
    assert wide.width == 3 * (single.width - MARGIN_PIXELS) + MARGIN_PIXELS
    second_row = np.asarray(wide)[row + MARGIN_PIXELS :]
    assert (second_row[:, : single.width] != 255).any()
    assert (second_row[:, single.width :] == 255).all()


def test_boxes_stand_where_they_are_in_the_picture(tmp_path: Path) -> None:
    pairs = a_set(tmp_path, 1, (400, 400), task="grounding", target_box=(40, 80, 200, 160), source_box=(0, 0, 80, 80))
    sheet = np.asarray(draw_sheet(tmp_path, pairs))
    drawn = (sheet == BOX_RGB).all(axis=-1)[:, : MARGIN_PIXELS + PICTURE_PIXELS]
    rows, columns = np.nonzero(drawn)
    assert (columns.min() - MARGIN_PIXELS, rows.min() - MARGIN_PIXELS) == (20, 40)
    assert (columns.max() - MARGIN_PIXELS, rows.max() - MARGIN_PIXELS) == (99, 79)  # the last pixels inside


def test_a_long_prompt_is_broken_into_lines_and_none_of_its_words_is_lost() -> None:
    font = sheet_font()
    text = "Locate the object: yellow pentagon. Return bounding box as x1,y1,x2,y2. " * 3 + "extraordinarily" * 5
    lines = _wrap(text, 200, font)
    assert " ".join(lines).split() == text.split()
    assert all(font.getlength(line) <= 200 for line in lines[:-1])


def test_the_command_writes_as_many_rows_as_are_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = a_set(tmp_path, 5)
    main([str(tmp_path), "--rows", "2", "--columns", "2", "--output", str(tmp_path / "out" / "sheet.png")])
    assert Image.open(tmp_path / "out" / "sheet.png").size == draw_sheet(tmp_path, pairs[:4], columns=2).size
    assert "sheet.png" in capsys.readouterr().out


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    a_set(tmp_path, 2)
    with pytest.raises(ValueError, match="rows is 0; it must be at least 1"):
        main([str(tmp_path), "--rows", "0", "--output", str(tmp_path / "sheet.png")])
    (tmp_path / "1-s.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"pair-1: 1-s\.png is missing or cannot be decoded"):
        main([str(tmp_path), "--output", str(tmp_path / "sheet.png")])
    assert not (tmp_path / "sheet.png").exists()
