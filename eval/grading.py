"""Is this answer right? The one grader that rewards, scores and tables all call.

An answer is first found in the response by the first rule that applies (`RULES`, in order), then judged by its kind:

    number  equal as exact decimals or fractions; thousands separators and a currency or percent sign are ignored
    text    equal after lower-casing and dropping articles and punctuation
    math    equal as mathematical expressions (math-verify, the gold parsed first, both wrapped in `$…$`)

A reply that holds no answer, or one too long to be an answer, is incorrect. What the rules cannot judge (a gold that
does not parse, mathematics that does not end in time) is `unscored`: never counted as wrong, always counted beside the
mean.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from eval.mathematics import equal_expressions

CORRECT, INCORRECT, UNSCORED = "correct", "incorrect", "unscored"

WELL_FORMED = re.compile(
    r"\s*<think>(?:(?!</?think>|</?answer>).)*</think>\s*<answer>(?:(?!</?think>|</?answer>).)+</answer>\s*", re.DOTALL
)
"""One chain of thought, then one answer, and nothing else."""

MAX_ANSWER_CHARS = 400
"""Longer answers are no final answers; parsing them as mathematics can take unbounded time."""


@dataclass(frozen=True)
class Verdict:
    """How one response was judged."""

    status: str
    extracted: str | None
    """The answer as it was found in the response."""
    rule: str
    """The rule that found it, or the reason why there is no judgement."""

    @property
    def correct(self) -> bool | None:
        """True or False; None where the answer could not be judged."""
        return None if self.status == UNSCORED else self.status == CORRECT


def grade(response: str, gold: str, kind: str) -> Verdict:
    """Judges a response against the gold answer.

    Raises:
        ValueError: for an unknown kind.
    """
    if kind not in KINDS:
        raise ValueError(f"answer kind {kind!r} is unknown; expected one of {', '.join(KINDS)}")
    found = find_answer(response, kind)
    if found is None:
        return Verdict(INCORRECT, None, "no answer")
    answer, rule = found
    if len(answer) > MAX_ANSWER_CHARS:
        return Verdict(INCORRECT, answer[:MAX_ANSWER_CHARS], "answer too long")
    equal = KINDS[kind](answer, gold)
    if equal is None:
        return Verdict(UNSCORED, answer, f"{rule}; not comparable as {kind}")
    return Verdict(CORRECT if equal else INCORRECT, answer, rule)


def is_gradable(gold: str, kind: str) -> bool:
    """True where replies can be told right from wrong: the gold answer itself is right, another one is judged in time.

    Raises:
        ValueError: for an unknown kind.
    """
    if kind == "text" and not _normalise_text(gold):
        return False  # any reply of articles and punctuation would equal it
    right, other = (grade(f"<answer>{answer}</answer>", gold, kind).correct for answer in (gold, "0"))
    return right is True and other is not None


def is_well_formed(response: str) -> bool:
    """True for `<think>…</think><answer>…</answer>` and nothing else."""
    return WELL_FORMED.fullmatch(response) is not None


def find_answer(response: str, kind: str) -> tuple[str, str] | None:
    """Returns the answer and the name of the rule that found it, or None where there is none."""
    for rule, find in RULES.items():
        answer = find(response, kind)
        if answer is not None and answer.strip():
            return answer.strip(), rule
    return None


def last_boxed(text: str) -> str | None:
    r"""Returns the content of the last `\boxed{…}` with balanced braces."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    begin = start + len("\\boxed{")
    depth = 1
    for position in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return text[begin:position]
    return None


def _answer_tag(response: str, kind: str) -> str | None:
    end = response.rfind("</answer>")
    begin = response.rfind("<answer>", 0, max(end, 0))
    if begin < 0:
        return None
    inner = response[begin + len("<answer>") : end]
    boxed = last_boxed(inner)
    return boxed if boxed is not None else inner


def _boxed(response: str, kind: str) -> str | None:
    return last_boxed(response)


def _the_answer_is(response: str, kind: str) -> str | None:
    _, *announced = re.split(r"\banswer is:?\s*", response, flags=re.IGNORECASE)
    if not announced:
        return None
    answer = re.split(r"\.\s|\n", announced[-1], maxsplit=1)[0].strip().removesuffix(".")
    number = _NUMBER.search(answer) if kind == "number" else None
    return number.group() if number else answer


def _hashes(response: str, kind: str) -> str | None:
    found = re.findall(r"####\s*(.+)", response)
    return found[-1] if found else None


def _last_sentence(response: str, kind: str) -> str | None:
    lines = [line for line in re.split(r"\n|(?<=[a-z)])\.\s", response) if line.strip()]
    if not lines:
        return None
    last = lines[-1].strip()
    if kind == "text":
        return last if len(last.split()) <= 6 else None
    numbers = _NUMBER.findall(last)
    return numbers[-1] if numbers else None


_NUMBER = re.compile(r"(?<![\d)])[-−]?\d+(?:,\d{3})*(?:\.\d+)?(?:/\d+)?|\d+")
"""A decimal or a fraction; a minus between two numbers is no sign."""


RULES: dict[str, Callable[[str, str], str | None]] = {
    "answer tag": _answer_tag,
    "boxed": _boxed,
    "the answer is": _the_answer_is,
    "####": _hashes,
    "last sentence": _last_sentence,
}


def parse_number(text: str) -> Fraction | None:
    """Returns the exact value of a decimal number or fraction, or None where the text is not one."""
    bare = re.sub(r"^[\s$€£*]+|[\s.%°$*]+$", "", text).replace("−", "-")
    if not re.fullmatch(r"[+-]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?:/\d+)?", bare) or not bare.strip("+-"):
        return None
    try:
        return Fraction(bare.replace(",", ""))
    except (ValueError, ZeroDivisionError):
        return None


def _equal_numbers(answer: str, gold: str) -> bool | None:
    gold_value = parse_number(gold)
    if gold_value is None:
        return None
    value = parse_number(answer)
    return value is not None and value == gold_value


def _normalise_text(text: str) -> str:
    words = re.sub(r"[^\w\s]", " ", text.casefold()).split()
    return " ".join(word for word in words if word not in ("a", "an", "the"))


def _equal_texts(answer: str, gold: str) -> bool | None:
    return _normalise_text(answer) == _normalise_text(gold)


KINDS: dict[str, Callable[[str, str], bool | None]] = {
    "number": _equal_numbers,
    "text": _equal_texts,
    "math": equal_expressions,
}
"""Kind of answer -> whether an answer equals the gold; None where that cannot be judged."""
