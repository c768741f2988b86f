"""What is kept of an answer with parts left out? The whole reply, graded, under the name of its configuration."""

import hashlib
from typing import TYPE_CHECKING

from eval.grading import BoxSpace
from eval.replies.answering import graded
from tracking.records import Record

if TYPE_CHECKING:
    from analyze.skip.plan import Row
    from eval.replies.generation import Generation


def row_record(row: "Row", *, text: str, dtype: str, answer: "Generation", space: BoxSpace | None = None) -> Record:
    """Returns what is kept of one answer, graded.

    Args:
        text: the rendered prompt.
        space: the coordinates in which the model writes boxes, if they are not the gold's.
    """
    prompt = row.problem.prompt
    return {
        "key": row.key,
        **row.problem.head,
        "configuration": row.name,
        "gold": prompt.answer,
        "answer_kind": prompt.answer_kind,
        "prompt_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "dtype": dtype,
        **graded(prompt, answer, text=text, space=space),
    }
