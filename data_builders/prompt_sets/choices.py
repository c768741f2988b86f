"""How is a multiple-choice question written? With its options on lettered lines, or named in the picture."""

from collections.abc import Sequence

LETTERS = "ABCDEFGHIJ"
"""The letters that the grader knows; a question has at most as many options."""
ASK_LETTER = "Answer with the letter of the right choice."


def ask_with_choices(question: str, choices: Sequence[str]) -> str:
    """Returns a question with its options on lettered lines; options that are only letters are shown in the image."""
    letters = LETTERS[: len(choices)]
    if list(choices) == list(letters):
        listed = f"Choices: {', '.join(letters)}"
    else:
        listed = "Choices:\n" + "\n".join(f"({letter}) {text}" for letter, text in zip(letters, choices, strict=True))
    return f"{question}\n{listed}\n{ASK_LETTER}"
