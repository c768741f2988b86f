"""MathVision (MATH-V): competition problems with an image (arXiv 2402.14804), all 3,040, or testmini with 304.

Columns: `id`, `question`, `options`, `image` (a path), `decoded_image` (on the hub), `answer` (for a choice, its
letter), `solution`, `level`, `subject`. `mathvision` is the full test split, which is comparable with Table 3 of arXiv
2602.12395: no number of correct answers out of 304 gives 21.0 %. Markers such as `<image1>` stay in the text as
published: they refer to parts of the single image.
"""

from dataclasses import replace

from data_builders.prompt_sets.choices import ask_with_choices
from data_builders.prompt_sets.prompts import Prompt
from eval.tasks.benchmark import Benchmark, Row, free_answer_kind, named_choice


def read_mathvision(row: Row, number: str) -> Prompt:
    options, answer = tuple(row["options"] or ()), row["answer"]
    return Prompt(
        id=str(row["id"]),
        ability="vision-to-reasoning",
        question=ask_with_choices(row["question"], options) if options else row["question"],
        answer=named_choice(answer, options) if options else answer,
        answer_kind="choice" if options else free_answer_kind(answer),
        choices=options,
        meta={name: row[name] for name in ("subject", "level") if row.get(name) is not None} or None,
    )


MATHVISION = Benchmark(
    repo="MathLLMs/MathVision",
    revision="0c681f39d3dacd336abf62ceb833e40320c8599f",
    files=("data/test-*.parquet", "data/test.jsonl", "test.jsonl"),
    columns=("id", "question", "options", "answer"),
    read=read_mathvision,
    image_columns=("decoded_image", "image"),
)
MATHVISION_TESTMINI = replace(MATHVISION, files=("data/testmini-*.parquet", "data/testmini.jsonl", "testmini.jsonl"))
