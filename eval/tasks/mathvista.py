"""MathVista testmini: 1,000 questions about images (arXiv 2310.02255), in two categories that the paper separates:
`general-vqa` (460) measures vision, `math-targeted-vqa` (540) vision-to-reasoning.

Columns: `pid`, `question`, `image` (a path), `decoded_image` (on the hub), `choices`, `unit`, `precision` (decimals of
a floating-point answer), `answer` (for a choice, its text), `question_type` (multi_choice, free_form), `answer_type`
(text, integer, float, list), `metadata` (`category`, `source`, …). The information in the published hints (the form
of the answer, its unit, its decimals) is given after the question, in our own words.
"""

from data_builders.prompt_sets.choices import ask_with_choices
from data_builders.prompt_sets.prompts import Prompt
from eval.tasks.benchmark import Benchmark, Row

ABILITIES = {"general-vqa": "vision", "math-targeted-vqa": "vision-to-reasoning"}
"""Category -> the ability it measures (Table 1 of arXiv 2602.12395)."""
KINDS = {"text": "text", "integer": "number", "float": "number", "list": "list"}
FACTS = ("source", "task", "context", "grade", "language")


def read_mathvista(row: Row, number: str) -> Prompt:
    metadata, choices = row["metadata"], tuple(row["choices"] or ())
    if metadata["category"] not in ABILITIES:
        raise ValueError(f"category is {metadata['category']!r}; expected one of {', '.join(ABILITIES)}")
    precision = None if row["precision"] is None else int(row["precision"])
    question = row["question"] + (f" (unit: {row['unit']})" if row["unit"] else "")
    answer_type = row["answer_type"]
    meta = {"category": metadata["category"], **{name: metadata[name] for name in FACTS if name in metadata}}
    return Prompt(
        id=str(row["pid"]),
        ability=ABILITIES[metadata["category"]],
        question=ask_with_choices(question, choices) if choices else f"{question}\n{_form(answer_type, precision)}",
        answer=row["answer"],
        answer_kind="choice" if choices else KINDS[answer_type],
        choices=choices,
        precision=precision,
        meta=meta | ({"unit": row["unit"]} if row["unit"] else {}),
    )


def _form(answer_type: str, precision: int | None) -> str:
    if answer_type == "float":
        places = "one decimal place" if precision == 1 else f"{precision} decimal places"
        return f"Answer with a number, given to {places}."
    return {"integer": "Answer with a whole number.", "list": "Answer with a list, such as [1, 2, 3]."}.get(
        answer_type, "Answer with a word or a short phrase."
    )


MATHVISTA = Benchmark(
    repo="AI4Math/MathVista",
    revision="2b6ad69445fbb5695c9b165475e8decdbeb97747",
    files=("data/testmini-*.parquet", "testmini.json", "annot_testmini.json", "mathvista_testmini.json"),
    columns=("pid", "question", "choices", "unit", "precision", "answer", "answer_type", "metadata"),
    read=read_mathvista,
    image_columns=("decoded_image", "image"),
)
