"""Which boxes does a text contain, and how much do two boxes overlap? Corners `x1, y1, x2, y2` in common notations.

Four numbers with or without brackets, two corners in brackets, named coordinates, and Qwen's `bbox_2d`. Coordinates are
compared as written: the caller must first map a model's coordinates to those of the gold box.
"""

import re
from collections.abc import Sequence

from eval.grading.latex import in_ascii

Box = tuple[float, float, float, float]
"""Left, top, right and bottom edge (xyxy)."""
MIN_IOU = 0.5
"""Two boxes with a larger IoU are considered equal (arXiv 2602.12395, appendix D)."""

_LABEL = re.compile(
    r"[\"'`]?\b(?:[xy](?:_?(?:[12]|min|max))|left|top|right|bottom)[\"'`]?\s*[:=]\s*"
    r"|(?:top|bottom|upper|lower)[-_ ](?:left|right)(?:\s+corner)?(?:\s+(?:is|at))?\s*[:=]?\s*",
    re.IGNORECASE,
)
"""The name of a coordinate or a corner: `x1=`, `"x_min":`, `top-left:`."""
_NUMBER = r"(?<![\w.])-?\d+(?:\.\d+)?(?:\s?px)?(?!\w|\.\d)"
_BETWEEN = r"(?:[,;()\[\]\s]|to\b|and\b|-(?=[\s(]))+"
_RUN = re.compile(rf"{_NUMBER}(?:{_BETWEEN}{_NUMBER})*")
"""Numbers separated only by commas, brackets and blanks."""


def boxes_in(text: str) -> list[Box]:
    """Returns the distinct boxes in a text, in order."""
    boxes: dict[Box, None] = {}
    for run in _RUN.finditer(_LABEL.sub(" ", in_ascii(text))):
        numbers = [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", run.group())]
        for start in range(0, len(numbers) - 3, 4) if len(numbers) % 4 == 0 else ():
            left, top, right, bottom = numbers[start : start + 4]
            if left < right and top < bottom:
                boxes[left, top, right, bottom] = None
    return list(boxes)


def iou(first: Box, second: Box) -> float:
    """Returns the intersection over union of two boxes; zero if neither has an area."""
    overlap = (*map(max, first[:2], second[:2]), *map(min, first[2:], second[2:]))
    shared = _area(overlap)
    union = _area(first) + _area(second) - shared
    return shared / union if union > 0 else 0.0


def _area(box: Sequence[float]) -> float:
    """Returns a box's area; zero where an edge stands on the wrong side."""
    left, top, right, bottom = box
    return max(0.0, right - left) * max(0.0, bottom - top)


def equal_boxes(answer: str, gold: str) -> bool | None:
    """Returns whether an answer is one box with IoU > 0.5 to the gold box; None if the gold is not one box."""
    right = boxes_in(gold)
    if len(right) != 1:
        return None
    boxes = boxes_in(answer)
    return len(boxes) == 1 and iou(boxes[0], right[0]) > MIN_IOU
