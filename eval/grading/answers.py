r"""Where in a reply is its answer? The first of these rules that finds one is used:

    answer tag     the last `<answer>…</answer>`
    boxed          the last `\boxed{…}` with balanced braces
    the answer is  the text after the last "the answer is", "Answer:", "the correct option is", 答案是
    ####           the text after GSM8K's marker, if it is a number, or the reply's last line
    A:             the text after `A:` at the start of a line (not in a list of options)
    last sentence  its last number, option, formula, yes or no, or box; a short text as a whole

Thoughts are not answers: if there is text after the last `</think>`, the rules apply only to that text. The text found
by a rule is reduced to the part that the kind of answer requires: the number in `she has 18 dollars left`, but nothing
in `5 or 6`, which is not a single answer. All rules run in time linear in the reply's length.
"""

import re
from collections.abc import Callable, Sequence

from eval.grading.boxes import boxes_in
from eval.grading.options import mentions, yes_or_no
from eval.grading.quantities import find_numbers, parse_number, parse_quantity, with_unit

Find = Callable[[str, str, Sequence[str]], str | None]

WELL_FORMED = re.compile(
    r"\s*<think>(?:(?!</?think>|</?answer>).)*</think>\s*<answer>(?:(?!</?think>|</?answer>).)+</answer>\s*", re.DOTALL
)
"""One chain of thought followed by one answer, and nothing else."""
MAX_TEXT_WORDS = 6
"""A longer last sentence is not a short text."""
MAX_MARKED_CHARS = 500
MAX_OPTION_CHARS = 300
"""Number of characters examined after "the answer is"; an explanation may follow an option."""

_ANNOUNCED = re.compile(
    r"\banswer\b(?:\s(?:to|of|for)\s[^.\n:]{1,60}?)?(?:\*\*|__)?\s{0,3}(?:\bis\b|\bare\b|\bwas\b|\b(?:would|will|should|must)\s+be\b|:|=)"
    r"|\b(?:correct|right|best)\s+(?:option|choice)\s+is\b|答案(?:应该)?(?:是|为|选|：|:)",
    re.IGNORECASE,
)
_AFTER_ANNOUNCED = re.compile(r"[\s:*_]{0,8}(?=[^\s:*_])|[\s:]{0,8}(?=\*\*)")
_REASON = re.compile(r",?\s(?:because|since|given that|as shown)\s", re.IGNORECASE)
_SENTENCE_END = re.compile(r"\.\s|\n")
_SENTENCE_END_OF_OPTION = re.compile(r"(?<![\s(*][A-J])(?<!^[A-J])\.\s|\n")
_DISPLAY = re.compile(r"\$\$(.+?)\$\$|\\\[(.+?)\\\]", re.DOTALL)
_FORMULA = re.compile(r"(?<!\\)\$([^$\n]+?)(?<!\\)\$|\\\((.+?)\\\)")
_HASHES = re.compile(r"####[^\S\n]*([^\n]+)")
_OPENS_WITH_NUMBER = re.compile(r"\W*\d")
"""Unlike `#### Step 3`, which is a heading."""
_A_MARK = re.compile(r"^[ \t]*(?:\*\*)?A:(?:\*\*)?[ \t]*(\S[^\n]*)", re.MULTILINE)
_SENTENCES = re.compile(r"\n|(?<=[a-z)])[.!?]\s")
_TAGS = re.compile(r"</?(?:answer|think)>")
_NO_ONE_NUMBER = re.compile(r"\s*(?:,|/|:|or|and|to|through|-|–|…|\.\.\.)\s*", re.IGNORECASE)
_CHANGED = re.compile(r"\s*(?:or|plus|minus|times|less than|more than|dozen|thirds?|and a half)\b", re.IGNORECASE)


def find_answer(response: str, kind: str, choices: Sequence[str] = ()) -> tuple[str, str] | None:
    """Returns the answer and the name of the rule that found it, or None if there is none."""
    final = response.rpartition("</think>")[2]
    reply = final if final.strip() else response
    for rule, find in RULES.items():
        answer = find(reply, kind, choices)
        if answer is not None and answer.strip():
            return answer.strip(), rule
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
    depth = 1
    for brace in re.finditer(r"\\.|[{}]", text[begin:], re.DOTALL):
        depth += {"{": 1, "}": -1}.get(brace.group(), 0)
        if depth == 0:
            return text[begin : begin + brace.start()]
    return None


def _answer_tag(reply: str, kind: str, choices: Sequence[str]) -> str | None:
    end = reply.rfind("</answer>")
    begin = reply.rfind("<answer>", 0, max(end, 0))
    if begin < 0:
        return None
    inner = reply[begin + len("<answer>") : end]
    for find in (_boxed, _the_answer_is):
        answer = find(inner, kind, choices)
        if answer is not None and answer.strip():
            return answer
    return _narrowed(inner, kind)


def _boxed(reply: str, kind: str, choices: Sequence[str]) -> str | None:
    inner = last_boxed(reply)
    return None if inner is None else _narrowed(inner, kind)


def _the_answer_is(reply: str, kind: str, choices: Sequence[str]) -> str | None:
    last = None
    for last in _ANNOUNCED.finditer(reply):  # noqa: B007 (the last one is wanted)
        pass
    if last is None:
        return None
    if kind == "box":
        return reply[last.end() :]
    lead = _AFTER_ANNOUNCED.match(reply, last.end())
    marked = reply[lead.end() if lead else last.end() :][: MAX_OPTION_CHARS if kind == "choice" else MAX_MARKED_CHARS]
    display = _DISPLAY.match(marked)
    if display is not None:
        return _narrowed(display[1] or display[2], kind)
    end = _SENTENCE_END_OF_OPTION if kind == "choice" else _SENTENCE_END
    marked = end.split(marked, maxsplit=1)[0].strip().removesuffix(".")
    return _narrowed(_REASON.split(marked, maxsplit=1)[0].rstrip(",; ").strip("*"), kind)


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
    sentences = [line for line in _SENTENCES.split(_TAGS.sub(" ", reply)) if line.strip()]
    if not sentences:
        return None
    last = sentences[-1].strip()
    if kind == "yes_no" and not yes_or_no(last):
        return sentences[0] if yes_or_no(sentences[0][:20]) else None
    return LAST[kind](last, choices)


def _last_number(sentence: str, choices: Sequence[str]) -> str | None:
    numbers = find_numbers(sentence)
    if numbers:
        return with_unit(sentence, numbers[-1])
    return sentence if parse_number(sentence) is not None else None


def _last_formula(sentence: str, choices: Sequence[str]) -> str | None:
    formulas = [formula[0] or formula[1] for formula in _FORMULA.findall(sentence)]
    return formulas[-1] if formulas else _last_number(sentence, choices)


def _last_option(sentence: str, choices: Sequence[str]) -> str | None:
    if len(sentence) > 20 * MAX_MARKED_CHARS:
        return None
    found = mentions(sentence, choices)
    if not found:
        return sentence if len(sentence.split()) <= MAX_TEXT_WORDS else None
    begin, end, _ = found[-1]
    return sentence[begin:end]


def _short_text(sentence: str, choices: Sequence[str]) -> str | None:
    return sentence if len(sentence.split()) <= MAX_TEXT_WORDS else None


def _sentence(sentence: str, choices: Sequence[str]) -> str | None:
    return sentence


def _last_list(sentence: str, choices: Sequence[str]) -> str | None:
    found = re.findall(r"\[[^\[\]]*\]", sentence)
    return found[-1] if found else _short_text(sentence, choices)


LAST: dict[str, Callable[[str, Sequence[str]], str | None]] = {
    "number": _last_number,
    "math": _last_formula,
    "choice": _last_option,
    "yes_no": _sentence,
    "text": _short_text,
    "list": _last_list,
}
"""Kind of answer -> how it is taken from the last sentence; boxes may span several lines."""


def _narrowed(text: str, kind: str) -> str:
    """Returns the answer within a marked text."""
    text = text.strip()
    if kind == "number":
        return _one_number(text)
    if kind == "math":
        formulas = [formula[0] or formula[1] for formula in _FORMULA.findall(text)]
        return formulas[0] if len(formulas) == 1 else text
    return text


def _one_number(text: str) -> str:
    """Returns the single number in a text, after the last `=` if any; the text itself if there is not exactly one."""
    if parse_number(text) is not None:
        return text
    numbers = find_numbers(text)
    if "=" in text or "≈" in text:
        begin = max(text.rfind("="), text.rfind("≈"))
        numbers = [number for number in numbers if number.start() > begin] or numbers
    if not numbers:
        return text
    first = numbers[0]
    if len(numbers) > 1 and _NO_ONE_NUMBER.fullmatch(text, first.end(), numbers[1].start()):
        return text
    return text if _CHANGED.match(text, first.end()) else with_unit(text, first)


RULES: dict[str, Find] = {
    "answer tag": _answer_tag,
    "boxed": _boxed,
    "the answer is": _the_answer_is,
    "####": _hashes,
    "A:": _a_mark,
    "last sentence": _last_sentence,
}
