"""Is this answer right? The grader shared by rewards, scores and probes.

The public names are exported here. `grader.py` has `grade`, `answers.py` extracts the answer from a reply, and one
module per kind of answer compares it with the gold. Nothing in this package generates replies or reads files.
"""

from eval.grading.answers import find_answer, is_well_formed, last_boxed
from eval.grading.boxes import (
    BOX_SPACES,
    IMAGE_SPACE,
    MIN_IOU,
    BoxSpace,
    Size,
    box_space,
    boxes_in,
    check_box_space,
    iou,
)
from eval.grading.grader import CORRECT, INCORRECT, KINDS, UNSCORED, Verdict, grade, is_gradable, normalise_text
from eval.grading.latex import plain
from eval.grading.markup import OPENED, continued, opens_thoughts, text_after_thoughts
from eval.grading.mathematics import MAX_JUDGES
from eval.grading.options import named_options, yes_or_no
from eval.grading.quantities import parse_number, parse_quantity, rounded

__all__ = [
    "BOX_SPACES", "CORRECT", "IMAGE_SPACE", "INCORRECT", "KINDS", "MAX_JUDGES", "MIN_IOU",
    "OPENED", "UNSCORED", "BoxSpace", "Size", "Verdict", "box_space", "boxes_in", "check_box_space", "continued",
    "find_answer", "grade", "iou", "is_gradable", "is_well_formed", "last_boxed", "named_options", "normalise_text",
    "opens_thoughts", "parse_number", "parse_quantity", "plain", "rounded", "text_after_thoughts", "yes_or_no",
]  # fmt: skip
