"""Which options does a prompt offer, and which one is right? Read from a row's fields, or from the prompt's lines."""

import ast
import re
from collections.abc import Mapping, Sequence
from typing import Any

from data_builders.prompt_sets.choices import LETTERS
from eval.harnesses.replies import Fields, as_text

CHOICE_FIELDS = ("choices", "options")
GOLD_IS = ("text", "index")
"""What a gold that is a number may mean: an option's text, or its place counted from 0."""
_LINE = re.compile(r"^[ \t]*\(?([A-J])[.):][ \t]+(\S[^\n]*?)[ \t]*$", re.MULTILINE)
_LETTER = re.compile(r"\(?\s*([A-J])\s*[).:]?")


def options_of(fields: Fields) -> tuple[str, ...]:
    """Returns the texts of a row's options, in the order of their letters; empty if it has none.

    Understood are a list, its spelling in Python (as in MMMU), a mapping from letters, `{"text": …, "label": …}`
    (as in ARC), and columns `A`, `B`, … (as in VLMEvalKit).
    """
    for name in CHOICE_FIELDS:
        found = _listed(fields.get(name))
        if len(found) > 1:
            return found
    lettered: list[str] = []
    for letter in LETTERS:
        text = as_text(fields.get(letter)).strip()
        if not text:
            break
        lettered.append(text)
    return tuple(lettered) if len(lettered) > 1 else ()


def _listed(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            return ()
    if isinstance(value, Mapping):
        value = value["text"] if isinstance(value.get("text"), list) else [value[key] for key in sorted(value)]
    if not isinstance(value, list | tuple):
        return ()
    return tuple(as_text(one).strip() for one in value)


def options_in(question: str) -> tuple[str, ...]:
    """Returns the options that a prompt lists on lettered lines: the last list that starts with A and skips none."""
    found: list[str] = []
    for line in _LINE.finditer(question):
        if line[1] == "A":
            found = [line[2]]
        elif found and len(found) < len(LETTERS) and line[1] == LETTERS[len(found)]:
            found.append(line[2])
    return tuple(found) if len(found) > 1 else ()


def letter_in(gold: str) -> str | None:
    """Returns the letter that a gold consists of, such as `B`, `(B)` or `B.`; None if it is something else."""
    found = _LETTER.fullmatch(gold.strip())
    return None if found is None else found[1]


def right_option(gold: str, choices: Sequence[str], gold_is: str | None = None) -> str | None:
    """Returns the text of the right option; None if the gold names none of the choices.

    Args:
        gold: an option's text, its letter, or its place counted from 0.
        choices: the options' texts.
        gold_is: one of `GOLD_IS`, for golds that are an option's text and another's place.

    Raises:
        ValueError: if a gold may mean two options and `gold_is` is not given.
    """
    text = gold.strip()
    place = int(text) if text.isdigit() and int(text) < len(choices) else None
    if text in choices and place is not None and choices[place] != text:
        if gold_is is None:
            raise ValueError(
                f"gold {gold!r} is the text of one option and the place of another, {choices[place]!r}; give --gold-is "
                "text or --gold-is index"
            )
        return choices[place] if gold_is == "index" else text
    if text in choices:
        return text
    letter = letter_in(text)
    if letter is not None:
        number = LETTERS.index(letter)
        return choices[number] if number < len(choices) else None
    return None if place is None else choices[place]
