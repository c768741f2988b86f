"""MATH-500: the 500 problems of Hendrycks MATH used as PRM800K's test set (arXiv 2305.20050), answers in LaTeX. Columns
`problem`, `solution`, `answer`, `subject`, `level`. Ids are the line numbers.
"""

from data_builders.prompt_sets.prompts import Prompt
from eval.tasks.benchmark import Benchmark, Row


def read(row: Row, number: str) -> Prompt:
    """Returns a row's prompt."""
    meta: Row = {name: row[name] for name in ("subject", "level") if name in row}
    return Prompt(
        id=number, ability="reasoning", question=row["problem"], answer=row["answer"], answer_kind="math",
        meta=meta or None,
    )  # fmt: skip


MATH500 = Benchmark(
    repo="HuggingFaceH4/MATH-500",
    revision="ff5b20257d8185524591543f8ff5993951537bb8",
    files=("test.jsonl", "math500_test.jsonl"),
    columns=("problem", "answer"),
    read=read,
)
