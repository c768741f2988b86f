r"""Where in a reply is its answer? The first of these rules that finds one is used:

    answer tag     the last `<answer>…</answer>`
    JSON           the answer key of a JSON object that ends the reply: `{"answer": "B"}`
    boxed          the last `\boxed{…}` with balanced braces
    the answer is  the text after the last "the answer is", "Answer:", "the correct option is", 答案是, 故选
    ####           the text after GSM8K's marker, if it is a number, or the reply's last line
    A:             the text after `A:` at the start of a line (not in a list of options)
    last sentence  its last number, option, formula, yes or no, or box; a short text as a whole

The rules apply to the text after the thoughts (`final_text.py`). The text found by a rule is reduced to the part that
the kind of answer requires: the number in `she has 18 dollars left`, but nothing in `5 or 6`, which is not a single
answer. In a choice, a box that names no option (`\boxed{x=4}`) is a step if an option is named after it, and an option
announced after a box replaces it. All rules run in time linear in the reply's length.
"""

import re
from collections.abc import Callable, Sequence

from eval.grading.announced import MAX_MARKED_CHARS, announced, announced_text, json_answer
from eval.grading.boxes import boxes_in
from eval.grading.final_text import text_after_thoughts
from eval.grading.formulas import displayed, formulas_in, result_of, undelimited, without_layout
from eval.grading.options import asserted, joined_letters, mentions, named_options, yes_or_no
from eval.grading.quantities import find_numbers, parse_number, parse_quantity, with_unit
from eval.grading.single_number import the_number

Find = Callable[[str, str, Sequence[str]], str | None]

WELL_FORMED = re.compile(
    r"\s*<think>(?:(?!</?think>|</?answer>).)*</think>\s*<answer>(?:(?!</?think>|</?answer>).)+</answer>\s*", re.DOTALL
)
"""One chain of thought followed by one answer, and nothing else."""
MAX_TEXT_WORDS = 6
"""A longer last sentence is not a short text."""
MAX_SENTENCE_CHARS = 4_000
"""Of a longer last sentence, only its end is searched."""
NUM_LAST_SENTENCES = 3
"""In a choice, "B is correct" counts in one of this many last sentences."""

_BRACES = re.compile(r"\\.|[{}]", re.DOTALL)
_HASHES = re.compile(r"####[^\S\n]*([^\n]+)")
_OPENS_WITH_NUMBER = re.compile(r"\W*\d")
"""Unlike `#### Step 3`, which is a heading."""
_A_MARK = re.compile(r"^[ \t]*(?:\*\*)?A:(?:\*\*)?[ \t]*(\S[^\n]*)", re.MULTILINE)
_SENTENCES = re.compile(r"\n|(?<=[a-z)])[.!?]\s|(?<=[。！？])")
_TAGS = re.compile(r"</?(?:answer|think|conclusion|summary|solution)>", re.IGNORECASE)


def find_answer(response: str, kind: str, choices: Sequence[str] = ()) -> tuple[str, str] | None:
    """Returns the answer and the name of the rule that found it, or None if there is none."""
    reply = text_after_thoughts(response)
    if reply is None:
        return None
    for rule, find in RULES.items():
        answer = find(reply, kind, choices)
        if answer is not None and (answer := answer.strip()):
            after = _after_box(reply, answer, kind, choices) if rule == "boxed" and kind in NAMED else None
            return after or (answer, rule)
    return None


def is_well_formed(response: str) -> bool:
    """True for `<think>…</think><answer>…</answer>` and nothing else."""
    return WELL_FORMED.fullmatch(response) is not None


def last_boxed(text: str) -> str | None:
    r"""Returns the content of the last `\boxed{…}` with balanced braces."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    begin = start + len("\\boxed{")
    inner = text[begin : text.find("}", begin)]
    if inner and "{" not in inner and "\\" not in inner and text[begin + len(inner)] == "}":
        return inner
    depth = 1
    for brace in _BRACES.finditer(text, begin):
        depth += {"{": 1, "}": -1}.get(brace.group(), 0)
        if depth == 0:
            return text[begin : brace.start()]
    return None


def _after_box(reply: str, boxed: str, kind: str, choices: Sequence[str]) -> tuple[str, str] | None:
    """Returns the option named after the last box: in any way if the box names none, else only by an announcement."""
    rest = reply[reply.rfind("\\boxed{") + len("\\boxed{") :].partition(boxed)[2].lstrip("}$ \n.")
    for rule in ("the answer is",) if NAMED[kind](boxed, choices) else ("the answer is", "last sentence"):
        answer = RULES[rule](rest, kind, choices)
        named = NAMED[kind](answer, choices) if answer is not None else set()
        if named:
            return (answer.strip(), rule) if answer is not None and len(named) == 1 else None
    return None


def _answer_tag(reply: str, kind: str, choices: Sequence[str]) -> str | None:
    end = reply.rfind("</answer>")
    begin = reply.rfind("<answer>", 0, max(end, 0))
    if begin < 0:
        return None
    inner = reply[begin + len("<answer>") : end]
    for find in (_json, _boxed, _the_answer_is):
        answer = find(inner, kind, choices)
        if answer is not None and answer.strip():
            return answer
    return _narrowed(inner, kind)


def _json(reply: str, kind: str, choices: Sequence[str]) -> str | None:
    value = json_answer(reply)
    if value is None:
        return None
    if kind in SINGLE and value.startswith("[") and "," not in value:
        value = value[1:-1].strip().strip("\"'")
    inner = last_boxed(value)
    return _narrowed(value if inner is None else inner, kind)


def _boxed(reply: str, kind: str, choices: Sequence[str]) -> str | None:
    inner = last_boxed(reply)
    return None if inner is None else _narrowed(inner, kind)


def _the_answer_is(reply: str, kind: str, choices: Sequence[str]) -> str | None:
    mark = announced(reply)
    if mark is None:
        return None
    if kind == "box":
        return reply[mark.end() :]
    return _narrowed(announced_text(reply, mark.end(), kind), kind)


def _hashes(reply: str, kind: str, choices: Sequence[str]) -> str | None:
    found = _HASHES.findall(reply)
    if not found:
        return None
    answer = _narrowed(found[-1], kind)
    is_number = kind == "number" and parse_quantity(answer) is not None and _OPENS_WITH_NUMBER.match(found[-1])
    return answer if is_number or reply.rstrip().endswith(found[-1].rstrip()) else None


def _a_mark(reply: str, kind: str, choices: Sequence[str]) -> str | None:
    found = None if kind == "choice" else _A_MARK.findall(reply)
    return _narrowed(found[-1], kind) if found else None


def _last_sentence(reply: str, kind: str, choices: Sequence[str]) -> str | None:
    if kind == "box":
        return reply if boxes_in(reply) else None
    text, is_display = without_layout(_TAGS.sub(" ", reply))
    sentences = [line for line in _SENTENCES.split(text) if line.strip()]
    if not sentences:
        return None
    last = sentences[-1].strip()
    if kind == "yes_no" and not yes_or_no(last):
        return sentences[0] if yes_or_no(sentences[0][:20]) else None
    if kind == "choice":
        return _last_option(sentences, choices)
    if is_display:
        last = displayed(last)
        if kind in ("math", "number") and (kind == "math" or parse_quantity(result_of(last)) is not None):
            return result_of(last)
    return LAST[kind](last)


def _last_option(sentences: Sequence[str], choices: Sequence[str]) -> str | None:
    for number, sentence in enumerate(reversed(sentences[-NUM_LAST_SENTENCES:])):
        if len(sentence) > 20 * MAX_MARKED_CHARS:
            break
        found = asserted(sentence, len(choices)) or ([] if number else mentions(sentence, choices))
        if found:
            begin, end, _ = found[-1]
            return joined_letters(sentence, begin) or sentence[begin:end]
    return _short_text(sentences[-1].strip())


def _last_number(sentence: str) -> str | None:
    sentence = undelimited(sentence[-MAX_SENTENCE_CHARS:])
    numbers = find_numbers(sentence)
    if numbers:
        return with_unit(sentence, numbers[-1])
    return sentence if parse_number(sentence) is not None else None


def _last_formula(sentence: str) -> str | None:
    formulas = formulas_in(sentence[-MAX_SENTENCE_CHARS:])
    return result_of(formulas[-1]) if formulas else _last_number(sentence)


def _short_text(sentence: str) -> str | None:
    return sentence if len(sentence.split()) <= MAX_TEXT_WORDS else None


def _last_list(sentence: str) -> str | None:
    found = re.findall(r"\[[^\[\]]*\]", sentence)
    return found[-1] if found else _short_text(sentence)


LAST: dict[str, Callable[[str], str | None]] = {
    "number": _last_number,
    "math": _last_formula,
    "yes_no": lambda sentence: sentence,
    "text": _short_text,
    "list": _last_list,
}
"""Kind of answer -> how it is taken from the last sentence; choices and boxes may span several lines."""

SINGLE = ("number", "math", "choice", "yes_no")
"""Kinds with one answer, which JSON may have in a list of its own."""
NAMED: dict[str, Callable[[str, Sequence[str]], set[str]]] = {
    "choice": named_options,
    "yes_no": lambda answer, choices: yes_or_no(answer),
}
"""Kind with a fixed set of answers -> which of them a text names."""


def _narrowed(text: str, kind: str) -> str:
    """Returns the answer within a marked text."""
    text = text.strip()
    if kind == "number":
        return the_number(text)
    if kind == "math":
        formulas = formulas_in(text)
        return formulas[0] if len(formulas) == 1 else text
    return text


RULES: dict[str, Find] = {
    "answer tag": _answer_tag,
    "JSON": _json,
    "boxed": _boxed,
    "the answer is": _the_answer_is,
    "####": _hashes,
    "A:": _a_mark,
    "last sentence": _last_sentence,
}
