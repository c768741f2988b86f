r"""Are two mathematical answers equal? Simple cases are decided here, the others by symbolic mathematics.

Decided first, without symbolic mathematics: the same plain spelling (`latex.py`); golds that are words (`east`), yes or
no, or an option's letter (`\text{(C)}`, `C`); two exact numbers; lists, sets, tuples and ratios of exact numbers
(`structure.py`); moduli and bases (`notations.py`). All other pairs are passed to `mathematics.py`.

A gold of letters only may be a word or a product (`abc`). It is a word if it is long, or has several long words;
otherwise an answer with the same letters in another order is undecided.
"""

import re

from eval.grading.latex import plain, unwrapped
from eval.grading.mathematics import equal_expressions
from eval.grading.notations import UNDECIDABLE, compare_notations
from eval.grading.options import equal_options, equal_yes_no
from eval.grading.quantities import Quantity, equal_quantities, parse_quantity
from eval.grading.structure import HAS_PARTS, are_side_by_side, equal_structures

MAX_DEPTH = 20
"""Deeper nesting is not a final answer, and its parsing time is unbounded."""
LONG_WORD = 5
"""Letters of a word that is no product of letters."""

_WORDS = re.compile(r"\$?\s*\\(?:text|mbox|textbf|mathrm)\{[^{}0-9\\]*[A-Za-z]{2}[^{}0-9\\]*\}\s*\$?")
_LETTERS = re.compile(r"[A-Za-z]+(?:[ '-][A-Za-z]+)*")
_OPTION = re.compile(r"\$?\s*(?:\\(?:text|mbox|textbf|mathrm|mathbf)\{)?\s*\(?([A-J])\)?\s*\}?\s*\$?")
_OPTION_AND_TEXT = re.compile(r"\s*(?:\(([A-J])\)|([A-J])[.)])\s*(\S.*)", re.DOTALL)
_VECTOR = re.compile(r"[(\[].*,.*[)\]]|\\begin\{[pb]?matrix\}.*(?:\\\\|&).*", re.DOTALL)
"""A tuple, an interval or a matrix with several entries, which no number equals."""
_DIGITS = re.compile(r"[\d,]+")
_YES_NO = frozenset(("yes", "no", "true", "false"))
_MEANINGS = {
    "no solution": "none", "no solutions": "none", "empty set": "none", "\\emptyset": "none", "\\varnothing": "none",
    "\\{\\}": "none", "all real numbers": "reals", "all reals": "reals", "\\mathbb{r}": "reals", "\\mathbbr": "reals",
    "(-\\infty,\\infty)": "reals", "infinity": "infinity", "\\infty": "infinity",
}  # fmt: skip
"""Words and formulas, in lower case -> their meaning."""
_FUNCTIONS = frozenset((
    "infinity", "infty", "sin", "cos", "tan", "cot", "sec", "csc", "log", "ln", "exp", "sqrt", "max", "min", "gcd",
    "lcm", "det", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "pi", "theta", "alpha", "beta", "gamma",
    "delta", "lambda", "sigma", "omega",
))  # fmt: skip
"""Names that are mathematics although they are letters."""


def equal_mathematics(answer: str, gold: str) -> bool | None:
    """Returns whether two mathematical answers are equal; None if that cannot be decided or time runs out."""
    verdict = plainly_equal(answer, gold)
    if verdict is not None or _is_undecidable(plain(answer), plain(gold)):
        return verdict
    return equal_expressions(_without_option(answer), _without_option(gold))


def plainly_equal(answer: str, gold: str) -> bool | None:
    """Returns whether two answers are equal if that is certain without symbolic mathematics, else None."""
    ours, theirs = plain(answer), plain(gold)
    if not theirs:
        return None
    if ours == theirs:
        return True
    number, right = _quantities(ours, theirs)
    if right is None:
        if _OPTION.fullmatch(gold):
            return None if _is_undecidable(ours, theirs) else equal_options(answer, gold)
        meaning = _MEANINGS.get(theirs.casefold())
        if meaning is not None and meaning == _MEANINGS.get(ours.casefold()):
            return True
        if _WORDS.fullmatch(gold) or _is_word(theirs):
            words = _bare_words(theirs)
            return equal_yes_no(answer, gold) if words in _YES_NO else _bare_words(ours) == words
        if _is_capitalized(ours, theirs):
            return True
        option = _OPTION_AND_TEXT.fullmatch(unwrapped(gold)) if ")" in gold or "." in gold else None
        if option is not None:
            return _equal_option_and_text(answer, option[1] or option[2], option[3])
    elif number is not None:
        return equal_quantities(number, right)
    if are_side_by_side(ours) and not are_side_by_side(theirs):
        return False
    if len(ours) > MAX_DEPTH and _depth(ours) > MAX_DEPTH:
        return False
    if right is not None and _DIGITS.fullmatch(ours):
        return False  # malformed thousands, or a list
    if (right is not None and _VECTOR.fullmatch(ours)) or (number is not None and _VECTOR.fullmatch(theirs)):
        return False
    if not HAS_PARTS.search(answer) and not HAS_PARTS.search(gold) and not _OPTION_AND_TEXT.fullmatch(ours):
        return None
    return equal_structures(_without_option(answer), gold, _equal_values)


def _equal_values(answer: str, gold: str) -> bool | None:
    """Compares two values without symbolic mathematics; None if that is not possible."""
    ours, theirs = plain(answer), plain(gold)
    if ours == theirs:
        return True
    noted = compare_notations(answer, gold)
    if noted is not None:
        return None if noted == UNDECIDABLE else bool(noted)
    number, right = _quantities(ours, theirs)
    if number is not None and right is not None:
        return equal_quantities(number, right)
    return False if are_side_by_side(ours) and not are_side_by_side(theirs) else None


def _quantities(ours: str, theirs: str) -> tuple[Quantity | None, Quantity | None]:
    """Returns the exact numbers that two plain texts are; none if both are equations: their letters count."""
    return (None, None) if "=" in ours and "=" in theirs else (parse_quantity(ours), parse_quantity(theirs))


def _equal_option_and_text(answer: str, letter: str, text: str) -> bool | None:
    """Compares an answer with a gold such as `A. 12`; undecided if the letter says one thing and the text another."""
    option = _OPTION_AND_TEXT.fullmatch(unwrapped(answer))
    if option is None:
        return equal_options(answer, letter) or plainly_equal(answer, text)
    same_text = plainly_equal(option[3], text)
    is_same_letter = (option[1] or option[2]) == letter
    if same_text is None:
        return None
    return same_text if is_same_letter == same_text else None


def _without_option(text: str) -> str:
    """Returns `12` for `A. 12`."""
    option = _OPTION_AND_TEXT.fullmatch(unwrapped(text)) if ")" in text or "." in text else None
    return option[3] if option else text


def _is_word(text: str) -> bool:
    """True if letters are surely a word, not a product or a function."""
    if not _LETTERS.fullmatch(text):
        return False
    words = re.split("[ '-]", text.casefold())
    if any(word in _FUNCTIONS for word in words):
        return False
    is_long = len(text) >= LONG_WORD and any(len(word) > 2 for word in words)
    return text.casefold() in _YES_NO or (is_long and list(text) != sorted(text))


def _is_capitalized(ours: str, theirs: str) -> bool:
    """True for `Red` and `red`, but not for `Ab` and `ab`, which may be products."""
    return len(theirs) > 2 and theirs.isalpha() and {ours, theirs} == {theirs.lower(), theirs.capitalize()}


def _is_undecidable(ours: str, theirs: str) -> bool:
    """True if letters may be a word or a product, an option or a variable, and the other reading decides otherwise."""
    if len(theirs) == 1 and theirs in "ABCDEFGHIJ":
        return ours == theirs.lower()
    if len(theirs) < 3 or not (ours.isalpha() and theirs.isalpha()) or sorted(ours) != sorted(theirs):
        return False
    return any(letter in "aeiou" for letter in theirs) and list(theirs) != sorted(theirs)


def _depth(text: str) -> int:
    deepest = depth = 0
    for bracket in re.findall(r"[()\[\]{}]", text):
        depth += 1 if bracket in "([{" else -1
        deepest = max(deepest, depth)
    return deepest


def _bare_words(text: str) -> str:
    return " ".join(re.findall(r"[^\W_]+", text.casefold()))
