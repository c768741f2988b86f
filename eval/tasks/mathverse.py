"""MathVerse testmini: 788 problems of geometry and functions, each in five versions that move information from the
text into the figure (arXiv 2403.14624): Text Dominant, Text Lite, Vision Intensive, Vision Dominant, Vision Only.

Columns: `sample_index`, `problem_index`, `problem_version`, `question` (empty in Vision Only, where it is in the
figure), `image`, `answer` (for a choice, its letter), `question_type` (multi-choice, free-form), `metadata`,
`query_wo`, `query_cot`, `question_for_eval` (the question in words, in every version). All 3,940 samples are asked, as
papers report testmini: no number of correct answers out of 788 gives the 37.0 % of arXiv 2602.12395, so that figure
does not refer to a single version. The five versions of one problem are a cluster; `meta` names the version of each.
The text-only version, a separate file, is not included.
"""

import re

from data_builders.prompt_sets.choices import ASK_LETTER, LETTERS
from data_builders.prompt_sets.prompts import Prompt
from eval.tasks.benchmark import Benchmark, Row, free_answer_kind, named_choice

IN_FIGURE = "Answer the question that stands in the image."
_CHOICES = re.compile(r"\bChoices?\s*:(.*)", re.DOTALL)
_OPTION = re.compile(r"^\s*\(?([A-J])\s*[:.)]", re.MULTILINE)


def read_mathverse(row: Row, number: str) -> Prompt:
    is_choice = row["question_type"] == "multi-choice"
    text, answer = row["question"].strip(), row["answer"].strip()
    choices = listed_choices(row.get("question_for_eval") or text) if is_choice else ()
    metadata = row.get("metadata") or {}
    facts = {name: metadata[name] for name in ("subject", "subfield", "source") if metadata.get(name)}
    return Prompt(
        id=str(row["sample_index"]),
        ability="vision-to-reasoning",
        question=(text or IN_FIGURE) + (f"\n{ASK_LETTER}" if is_choice else ""),
        answer=named_choice(answer, choices) if choices else answer,
        answer_kind="choice" if is_choice else free_answer_kind(answer),
        choices=choices,
        meta={"cluster": str(row["problem_index"]), "version": row["problem_version"], **facts},
    )


def listed_choices(question: str) -> tuple[str, ...]:
    """Returns the options listed after `Choices:`, or none if they are not lettered consecutively from A."""
    listed = _CHOICES.search(question)
    if listed is None:
        return ()
    marks = list(_OPTION.finditer(listed[1]))
    ends = [mark.start() for mark in marks[1:]] + [len(listed[1])]
    texts = tuple(listed[1][mark.end() : end].strip() for mark, end in zip(marks, ends, strict=True))
    is_run = "".join(mark[1] for mark in marks) == LETTERS[: len(marks)]
    return texts if is_run and len(texts) > 1 and all(texts) else ()


MATHVERSE = Benchmark(
    repo="AI4Math/MathVerse",
    revision="268dfc55b62296be3bdf6406d6dea07bd06a7d64",
    files=("testmini.parquet", "testmini.json"),
    columns=("sample_index", "problem_index", "problem_version", "question", "answer", "question_type"),
    read=read_mathverse,
    image_columns=("image",),
)
