"""Which number does a marked text state? `18` in `she has 18 dollars left`, 45 in `in 2019 it was 45`.

A text that starts with its number states that one, and a calculation the number after its last `=`. In another sentence
with several numbers it is the number after a verb such as *is* or *equals*, outside introductions (`In 2019, …`) and
subordinate clauses (`…, which is 5 more`). If that leaves no single number, as in `5 or 6`, the text is returned whole.
"""

import itertools
import re

from eval.grading.markup import undelimited
from eval.grading.quantities import equal_numbers, find_numbers, parse_number, with_unit

MAX_NUMBERS = 4
"""A text with more numbers is a list."""
MIN_WORDS = 4
"""A text with fewer words is not a sentence."""

_NO_ONE_NUMBER = re.compile(
    r"\s*(?:,|/|:|or|and|to|through|-|–|…|\.\.\.|[^\d,.;]{0,20}\bor|[\u4e00-\u9fff]{0,3}(?:或者?|和|与|到|至|、))\s*",
    re.IGNORECASE,
)
_CHANGED = re.compile(r"\s*(?:or|plus|minus|times|less than|more than|dozen|thirds?|and a half)\b", re.IGNORECASE)
_BOUNDED = re.compile(r"\b(?:less|more|fewer|greater|smaller|higher|lower) than\s[$£€¥]?$", re.IGNORECASE)
_CALCULATES = re.compile(
    r"\s*(?:[-+*/×÷−]|\\times|\\cdot|\\div|plus|minus|times|divided by|multiplied by)\s*", re.IGNORECASE
)
_WORDS = re.compile(r"[^\W\d_]{2,}")
_HEDGES = frozenset(
    (
        "about", "approximately", "around", "roughly", "exactly", "only", "just", "nearly", "almost", "total", "of",
        "the", "answer", "is", "value", "number", "result", "frac", "dfrac", "tfrac", "sqrt", "text", "approx", "cdot",
    )
)  # fmt: skip
"""Words before a number that do not make the text a sentence about something else."""
_COUNTED = re.compile(r"\b(?:the|these|those|(?<!total )of)\s+\**$", re.IGNORECASE)
"""Before a number of things that a sentence is about: `the 12 students take …`."""
_INTRODUCTION = re.compile(
    r"^\W*(?:in|on|at|of|from|after|before|with|for|by|since|during|out of|given|if|when|as|because|between"
    r"|among)\s[^,]*,\s",
    re.IGNORECASE,
)
_SUBORDINATE = re.compile(
    r",?\s(?:which|who|where|because|since|as|compared|while|whereas|given|when|if|up from|down from|instead of"
    r"|rather than|not|after|before)\s.*",
    re.IGNORECASE | re.DOTALL,
)
_AND = re.compile(r"(?:\b(?:and|or)\s|[,;、]\s?)[$£€¥]?$", re.IGNORECASE)
_RELATIVE = re.compile(r",\s(?:which|who|that|where)\s[^,]*,", re.IGNORECASE)
_STATES = re.compile(
    r"(?:\b(?:is|are|was|were|be|equals?|becomes?|makes?|gives?|yields?|totals?|costs?|has|have|had|gets?|got|leaves?"
    r"|left|earns?|pays?|needs?|shows?|measures|weighs|reach(?:es|ed)?|stands at"
    r"|(?:sum|comes?|amounts?|rose|fell|grew|dropped|increased|decreased) to)\b|[=≈:：是为])[\s*(~$£€¥]{0,4}"
    r"(?:(?:equal to|about|approximately|around|roughly|exactly|only|just|now|then|a total of|in total"
    r"|at)\s+){0,3}[*(~$£€¥]{0,3}$",
    re.IGNORECASE,
)


def the_number(text: str) -> str:
    """Returns the number that a marked text states, with its unit; the text itself if there is not exactly one."""
    if parse_number(text) is not None:
        return text
    text = undelimited(text)
    numbers = find_numbers(text)
    begin = max(text.rfind("="), text.rfind("≈")) + 1
    if begin:
        numbers = [number for number in numbers if number.start() >= begin] or numbers
    if not numbers:
        return text
    first = numbers[0]
    if len(numbers) > 1:
        between = text[first.end() : numbers[1].start()]
        is_result = bool(begin) and first.start() >= begin
        if not is_result and (_is_sentence_before(text[: first.start()]) or _CALCULATES.fullmatch(between)):
            stated = _stated(text, numbers)
            if stated is None:
                return text
            first = stated
        elif _NO_ONE_NUMBER.fullmatch(between):
            return text
    is_changed = _CHANGED.match(text, first.end()) or _BOUNDED.search(text[: first.start()])
    return text if is_changed else with_unit(text, first)


def _is_sentence_before(text: str) -> bool:
    """True if words before the first number make it one of several things that a sentence is about."""
    words = _WORDS.findall(text[-200:])
    return _COUNTED.search(text[-20:]) is not None or any(word.casefold() not in _HEDGES for word in words)


def _stated(text: str, numbers: list[re.Match[str]]) -> re.Match[str] | None:
    """Returns the only number of the main clause, or the one after its verb; None if there are different ones."""
    introduction = _INTRODUCTION.match(text)
    begin = introduction.end() if introduction else 0
    relative = _RELATIVE.search(text, begin)
    main = text if relative is None else text[: relative.start()] + " " * len(relative.group()) + text[relative.end() :]
    subordinate = _SUBORDINATE.search(main, begin)
    end = subordinate.start() if subordinate else len(main)
    own = [number for number in numbers if begin <= number.start() < end and main[number.start()] != " "]
    before = {number: main[max(begin, number.start() - 60) : number.start()] for number in own}
    if len(own) == 1:
        return own[0]
    stated = [number for number in own if _STATES.search(before[number])]
    if len({number.group() for number in stated}) != 1:
        return None
    is_joined = any(_AND.search(before[number]) for number in own if number.start() > stated[0].start())
    return None if is_joined else stated[0]


def states_several(answer: str, gold: str, precision: int | None = None) -> bool:
    """True if a sentence has several numbers, none of them stated as the answer, and the gold is one of them."""
    if len(_WORDS.findall(answer)) < MIN_WORDS:
        return False
    numbers = find_numbers(answer)
    if not 1 < len(numbers) <= MAX_NUMBERS:
        return False
    betweens = [answer[one.end() : other.start()] for one, other in itertools.pairwise(numbers)]
    if any(_NO_ONE_NUMBER.fullmatch(between) for between in betweens):
        return False
    return any(equal_numbers(number.group(), gold, precision) for number in numbers)
