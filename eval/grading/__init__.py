"""Is this answer right? The grader shared by rewards, scores and probes.

The public names are exported here. `grader.py` has `grade`, `answers.py` extracts the answer from a reply, and one
module per kind of answer compares it with the gold. Nothing in this package generates replies or reads files.
"""

from eval.grading.answers import find_answer, is_well_formed, last_boxed
from eval.grading.boxes import MIN_IOU, boxes_in, iou
from eval.grading.grader import CORRECT, INCORRECT, KINDS, UNSCORED, Verdict, grade, is_gradable
from eval.grading.mathematics import MAX_JUDGES
from eval.grading.quantities import parse_number

__all__ = [
    "CORRECT", "INCORRECT", "KINDS", "MAX_JUDGES", "MIN_IOU", "UNSCORED", "Verdict", "boxes_in", "find_answer",
    "grade", "iou", "is_gradable", "is_well_formed", "last_boxed", "parse_number",
]  # fmt: skip
