r"""Where in a reply is its answer? The first of these rules that finds one is used:

    answer tag     the last `<answer>…</answer>`
    JSON           the answer key of a JSON object that ends the reply: `{"answer": "B"}`
    boxed          the last `\boxed{…}` with balanced braces
    the answer is  the text after the last "the answer is", "Answer:", "the correct option is", 答案是, 故选
    ####           the text after GSM8K's marker, if it is a number, or the reply's last line
    A:             the text after `A:` at the start of a line (not in a list of options)
    last sentence  its last number, option, formula, yes or no, or box; a short text as a whole

The rules apply to the text after the thoughts (`markup.py`). The text found by a rule is reduced to the part that
the kind of answer requires: the number in `she has 18 dollars left`, but nothing in `5 or 6`, which is not a single
answer. In a choice, a box that names no option (`\boxed{x=4}`) is a step if an option is named after it, and an option
announced after a box replaces it. All rules run in time linear in the reply's length.
"""

import json
import re
from collections import deque
from collections.abc import Callable, Sequence

from eval.grading.boxes import boxes_in
from eval.grading.latex import in_ascii
from eval.grading.markup import displayed, formulas_in, result_of, text_after_thoughts, undelimited, without_layout
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
MAX_MARKED_CHARS = 500
MAX_OPTION_CHARS = 300
"""Number of characters examined after an announcement; an explanation may follow an option."""
MAX_QUICK_BRACES = 12
"""Number of closing braces up to which the end of a box is found by counting, which is faster than a scan."""
MAX_TAIL_CHARS = 100
"""Number of characters in which a JSON object at the end of a reply must close; a fence may follow it."""
JSON_ENDS = frozenset("} `\n\t]")
"""Last characters of a reply that ends with JSON."""

_LETTER_NEXT = r"(?=[\s(（\[【*$]{0,4}[A-JＡ-Ｊ](?![A-Za-z]))"
_ANNOUNCED = re.compile(
    r"\banswer\b(?:\s(?:to|of|for)\s[^.\n:]{1,60}?)?(?:\*\*|__)?\s{0,3}"
    r"(?:\bis\b|\bare\b|\bwas\b|\b(?:would|will|should|must)\s+be\b|[:：]|=)"
    r"|\b(?:correct|right|best)\s+(?:option|choice)\s+(?:is\b|[:：])"
    r"|(?:答案|(?:最终|最后)(?:的)?结果)\s*[】」]?\s*(?:\*\*)?\s*(?:应该|应当|应|就|便|则)?\s*(?:是|为|[:：])"
    r"|【\s*答案\s*】|(?:^|[\n。])[ \t]{0,8}(?:\*\*)?答(?:\*\*)?\s*[:：]"
    rf"|(?<!不)(?<!不能)(?<!不应)(?<!误)选(?:择|择题答案)?(?:\s*(?:是|为|[:：]))?{_LETTER_NEXT}"
    rf"|正确的?(?:选项|答案|一项|一个)?\s*(?:应该|应)?\s*(?:是|为)\s*[:：]?(?:选项)?{_LETTER_NEXT}",
    re.IGNORECASE,
)
_LEAD = re.compile(r"(?:[\s:：*_]|```\w*\n|-{3,}\n){0,8}(?=[^\s:：*_])|[\s:：]{0,8}(?=\*\*)")
_REASON = re.compile(r",?\s(?:because|since|given that|as shown)\s|，?(?:因为|理由是)", re.IGNORECASE)
_SENTENCE_END = re.compile(r"\.\s|\n|[。！；]|．(?!\d)")
_SENTENCE_END_OF_OPTION = re.compile(r"(?<![\s(*][A-J])(?<!^[A-J])\.\s|\n|[。！；]")
_DISPLAY = re.compile(r"\$\$(.+?)\$\$|\\\[(.+?)\\\]", re.DOTALL)
_KEY = re.compile(
    r"""["'](?:(?:final|correct|your|my|the|predicted|chosen|selected)?[ _-]?(?:answer|option|choice)"""
    r"""|answer[ _-]?(?:option|choice|letter)|final[ _-]?result|result|答案)["']\s*:\s*""",
    re.IGNORECASE,
)
_STRING = r"""(?:"(?:[^"\\]|\\.)*+"|'(?:[^'\\\n]|\\.)*+')"""
_LIST = r"\[(?:[^\[\]]|\[[^\[\]]*+\])*+\]"
_VALUE = rf"{_STRING}|{_LIST}|[-+]?[\d.][\d.,eE+/-]*+|true|false|True|False"
_ANSWER_VALUE = re.compile(rf"({_VALUE})(?=\s*[,}}])", re.DOTALL)
_REST = re.compile(
    rf"(?:\s*,\s*{_STRING}\s*:\s*(?:{_VALUE}|null|None))*+\s*,?\s*\}}\s*\]?\s*(?:`{{3,}}|</answer>|\s)*+\Z", re.DOTALL
)
_ESCAPES = {"\\": "\\", '"': '"', "'": "'", "/": "/"}
_BRACES = re.compile(r"\\.|[{}]", re.DOTALL)
_HASHES = re.compile(r"####[^\S\n]*([^\n]+)")
_OPENS_WITH_NUMBER = re.compile(r"\W*\d")
"""Unlike `#### Step 3`, which is a heading."""
_A_MARK = re.compile(r"^[ \t]*(?:\*\*)?A:(?:\*\*)?[ \t]*(\S[^\n]*)", re.MULTILINE)
_SENTENCES = re.compile(r"\n|(?<=[a-z)])[.!?]\s|(?<=[。！？])")
_TAGS = re.compile(r"</?(?:answer|think|conclusion|summary|solution)>", re.IGNORECASE)

_OPTION_OR_WORD = re.compile(
    r"\W*(?:[A-J]|(?:\([A-J]\)|[A-J][.):])(?:\s*\S+){0,3}|(?:yes|no|true|false)(?:,?\s[^\W\d]+){0,4})\W*",
    re.IGNORECASE,
)
"""A short sentence that is an option, with or without its text, or yes or no: a data set of formulas has such golds."""
_LATEX = re.compile(r"\\[A-Za-z]|[_^]")
_COMMAND = re.compile(r"\\(?:text|mathrm|mathbf|operatorname)\s*\{[^{}]*\}|\\[A-Za-z]+")


def find_answer(response: str, kind: str, choices: Sequence[str] = ()) -> tuple[str, str] | None:
    """Returns the answer and the name of the rule that found it, or None if there is none."""
    reply = text_after_thoughts(response)
    if reply is None:
        return None
    for rule, find in RULES.items():
        answer = find(reply, kind, choices)
        if answer is not None and (answer := answer.strip()):
            if rule == "boxed" and kind in NAMED:
                return _after_box(reply, answer, kind, choices) or (answer, rule)
            return answer, rule
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
    end = begin - 1
    for _ in range(MAX_QUICK_BRACES):
        end = text.find("}", end + 1)
        inner = text[begin:end]
        if end < 0 or "\\{" in inner or inner.endswith("\\") or "\\\\" in inner:
            break
        if inner.count("{") == inner.count("}"):
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


def announced(reply: str) -> re.Match[str] | None:
    """Returns the last announcement of a reply, without the answer after it."""
    return _last(_ANNOUNCED, reply)


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    found = deque(pattern.finditer(text), maxlen=1)
    return found[0] if found else None


def announced_text(reply: str, end: int, kind: str) -> str:
    """Returns the text that an announcement marks as the answer.

    Args:
        end: where the announcement ends.
        kind: the kind of answer; a choice ends elsewhere.
    """
    lead = _LEAD.match(reply, end)
    start = lead.end() if lead else end
    marked = reply[start : start + (MAX_OPTION_CHARS if kind == "choice" else MAX_MARKED_CHARS)]
    display = _DISPLAY.match(marked)
    if display is not None:
        return display[1] or display[2]
    stop = _SENTENCE_END_OF_OPTION if kind == "choice" else _SENTENCE_END
    marked = stop.split(marked, maxsplit=1)[0].strip().removesuffix(".").removesuffix("．")
    return _REASON.split(marked, maxsplit=1)[0].rstrip(",;，、 ").strip("*")


def json_answer(reply: str) -> str | None:
    """Returns the value of the answer key if a reply ends with a JSON object that has one; strings without quotes."""
    if reply[-1:] not in JSON_ENDS or not reply[-MAX_TAIL_CHARS:].rstrip("` \n\t]").endswith("}"):
        return None
    last = _last(_KEY, reply)
    value = _ANSWER_VALUE.match(reply, last.end()) if last is not None else None
    if last is None or value is None or "{" not in reply[: last.start()] or not _REST.match(reply, value.end()):
        return None
    text = value[1]
    return _unescaped(text) if text[0] in "\"'" else text


def _unescaped(text: str) -> str:
    r"""Returns the content of a JSON string; LaTeX written with single backslashes (`"\frac{1}{2}"`) is kept."""
    inner = text[1:-1]
    if "\\\\" in inner or "\\u" in inner:
        try:
            return str(json.loads(f'"{inner}"'))
        except ValueError:
            pass
    return re.sub(r"\\(.)", lambda found: _ESCAPES.get(found[1], found[0]), inner, flags=re.DOTALL)


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
    if formulas:
        return result_of(formulas[-1])
    if _is_formula(sentence):
        return result_of(sentence)
    return sentence if _OPTION_OR_WORD.fullmatch(in_ascii(sentence)) else _last_number(sentence)


def _is_formula(sentence: str) -> bool:
    """True for a formula without delimiters: LaTeX, and no words outside its text commands."""
    if len(sentence) > MAX_SENTENCE_CHARS or not _LATEX.search(sentence) or not sentence.isascii():
        return False
    return not any(word.isalpha() and len(word) > 1 for word in _COMMAND.sub(" ", sentence).split())


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
    if kind == "math" and ("$" in text or "\\(" in text or "\\[" in text):
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
