r"""What does an answer consist of, and are two such answers equal? Lists, sets, tuples, ratios, and single values.

    list    `-3, 2`, `x=-3 \text{ or } x=2`, `-3 和 2`, `1\pm\sqrt{2}`    elements in any order, repeats ignored
    set     `\{1,2\}`                                     as a list, but not equal to a tuple
    tuple   `(1,2)`, `[1,2)`, `\langle 1,2\rangle`        the same brackets, the same elements in the same order
    ratio   `3:4:5`                                       equal up to a common factor
    value   everything else

Values are compared by a function that the caller passes in: exact numbers only (`expressions.py`), or symbolic
mathematics (`symbolic.py`). It returns None if it cannot decide, and so does the comparison of the whole, unless the
other parts decide it. Names before an equals sign count if both sides have them, or if one side has several.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from eval.grading.latex import in_ascii, plain, unwrapped
from eval.grading.quantities import Quantity, parse_quantity

EqualValues = Callable[[str, str], bool | None]
"""Compares an answer's value with the gold's; None if undecided."""

HAS_PARTS = re.compile(
    r"[,;:=_'~，、：；或和与且]|or|and|\bto\b|mod|prime|\\(?:pm|mp|cup|begin|[{}])|±|∪", re.IGNORECASE
)
"""Without any of these, two answers are single values in no special notation."""
MAX_ITEMS = 24
"""Longer lists are compared as one value."""
VALUE, LIST, SET, TUPLE, RATIO = "value", "list", "set", "tuple", "ratio"

_BOUNDS = re.compile(r"(?<!\\)\$|(?<!\\)\\[()\[\]]")
_SIZES = re.compile(r"\\(?:left|right|displaystyle|textstyle|[bB]igg?[lr]?|limits)(?![A-Za-z])\s*\.?")
_THOUSANDS = re.compile(r"(?<=\d)(?:,?\\!\s*|\{,\}|\\[,:; ]|~|\{\\[,:; ]\}|\\(?:thin|med|thick)space\s*)(?=\d{3})")
_SPACES = re.compile(r"(?<!\\)\\[,;:!\s]|\\q?quad(?![A-Za-z])|(?<!\\)~|\\(?:thin|med|thick)space(?![A-Za-z])|\s+")
_TEXT = re.compile(r"\\(?:text|mbox|hbox|textbf|textit|textrm|mathrm)\s*\{([^{}]*)\}")
_HAS_CONNECTIVE = re.compile(r"(?<![A-Za-z])(?:l?or|l?and|to)(?![A-Za-z])|[或和与且]|以及", re.IGNORECASE)
_OR = re.compile(
    r"\s*,?\s*(?:(?<![A-Za-z\\])or(?![A-Za-z])|或者?|\\lor(?![A-Za-z])|\\vee(?![A-Za-z]))\s*", re.IGNORECASE
)
_AND = re.compile(r"\s*,?\s*(?:(?<![A-Za-z\\])and(?![A-Za-z])|以及|[和与且]|\\land(?![A-Za-z]))\s*", re.IGNORECASE)
_BRACKETS = tuple(
    (re.compile(rf"\\{name}(?![A-Za-z])"), bracket)
    for name, bracket in (("langle", "("), ("rangle", ")"), ("lbrace", r"\\{"), ("rbrace", r"\\}"), ("colon", ":"))
)
_MATRIX = re.compile(r"\\begin\{([pb]?matrix|array)\}(?:\{[lcr|]*\})?(.*?)\\end\{\1\}", re.DOTALL)

_TOKEN = re.compile(
    r"(?P<opening>\\?\{|[(\[])|(?P<closing>\\?\}|[)\]])|(?P<word> (?:or|and) )|(?P<union>\\cup(?![A-Za-z]))"
    r"|(?P<mark>[,;](?P<blank>\s*))|(?P<colon>\s*:\s*)|(?P<escaped>\\[\\,;:])"
)
_BETWEEN_THOUSANDS = re.compile(r"(?<=\d),\d{3}(?!\d)")
_LABEL = re.compile(
    r"\s*(?P<name>\(\s*[A-Za-z](?:_\w)?(?:\s*,\s*[A-Za-z](?:_\w)?)+\s*\)|(?:\\text\{[^{}]*\}|\\?[A-Za-z]+(?:_(?:\w|\{[^{}]*\}))?'*(?:\([a-z]\))?)|\\angle\s*[A-Z]+|[A-Za-z]+(?:\s*:\s*[A-Za-z]+)+)\s*"
    r"(?:=|\\in(?![A-Za-z]))(?P<rest>[^=]+)"
)
_RELATION = re.compile(r"[<>=]|\\(?:leq?|geq?|neq?|lt|gt|leqslant|geqslant|equiv|sim|in|subset)(?![A-Za-z])")
_WHOLE = re.compile(r"\\(?:begin|cup|cap|setminus|emptyset|varnothing|mathbb|infty|mid|dots|ldots|cdots)|\|")
"""Values that can equal a list, a set or an interval, or that only mathematics can compare with them."""
_SET_BUILDER = re.compile(r"\s*[A-Za-z]\s*(?:\\in\s*\\mathbb\s*\{?R\}?\s*)?(?:\\mid(?![A-Za-z])|\||:)(.+)")
"""The condition of a set of real numbers: `x > 1` in `x \\mid x > 1`."""
_SIDE_BY_SIDE = re.compile(r"[-\d.]+(?: [-\d.]+)+")
_CLOCK = re.compile(r"\d{1,2}:[0-5]\d")
_NUMBER_TO_NUMBER = re.compile(r"(?<=\d)\s+to\s+(?=\d)")


@dataclass(frozen=True, kw_only=True)
class Parts:
    """An answer and what it consists of."""

    text: str
    sort: str = VALUE
    items: tuple["Parts", ...] = ()
    brackets: str = ""
    label: str = ""

    @property
    def quantity(self) -> Quantity | None:
        """The exact number that a value is, if any."""
        return parse_quantity(self.text) if self.sort == VALUE else None


def cleaned(text: str) -> str:
    r"""Returns an answer on one line, without commands for sizes and spaces, with one spelling of `or` and `and`."""
    text = in_ascii(unwrapped(text))
    if "\\" in text or "~" in text or "$" in text:
        text = _SIZES.sub("", _THOUSANDS.sub("", _BOUNDS.sub(" ", text)))
        if "\\text" in text or "\\m" in text or "\\hbox" in text:
            text = _TEXT.sub(_opened, text)
        if "angle" in text or "brace" in text or "colon" in text:
            for command, bracket in _BRACKETS:
                text = command.sub(bracket, text)
        text = _SPACES.sub(" ", text)
    elif " " in text or "\n" in text:
        text = _SPACES.sub(" ", text)
    if _HAS_CONNECTIVE.search(text) or "\\vee" in text:
        text = _NUMBER_TO_NUMBER.sub(":", _AND.sub(" and ", _OR.sub(" or ", text)))
    return text.strip()


def are_side_by_side(text: str) -> bool:
    """True for several numbers without a sign between them."""
    return " " in text and _SIDE_BY_SIDE.fullmatch(text) is not None


def _opened(found: re.Match[str]) -> str:
    """Returns the words of `\\text{ or }` without the command."""
    return f" {found[1]} " if _HAS_CONNECTIVE.search(found[1]) else found.group()


def equal_structures(answer: str, gold: str, equal_values: EqualValues) -> bool | None:
    """Returns whether two answers have equal parts; None if that is undecided."""
    if ("\\begin" in answer) != ("\\begin" in gold):
        answer, gold = (_as_tuple(cleaned(side)) for side in (answer, gold))
    return _equal(parts_in(answer), parts_in(gold), equal_values)


@lru_cache(maxsize=4096)
def parts_in(text: str) -> Parts:
    """Returns the parts of an answer."""
    return parts_of(cleaned(text))


def parts_of(text: str) -> Parts:
    """Splits a cleaned answer into its parts."""
    text = text.strip()
    labelled = _LABEL.fullmatch(text)
    if labelled is not None and not _RELATION.search(labelled["rest"]):
        return replace(parts_of(labelled["rest"]), label=plain(labelled["name"]))
    if "\\begin{" in text:
        return Parts(text=text)
    pieces = _pieces(text)
    if len(pieces) > 1:
        return Parts(text=text, sort=LIST, items=_elements(pieces))
    inner, brackets = _enclosed(text)
    condition = _SET_BUILDER.fullmatch(inner) if brackets == "\\{\\}" else None
    if condition is not None and _RELATION.search(condition[1]):
        return parts_of(condition[1])
    if brackets:
        pieces = [] if "|" in inner or "\\mid" in inner or _RELATION.search(inner) else _pieces(inner, in_brackets=True)
        if brackets == "\\{\\}" or (brackets == "{}" and len(pieces) > 1):
            return Parts(text=text, sort=SET if pieces else VALUE, items=_elements(pieces))
        if len(pieces) > 1:
            return Parts(text=text, sort=TUPLE, items=tuple(map(parts_of, pieces)), brackets=brackets)
    terms = _ratio(text)
    if len(terms) > 1:
        return Parts(text=text, sort=RATIO, items=tuple(Parts(text=term) for term in terms))
    if "\\pm" in text or "\\mp" in text:
        signs = (("+", "-"), ("-", "+"))
        both = [re.sub(r"\\mp(?![A-Za-z])", minus, re.sub(r"\\pm(?![A-Za-z])", plus, text)) for plus, minus in signs]
        return Parts(text=text, sort=LIST, items=tuple(Parts(text=own.removeprefix("+").strip()) for own in both))
    return Parts(text=text)


def _elements(pieces: Sequence[str]) -> tuple[Parts, ...]:
    """Returns the elements that pieces of a list stand for: those of a list without a name count one by one."""
    parts = map(parts_of, pieces)
    return tuple(own for part in parts for own in (part.items if part.sort == LIST and not part.label else (part,)))


def _tokens(text: str) -> Iterator[tuple[re.Match[str], int]]:
    """Yields the brackets and separators of a text, each with the number of brackets that are open after it."""
    depth = 0
    for token in _TOKEN.finditer(text):
        depth += 1 if token["opening"] else -1 if token["closing"] else 0
        yield token, depth


def _pieces(text: str, *, in_brackets: bool = False) -> list[str]:
    """Splits at the top-level `or`, `and`, semicolons, unions and commas; commas of thousands do not count."""
    found = [
        token for token, depth in _tokens(text) if depth == 0 and (token["word"] or token["union"] or token["mark"])
    ]
    commas = [token for token in found if token.group() == ","]
    thousands = {token.start() for token in commas if _BETWEEN_THOUSANDS.match(text, token.start())}
    if in_brackets or len(thousands) < len(commas):
        thousands = set()
    pieces, begin = [], 0
    for token in found:
        if token.start() not in thousands:
            pieces.append(text[begin : token.start()].strip())
            begin = token.end()
    pieces.append(text[begin:].strip())
    return pieces if all(pieces) else [text]


def _enclosed(text: str) -> tuple[str, str]:
    r"""Returns what stands within the brackets that enclose the whole text, and the brackets: `()`, `[)`, `\{\}`."""
    if not text or text[0] not in "([{\\" or text[-1] not in ")]}":
        return text, ""
    for token, depth in _tokens(text):
        if depth == 0:
            opening, closing = ("\\{", "\\}") if text.startswith("\\{") else (text[0], text[-1])
            if token.end() < len(text) or not text.endswith(closing) or opening == "\\":
                return text, ""
            return text[len(opening) : -len(closing)], opening + closing
    return text, ""


def _ratio(text: str) -> list[str]:
    terms, begin = [], 0
    for token, depth in _tokens(text) if ":" in text else ():
        if depth == 0 and token["colon"]:
            terms.append(text[begin : token.start()].strip())
            begin = token.end()
    terms.append(text[begin:].strip())
    return terms if all(terms) else [text]


def _as_tuple(text: str) -> str:
    """Returns a matrix of one column or one row as a tuple, and other answers as they are."""
    matrix = _MATRIX.fullmatch(text)
    if matrix is None:
        return text
    entries = [[entry.strip() for entry in row.split("&")] for row in re.split(r"\\\\+", matrix[2]) if row.strip()]
    if len(entries) > 1 and all(len(row) == 1 for row in entries):
        return f"({', '.join(row[0] for row in entries)})"
    return f"({', '.join(entries[0])})" if len(entries) == 1 and len(entries[0]) > 1 else text


def _equal(ours: Parts, theirs: Parts, equal_values: EqualValues) -> bool | None:
    if ours.label and theirs.label and _base(ours.label) != _base(theirs.label):
        return equal_values(_equation(ours), _equation(theirs))
    if bool(ours.label) != bool(theirs.label) and "=" in ours.text + theirs.text:
        return equal_values(_equation(ours), _equation(theirs))
    sorts = {ours.sort, theirs.sort}
    if sorts == {VALUE}:
        return equal_values(ours.text, theirs.text)
    if any(
        _RELATION.search(_without_labels(side)) or (side.sort == VALUE and _WHOLE.search(side.text))
        for side in (ours, theirs)
    ):
        return equal_values(ours.text, theirs.text)
    if RATIO in sorts:
        return _equal_ratios(ours, theirs, equal_values)
    if sorts == {TUPLE}:
        return False if ours.brackets != theirs.brackets else _in_order(ours.items, theirs.items, equal_values)
    if sorts == {SET, TUPLE}:
        return False
    if TUPLE in sorts and LIST not in sorts:
        return False if ours.quantity or theirs.quantity else equal_values(ours.text, theirs.text)
    if "\\cup" in ours.text + theirs.text:
        return _equal_lists(ours, theirs, equal_values) or equal_values(_union(ours), _union(theirs))
    if TUPLE in sorts and (theirs.sort == TUPLE or any(item.label for item in ours.items)):
        return _in_order(_by_name(ours.items), _by_name(theirs.items), equal_values)
    return _equal_lists(ours, theirs, equal_values)


def _equal_lists(ours: Parts, theirs: Parts, equal_values: EqualValues) -> bool | None:
    """Compares elements in any order, unless they have names."""
    mine, other = (side.items if side.sort != VALUE else (side,) for side in (ours, theirs))
    if len(mine) > MAX_ITEMS or len(other) > MAX_ITEMS:
        return equal_values(ours.text, theirs.text)
    in_any_order = _same_set(mine, other, equal_values)
    names = [[item.label for item in items] for items in (mine, other)]
    named = [len(set(own)) == len(own) > 1 and all(own) for own in names]
    if all(named) and set(names[0]) == set(names[1]):
        by_name = {item.label: item for item in other}
        verdict = _all(_equal(item, by_name[item.label], equal_values) for item in mine)
        is_one_letter = len({_base(name) for name in names[0]}) == 1  # x_1 and x_2 may be roots, in any order
        return None if verdict is False and is_one_letter and in_any_order else verdict
    if any(named) and not all(all(own) for own in names):
        own, bare = (mine, other) if named[0] else (other, mine)
        if len({_base(item.label) for item in own}) > 1 and not any(item.label for item in bare):
            verdict = _in_order(_by_name(mine), _by_name(other), equal_values)
            return None if verdict is False and in_any_order is not False else verdict
    return in_any_order


def _same_set(mine: Sequence[Parts], other: Sequence[Parts], equal_values: EqualValues) -> bool | None:
    table = [[_equal(first, second, equal_values) for second in other] for first in mine]
    return _all((_all(_any(row) for row in table), _all(_any(column) for column in zip(*table, strict=True))))


def _by_name(items: Sequence[Parts]) -> Sequence[Parts]:
    """Returns `x=1, y=2` for `y=2, x=1`; elements without names stay in their order."""
    return sorted(items, key=lambda item: item.label) if all(item.label for item in items) else items


def _in_order(mine: Sequence[Parts], other: Sequence[Parts], equal_values: EqualValues) -> bool | None:
    if len(mine) != len(other):
        return False
    return _all(_equal(first, second, equal_values) for first, second in zip(mine, other, strict=True))


def _equal_ratios(ours: Parts, theirs: Parts, equal_values: EqualValues) -> bool | None:
    """Compares ratios up to a common factor; a ratio of two is also a quotient."""
    if VALUE in (ours.sort, theirs.sort) and len(ours.items or theirs.items) == 2:
        return equal_values(_quotient(ours), _quotient(theirs))
    if ours.sort != theirs.sort or len(ours.items) != len(theirs.items):
        return False
    if plain(ours.text) == plain(theirs.text):
        return True
    mine, other = ([item.text for item in side.items] for side in (ours, theirs))
    verdict = _all(
        equal_values(f"\\frac{{{a}}}{{{mine[0]}}}", f"\\frac{{{b}}}{{{other[0]}}}")
        for a, b in zip(mine[1:], other[1:], strict=True)
    )
    is_clock = all(_CLOCK.fullmatch(side.text) for side in (ours, theirs))
    return None if verdict and is_clock else verdict


def _quotient(side: Parts) -> str:
    return f"\\frac{{{side.items[0].text}}}{{{side.items[1].text}}}" if side.sort == RATIO else side.text


def _union(side: Parts) -> str:
    return " \\cup ".join(item.text for item in side.items) if side.sort == LIST else side.text


def _without_labels(side: Parts) -> str:
    """Returns the text of the elements, where an equals sign is a relation and not a name's."""
    return " ".join(_without_labels(item) for item in side.items) if side.sort in (LIST, SET, TUPLE) else side.text


def _equation(side: Parts) -> str:
    return f"{side.label}={side.text}" if side.label else side.text


def _base(label: str) -> str:
    return label.partition("_")[0]


def _all(verdicts: Iterable[bool | None]) -> bool | None:
    """Returns False if one is False, else None if one is None, else True."""
    return _decided(verdicts, by=False)


def _any(verdicts: Iterable[bool | None]) -> bool | None:
    """Returns True if one is True, else None if one is None, else False."""
    return _decided(verdicts, by=True)


def _decided(verdicts: Iterable[bool | None], *, by: bool) -> bool | None:
    result: bool | None = not by
    for verdict in verdicts:
        if verdict is by:
            return by
        result = verdict if verdict is None else result
    return result
