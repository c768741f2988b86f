"""GSM8K test: 1,319 word problems of grade school (arXiv 2110.14168). Columns `question`, `answer`: a worked solution
that ends in `#### GOLD`, a number. Ids are the line numbers, so the same problem has the same id for every model.
"""

from data_builders.prompt_sets.prompts import Prompt
from eval.tasks.benchmark import Benchmark, Row


def read(row: Row, number: str) -> Prompt:
    """Returns a row's prompt.

    Raises:
        ValueError: if the answer is not a solution with a result.
    """
    solution, mark, gold = row["answer"].rpartition("####")
    if not mark or not solution.strip():
        raise ValueError("answer has no '#### GOLD' after a solution")
    return Prompt(id=number, ability="reasoning", question=row["question"], answer=gold.strip(), answer_kind="number")


GSM8K = Benchmark(
    repo="openai/gsm8k",
    revision="e53f048856ff4f594e959d75785d2c2d37b678ee",
    files=("main/test-*.parquet", "test.jsonl", "gsm8k_test.jsonl"),
    columns=("question", "answer"),
    read=read,
)
