"""How do GSM8K and MATH-500 become prompts? Their published JSONL files read as they are, one prompt a line.

    gsm8k    `question`, `answer`: a worked solution that ends in `#### GOLD` (openai/grade-school-math); numbers
    math500  `problem`, `answer` in LaTeX (Hendrycks MATH, the PRM800K split of 500 problems); mathematics

Ids are the line numbers, so every model meets the same problem under the same id. The style of the question is chosen
where the prompt is put to a model (`eval/prompting.py`), and never here.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_builders.prompts import Prompt

REASONING = "reasoning"


def _read_gsm8k(row: dict[str, Any], number: str) -> Prompt:
    solution, mark, gold = row["answer"].rpartition("####")
    if not mark or not solution.strip():
        raise ValueError("answer has no '#### GOLD' after a solution")
    return Prompt(id=number, ability=REASONING, question=row["question"], answer=gold.strip(), answer_kind="number")


def _read_math500(row: dict[str, Any], number: str) -> Prompt:
    meta: dict[str, Any] = {name: row[name] for name in ("subject", "level") if name in row}
    return Prompt(
        id=number, ability=REASONING, question=row["problem"], answer=row["answer"], answer_kind="math",
        meta=meta or None,
    )  # fmt: skip


FORMATS: dict[str, Callable[[dict[str, Any], str], Prompt]] = {"gsm8k": _read_gsm8k, "math500": _read_math500}
"""Name of a set -> how a line of its file becomes a prompt."""


def read_reasoning_set(name: str, path: Path) -> list[Prompt]:
    """Reads the file of a published set.

    Raises:
        ValueError: where the file is missing, or a line does not fit; it names file and line.
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist; expected the JSONL file of {name}")
    prompts = []
    with path.open(encoding="utf-8", newline="\n") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                prompts.append(FORMATS[name](json.loads(line), f"{number:04d}"))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                what = f"{error} is missing" if isinstance(error, KeyError) else error
                raise ValueError(f"{path}:{number}: no line of {name} ({what})") from error
    if not prompts:
        raise ValueError(f"{path} is empty; expected the problems of {name}")
    return prompts


def reasoning_set_fingerprint(path: Path) -> str:
    """Returns the sha256 of a set's file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
