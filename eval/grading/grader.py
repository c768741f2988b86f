r"""Is this answer right? The grader that rewards, scores and tables call.

The answer is extracted from the response by the first rule that applies (`answers.py`), then judged by its kind:

    number  equal as exact quantities; thousands separators, percent and units as in `quantities.py`; if the data set
            states decimals (`precision`), both sides are rounded to them
    math    equal as mathematical expressions (`expressions.py`: plain spelling, exact numbers and lists of them, then
            symbolic mathematics with math-verify)
    choice  the same option, named by its letter or its text (`options.py`)
    yes_no  yes or no, true or false
    box     IoU above 0.5 (`boxes.py`)
    list    the same number of elements, in the same order, each equal as a number or as a text
    text    equal after lower-casing and dropping articles and punctuation

A reply without an answer, or with one that is too long, is incorrect. Cases that the rules cannot judge (a gold that
does not parse, mathematics that times out, a letter and a text that name different options) are `unscored`: never
counted as wrong, and their number is reported together with the mean.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from eval.grading.answers import find_answer
from eval.grading.boxes import equal_boxes
from eval.grading.expressions import equal_mathematics
from eval.grading.latex import unwrapped
from eval.grading.markup import text_after_thoughts
from eval.grading.options import equal_options, equal_yes_no
from eval.grading.quantities import equal_numbers
from eval.grading.single_number import states_several

CORRECT, INCORRECT, UNSCORED = "correct", "incorrect", "unscored"
UNFINISHED = "unfinished thoughts"
"""The rule of a reply that was cut inside its thoughts, which has no answer."""

MAX_ANSWER_CHARS = 400
"""Longer answers are not final answers; parsing them as mathematics can take unbounded time."""


@dataclass(frozen=True)
class Verdict:
    """How one response was judged."""

    status: str
    extracted: str | None
    """The answer as extracted from the response."""
    rule: str
    """The rule that found it; after a semicolon, the reason why it is not judged."""

    @property
    def correct(self) -> bool | None:
        """True or False; None if the answer could not be judged."""
        return None if self.status == UNSCORED else self.status == CORRECT


def grade(
    response: str, gold: str, kind: str, choices: Sequence[str] | None = None, precision: int | None = None
) -> Verdict:
    """Judges a response against the gold answer.

    Args:
        response: the whole reply.
        gold: the right answer; for a choice, its letter or its text.
        kind: one of `KINDS`.
        choices: the options' texts in the order of their letters; without them, options are letters.
        precision: decimals to which numbers are compared; exact by default.

    Raises:
        ValueError: for an unknown kind.
    """
    if kind not in KINDS:
        raise ValueError(f"answer kind {kind!r} is unknown; expected one of {', '.join(KINDS)}")
    options = tuple(choices or ())
    found = find_answer(response, kind, options)
    if found is None:
        return Verdict(INCORRECT, None, "no answer" if text_after_thoughts(response) is not None else UNFINISHED)
    answer, rule = found
    if len(answer) > MAX_ANSWER_CHARS and kind != "box":
        return Verdict(INCORRECT, answer[:MAX_ANSWER_CHARS], "answer too long")
    equal = KINDS[kind](answer, gold, choices=options, precision=precision)
    if equal is None or (not equal and kind == "number" and states_several(answer, gold, precision)):
        return Verdict(UNSCORED, answer, f"{rule}; not comparable as {kind}")
    return Verdict(CORRECT if equal else INCORRECT, answer, rule)


def is_gradable(gold: str, kind: str, choices: Sequence[str] | None = None, precision: int | None = None) -> bool:
    """True if replies can be graded: the gold itself is judged right, and a different answer is judged in time.

    Raises:
        ValueError: for an unknown kind.
    """
    right, other = (
        grade(f"<answer>{answer}</answer>", gold, kind, choices, precision).correct for answer in (gold, "0")
    )
    return right is True and other is not None


def _equal_texts(answer: str, gold: str) -> bool | None:
    right = normalise_text(gold)
    return normalise_text(answer) == right if right else None


def _equal_lists(answer: str, gold: str, precision: int | None) -> bool | None:
    ours, right = _elements(answer), _elements(gold)
    if not all(normalise_text(element) for element in right):
        return None
    return len(ours) == len(right) and all(
        bool(equal_numbers(mine, other, precision)) or normalise_text(mine) == normalise_text(other)
        for mine, other in zip(ours, right, strict=True)
    )


Judge = Callable[..., bool | None]

KINDS: dict[str, Judge] = {
    "number": lambda answer, gold, choices=(), precision=None: equal_numbers(answer, gold, precision),
    "text": lambda answer, gold, choices=(), precision=None: _equal_texts(answer, gold),
    "math": lambda answer, gold, choices=(), precision=None: equal_mathematics(answer, gold),
    "choice": lambda answer, gold, choices=(), precision=None: equal_options(answer, gold, choices),
    "yes_no": lambda answer, gold, choices=(), precision=None: equal_yes_no(answer, gold),
    "box": lambda answer, gold, choices=(), precision=None: equal_boxes(answer, gold),
    "list": lambda answer, gold, choices=(), precision=None: _equal_lists(answer, gold, precision),
}
"""Kind of answer -> whether an answer equals the gold; None if that cannot be judged."""

_SIGN = re.compile(r"(?<![\w)])[-−](?=\.?\d)|(?<=\d)[.,/:](?=\d)|[+#%°<>=&]")
"""Characters that change the meaning of a short text: -5, 3.5, 1/2, 9:30, C++, 50%."""


def normalise_text(text: str) -> str:
    """Returns a text without case, articles and punctuation, as `text` compares it."""
    text = unicodedata.normalize("NFC", unwrapped(_TEXT_COMMAND.sub(r"\1", text)))
    marks = {found.start() for found in _SIGN.finditer(text)}
    kept = "".join(
        sign if sign.isalnum() or sign == "_" or place in marks or unicodedata.category(sign)[0] == "M" else " "
        for place, sign in enumerate(text)
    )
    words = re.sub(r"\s+(?=[°%])", "", kept.replace("−", "-")).casefold().split()
    return " ".join(word for word in words if word not in ("a", "an", "the"))


_TEXT_COMMAND = re.compile(r"\\(?:text|mbox|textbf|mathrm)\s*\{([^{}]*)\}")
_JOINED = re.compile(r",?\s+(?:and|&)\s+|\s*[;，、]\s*", re.IGNORECASE)


def _elements(text: str) -> list[str]:
    """Returns the elements of `[a, b]`, `a; b`, `a and b`; if any comma has a blank after it, others do not count."""
    inner = _JOINED.sub(", ", unwrapped(_TEXT_COMMAND.sub(r"\1", text)).replace("\\", ""))
    inner = inner.strip().removeprefix("[").removesuffix("]").strip()
    inner = inner.removeprefix("(").removesuffix(")").removeprefix("{").removesuffix("}")
    separator = r",\s+" if re.search(r",\s", inner) else ","
    return [element.strip(" \"'") for element in re.split(separator, inner)] if inner.strip() else []
