"""What is a task, and what is a named benchmark? Prompts with the folder of their images, and how rows become them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_builders.prompt_sets.prompts import Prompt
from eval.grading import parse_number

Row = dict[str, Any]
LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a model is asked, under one name."""

    name: str
    prompts: list[Prompt]
    directory: Path
    """What the prompts' images are relative to."""
    fingerprint: str
    """Changes with the prompts and their images."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Where the prompts came from, for `run.json`."""


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A published set of problems: where it lies on the hub, and how its rows read."""

    repo: str
    """Its data set on the hub."""
    revision: str
    """The commit that is read unless the task names another: later corrections would make other problems of it."""
    files: tuple[str, ...]
    """Patterns of its files, those of the hub first, then other names under which copies of it go round."""
    columns: tuple[str, ...]
    """Without one of these a file is not this benchmark."""
    read: Callable[[Row, str], Prompt]
    """Makes a prompt, without its image, of a row and its number, counted from 1 with four digits."""
    image_columns: tuple[str, ...] = ()
    """Where the image stands; the first that a row has counts. None for benchmarks of text."""


def ask_with_choices(question: str, choices: Sequence[str]) -> str:
    """Returns a question with its options in lettered lines; options that are mere letters stand in the image."""
    letters = LETTERS[: len(choices)]
    if list(choices) == list(letters):
        listed = f"Choices: {', '.join(letters)}"
    else:
        listed = "Choices:\n" + "\n".join(f"({letter}) {text}" for letter, text in zip(letters, choices, strict=True))
    return f"{question}\n{listed}\n{ASK_LETTER}"


ASK_LETTER = "Answer with the letter of the right choice."


def named_choice(letter: str, choices: Sequence[str]) -> str:
    """Returns the text of the option that a letter stands for: the gold answer, whatever letters stand in the texts.

    Raises:
        ValueError: where there is no such option.
    """
    letters = LETTERS[: len(choices)]
    if len(letter) != 1 or letter not in letters:
        raise ValueError(f"answer is {letter!r}; expected one of {', '.join(letters)}")
    return choices[letters.index(letter)]


def free_answer_kind(gold: str) -> str:
    """Returns how a free answer is graded: a letter as an option, a number, words as text, all else as mathematics."""
    if len(gold) == 1 and gold in LETTERS:
        return "choice"
    if parse_number(gold) is not None:
        return "number"
    return "text" if gold.replace(" ", "").isalpha() and len(gold) > 1 else "math"
