"""Which answers are generated together? Problems under configurations as rows of batches, and a row's record.

Batches are formed from all rows, done or not, so a continued run batches as an undisturbed one.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from analyze.probes.inputs import Problem
from analyze.skip.plan import Configuration
from analyze.skip.tables import PLAIN
from eval.grading import grade
from tracking.records import Record

if TYPE_CHECKING:
    from eval.replies.generation import Generation


@dataclass(frozen=True, kw_only=True)
class Row:
    """One answer: a problem, and what is left out."""

    problem: Problem
    configuration: Configuration | None
    """None for the plain model, without the probe's hooks."""

    @property
    def name(self) -> str:
        """The configuration's name in tables."""
        return self.configuration.name if self.configuration else PLAIN

    @property
    def key(self) -> str:
        return f"{self.problem.key}/{self.name}"


def all_rows(problems: Sequence[Problem], configurations: Sequence[Configuration]) -> list[Row]:
    """Returns every row, in the order its record is to stand: the plain model's first."""
    return [
        Row(problem=problem, configuration=configuration)
        for problem in problems
        for configuration in (None, *configurations)
    ]


def make_units(
    problems: Sequence[Problem], texts: Mapping[str, str], configurations: Sequence[Configuration], batch_size: int
) -> list[list[Row]]:
    """Returns the batches of one task, plain ones first: prompts of similar length and equally many images together.

    The rows of one prompt stand beside each other, since what they share is computed once.

    Args:
        problems: of the task.
        texts: rendered prompts, by the key of their problem.
        configurations: what is left out in turn.
        batch_size: rows.
    """
    from eval.replies.generation import make_batches

    prompts, rendered = [problem.prompt for problem in problems], [texts[problem.key] for problem in problems]
    units = [
        [Row(problem=problems[number], configuration=None) for number in batch]
        for batch in make_batches(prompts, rendered, batch_size)
    ]
    num_plain = len(units)
    for (number,) in make_batches(prompts, rendered, 1):
        problem = problems[number]
        for configuration in configurations:
            last = units[-1] if len(units) > num_plain else None
            if last is None or len(last) == batch_size or num_images(last[-1]) != len(problem.prompt.images):
                units.append(last := [])
            last.append(Row(problem=problem, configuration=configuration))
    return units


def num_images(row: Row) -> int:
    return len(row.problem.prompt.images)


def row_record(row: Row, *, text: str, dtype: str, answer: "Generation") -> Record:
    """Returns what is kept of one answer, graded."""
    prompt = row.problem.prompt
    verdict = grade(answer.response, prompt.answer, prompt.answer_kind, prompt.choices, prompt.precision)
    return {
        "key": row.key,
        **row.problem.head,
        "configuration": row.name,
        "gold": prompt.answer,
        "answer_kind": prompt.answer_kind,
        "prompt_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "dtype": dtype,
        "response": answer.response,
        "num_tokens": answer.num_tokens,
        "finish_reason": answer.finish_reason,
        "extracted": verdict.extracted,
        "status": verdict.status,
        "rule": verdict.rule,
    }
