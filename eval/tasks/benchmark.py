"""What is a task, and what is a benchmark? Prompts with the folder of their images, and how rows become prompts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from data_builders.prompt_sets.choices import LETTERS
from data_builders.prompt_sets.prompts import Prompt
from eval.grading import parse_number

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Task:
    """A named set of prompts."""

    name: str
    prompts: list[Prompt]
    directory: Path
    """The folder that the prompts' image paths are relative to."""
    fingerprint: str
    """Changes with the prompts and their images."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Source of the prompts, for `run.json`."""

    def limited(self, limit: int | None) -> "Task":
        """Returns the task with its first prompts alone; the whole task without a limit."""
        if limit is None:
            return self
        return replace(self, prompts=self.prompts[:limit], facts={**self.facts, "limit": limit})


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A published set of problems: its location on the hub, and how its rows are read."""

    repo: str
    """The data set's name on the hub."""
    revision: str
    """The commit that is read unless the task names another: later corrections would change the problems."""
    files: tuple[str, ...]
    """Patterns of its files: those on the hub first, then other common names of copies."""
    columns: tuple[str, ...]
    """Columns that a file of this benchmark must have."""
    read: Callable[[Row, str], Prompt]
    """Makes a prompt, without its image, from a row and its number (counted from 1, four digits)."""
    image_columns: tuple[str, ...] = ()
    """Columns of the image; the first that a row has is used. Empty for text benchmarks."""


def named_choice(letter: str, choices: Sequence[str]) -> str:
    """Returns the text of the option with a letter: the gold answer, independent of letters within the texts.

    Raises:
        ValueError: if there is no such option.
    """
    letters = LETTERS[: len(choices)]
    if len(letter) != 1 or letter not in letters:
        raise ValueError(f"answer is {letter!r}; expected one of {', '.join(letters)}")
    return choices[letters.index(letter)]


def free_answer_kind(gold: str) -> str:
    """Returns how a free answer is graded: a letter as an option, a number, words as text, the rest as mathematics."""
    if len(gold) == 1 and gold in LETTERS:
        return "choice"
    if parse_number(gold) is not None:
        return "number"
    return "text" if gold.replace(" ", "").isalpha() and len(gold) > 1 else "math"
