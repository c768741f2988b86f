r"""What does a reply announce as its answer? The text after "the answer is" or 故选, and the answer key of JSON.

The last announcement counts. Its text ends with its sentence; an option may contain full stops (`B. 12`). JSON counts
only where it ends the reply, bare or in a code fence: `{"reasoning": "…", "answer": "B"}`.
"""

import json
import re

MAX_MARKED_CHARS = 500
MAX_OPTION_CHARS = 300
"""Number of characters examined after an announcement; an explanation may follow an option."""
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


def announced(reply: str) -> re.Match[str] | None:
    """Returns the last announcement of a reply, without the answer after it."""
    last = None
    for last in _ANNOUNCED.finditer(reply):  # noqa: B007 (the last one is wanted)
        pass
    return last


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


def json_answer(reply: str) -> str | None:
    """Returns the value of the answer key if a reply ends with a JSON object that has one; strings without quotes."""
    if reply[-1:] not in JSON_ENDS or not reply[-MAX_TAIL_CHARS:].rstrip("` \n\t]").endswith("}"):
        return None
    last = None
    for last in _KEY.finditer(reply):  # noqa: B007 (the last one is wanted)
        pass
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
