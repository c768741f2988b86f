"""Boxes: their spellings and their overlap."""

import time

import numpy as np
import pytest

from eval.grading.boxes import box_space, boxes_in, equal_boxes, iou


@pytest.mark.parametrize(
    "text",
    [
        "[10, 20, 30, 40]",
        "10,20,30,40",
        "(10, 20), (30, 40)",
        "from (10, 20) to (30, 40)",
        '{"bbox_2d": [10, 20, 30, 40], "label": "cat"}',
        "x1=10, y1=20, x2=30, y2=40",
        "top-left: (10, 20), bottom-right: (30, 40)",
        "10 20 30 40",
    ],
)
def test_a_box_is_read_in_its_usual_spellings(text: str) -> None:
    assert boxes_in(text) == [(10, 20, 30, 40)]


@pytest.mark.parametrize(
    "text", ["", "10, 20, 30", "[30, 40, 10, 20]", "no box", "10, 20, 30, 40, 50", "[1.2.3, 4, 5, 6]"]
)
def test_what_is_no_box(text: str) -> None:
    assert boxes_in(text) == []
    assert equal_boxes(text, "[10, 20, 30, 40]") is False
    assert equal_boxes("[10, 20, 30, 40]", text) is None


def test_the_overlap_is_that_of_counted_pixels() -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        masks, boxes = [], []
        for _ in range(2):
            left, top = rng.integers(0, 20, size=2)
            width, height = rng.integers(1, 20, size=2)
            mask = np.zeros((40, 40), dtype=bool)
            mask[top : top + height, left : left + width] = True
            masks.append(mask)
            boxes.append((float(left), float(top), float(left + width), float(top + height)))
        expected = (masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum()
        assert iou(boxes[0], boxes[1]) == pytest.approx(expected)
        written = [", ".join(str(side) for side in box) for box in boxes]
        assert equal_boxes(written[0], written[1]) is bool(expected > 0.5)


def test_a_box_without_an_area_overlaps_nothing() -> None:
    assert iou((0, 0, 0, 0), (0, 0, 0, 0)) == 0


@pytest.mark.parametrize(
    "text",
    [
        "The top-left corner is at (10, 20) and the bottom-right corner is at (30, 40).",
        "(10, 20) is the top-left corner and (30, 40) is the bottom-right corner",
        "bottom-right: (30, 40), top-left: (10, 20)",
        "upper right (30, 20), lower left (10, 40)",
        "x1=10, x2=30, y1=20, y2=40",
        '{"x": 10, "y": 20, "width": 20, "height": 20}',
        "left: 10, top: 20, right: 30, bottom: 40",
        '{"box_2d": [20, 10, 40, 30]}',
        "左上角(10, 20)，右下角(30, 40)",
        "(x1, y1) = (10, 20), (x2, y2) = (30, 40)",
        "[10, 20, 30, 40], from top-left (10, 20) to bottom-right (30, 40)",
    ],
)
def test_a_box_with_named_corners_or_coordinates_is_read_by_the_names(text: str) -> None:
    assert boxes_in(text) == [(10, 20, 30, 40)]


@pytest.mark.parametrize(
    "text",
    [
        "top-left (10, 20)",
        "top-left (10, 20) and top-right (30, 20)",
        "top-left (30, 40), bottom-right (10, 20)",
        "x1=10, y1=20, x2=30",
        "left: 30, top: 20, right: 10, bottom: 40",
        '{"x": 10, "y": 20, "width": 20}',
    ],
)
def test_names_without_a_whole_box(text: str) -> None:
    assert boxes_in(text) == []


def test_several_boxes_with_names_are_all_read() -> None:
    text = "x1=1, y1=2, x2=3, y2=4; x1=5, y1=6, x2=7, y2=8"
    assert boxes_in(text) == [(1, 2, 3, 4), (5, 6, 7, 8)]
    corners = "top-left (1, 2), bottom-right (3, 4); top-left (5, 6), bottom-right (7, 8)"
    assert boxes_in(corners) == [(1, 2, 3, 4), (5, 6, 7, 8)]


def test_a_gold_box_is_written_in_the_coordinates_of_a_model_and_keeps_its_overlaps() -> None:
    thousand = box_space("thousand", image_size=(400, 200), resized_size=(420, 196))
    assert thousand.gold_text("[50, 50, 100, 100]") == "125, 250, 250, 500"
    assert thousand.gold_text("no box") == "no box"
    assert equal_boxes("125, 250, 250, 500", thousand.gold_text("50, 50, 100, 100")) is True
    rng = np.random.default_rng(1)
    for _ in range(50):
        left, top = rng.integers(0, 100, size=(2, 2))
        boxes = [(float(x), float(y), float(x + 30), float(y + 40)) for x, y in zip(left, top, strict=True)]
        mapped = [thousand.to_model(box) for box in boxes]
        assert iou(mapped[0], mapped[1]) == pytest.approx(iou(boxes[0], boxes[1]))
    with pytest.raises(ValueError, match="box space 'thousands' is unknown; expected one of resized, thousand, image"):
        box_space("thousands", image_size=(1, 1), resized_size=(1, 1))


@pytest.mark.parametrize(
    "piece", ["top-left ", "x1=1 ", "(1,2)", "(1, 2) is ", "left ", "box_2d [1,", "1 to ", "左上角"]
)
def test_boxes_without_end_are_read_in_no_time(piece: str) -> None:
    begin = time.monotonic()
    boxes_in(piece * (100_000 // len(piece)))
    assert time.monotonic() - begin < 2
