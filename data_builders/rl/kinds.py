r"""How is the answer of an upstream row graded? By the kind that the row states, or the one that its answer suggests.

    choice   a letter, and the question lists the options (`A. 12`, `(B) 15`), whose texts are kept
    yes_no   yes, no, true or false
    number   a number
    box      four numbers, and the question asks for a bounding box
    list     a JSON list of texts
    text     words without formulas
    math     everything else

`--answer_kind infer` chooses a kind for each row. A row that has an `answer_kind` of its own keeps it in any case: as a
column, or in `extra_info` or `reward_model`.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

ANSWER_KINDS = ("number", "text", "math", "choice", "yes_no", "box", "list")
"""The grader's kinds; builders may not import `eval`."""
INFER = "infer"
"""The rule that chooses a kind for each row."""
COLUMN = "answer_kind"

_LETTER = re.compile(r"\$?\s*(?:\\(?:text|mathrm|mathbf|textbf)\{)?\s*\(?([A-J])\s*[).]?\s*\}?\s*\$?")
_MARK = re.compile(r"(?:(?<=\s)|^)(?:\(([A-J])\)|([A-J])[.):])(?=\s|\S)", re.MULTILINE)
_YES_NO = re.compile(r"\s*(?:yes|no|true|false)\s*\.?\s*", re.IGNORECASE)
_NUMBER = re.compile(r"\s*[-+]?[$€£¥]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?<=\d)(?:/\d+)?\s*%?\s*", re.ASCII)
_BOX = re.compile(r"[\[(]?\s*-?\d+(?:\.\d+)?(?:\s*,\s*-?\d+(?:\.\d+)?){3}\s*[\])]?")
_ASKS_FOR_BOX = re.compile(r"\bb(?:ounding[ -]?)?box|\bbbox", re.IGNORECASE)
_WORDS = re.compile(r"[^\W\d_]+(?:[ '-][^\W\d_]+)*\.?")


def stated_kind(row: Mapping[str, Any]) -> Any:
    """Returns the row's own kind, or None if it states none."""
    for part in (row, row.get("extra_info"), row.get("reward_model")):
        if isinstance(part, Mapping) and part.get(COLUMN) is not None:
            return part[COLUMN]
    return None


def inferred_kind(question: str, answer: str) -> str:
    """Returns the kind that an answer suggests."""
    if _LETTER.fullmatch(answer):
        return "choice" if listed_options(question, answer) else "math"
    if _YES_NO.fullmatch(answer):
        return "yes_no"
    if _NUMBER.fullmatch(answer):
        return "number"
    if _BOX.fullmatch(answer.strip()) and _ASKS_FOR_BOX.search(question):
        return "box"
    if answer.lstrip().startswith("[") and _is_list_of_texts(answer):
        return "list"
    words = _WORDS.fullmatch(answer.strip())
    return "text" if words and max(map(len, answer.split())) > 3 else "math"


def listed_options(question: str, answer: str) -> tuple[str, ...]:
    """Returns the texts of the options that a question lists from `A` on; nothing if the answer is none of them."""
    marks = list(_MARK.finditer(question))
    starts = [number for number, mark in enumerate(marks) if (mark[1] or mark[2]) == "A"]
    if not starts:
        return ()
    options = [marks[starts[-1]]]
    for mark in marks[starts[-1] + 1 :]:
        if ord(mark[1] or mark[2]) == ord("A") + len(options):
            options.append(mark)
    ends = [mark.start() for mark in options[1:]] + [len(question)]
    texts = [question[mark.end() : end].strip() for mark, end in zip(options, ends, strict=True)]
    texts[-1] = texts[-1].split("\n", maxsplit=1)[0].strip()
    texts = [text.rstrip(";,") for text in texts]
    letter = _LETTER.fullmatch(answer)
    is_among_them = ord(letter[1]) - ord("A") < len(texts) if letter else answer.strip() in texts
    return tuple(texts) if len(texts) > 1 and all(texts) and is_among_them else ()


def _is_list_of_texts(answer: str) -> bool:
    try:
        read = json.loads(answer)
    except ValueError:
        return False
    return isinstance(read, list) and bool(read) and all(isinstance(element, str) for element in read)
