"""Boxes: their spellings and their overlap."""

import numpy as np
import pytest

from eval.grading.boxes import boxes_in, equal_boxes, iou


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
