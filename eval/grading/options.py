"""Which of the options does an answer name? By text or letter, exact after normalisation; no fuzzy matching.

An answer names an option by, in this order:

    text      the option's text, ignoring case, LaTeX spelling, articles and full stop, and, if only one option has that
              number, its unit (`145` for `145°`)
    letter    `B`, `(B)`, `option B`, `B. 12`
    asserted  a sentence says that it is the answer: `B is correct, not C`
    mention   the option occurs in it as whole words: `it would decrease`

Text has precedence over letters: if the options are `(c), (a), (e), (d), (b)`, the answer `(b)` is the last, not the
second. The longest match at a position is used, so `quarter past` is not `quarter`. Options with equal texts are one
option. An answer that names several options is wrong, unless its letter and its text name different options and one of
them is right (`B. 12` where C is 12): such an answer cannot be judged.
"""

import re
import string
from collections.abc import Sequence
from functools import lru_cache

from eval.grading.latex import plain
from eval.grading.markup import undelimited
from eval.grading.quantities import equal_quantities, parse_quantity

LETTERS = "ABCDEFGHIJ"
_LETTER = r"[A-Ja-j]"
_PREFIX = r"(?:(?:the\s+)?(?:correct\s+)?(?:option|choice|answer|letter)\s*(?:is\s*)?:?\s*)?"
_LETTER_ALONE = re.compile(rf"{_PREFIX}[(\[]?\s*({_LETTER})\s*[)\]]?\s*[.:)]?", re.IGNORECASE)
_LETTER_THEN_TEXT = re.compile(
    rf"{_PREFIX}(?:[(\[]\s*({_LETTER})\s*[)\]]|({_LETTER})\s*[.:)])[\s.:,–-]*(\S.*)", re.IGNORECASE | re.DOTALL
)
_ALONE = r"(?<![A-Za-z0-9_\\])"
"""No letter or digit before: between Chinese and Latin letters there is no word boundary."""
_ENDS = r"(?![A-Za-z0-9_])"
_NOT_DENIED = r"(?<!不)(?<!不能)(?<!不应)(?<!误)"
_MARKED_LETTER = re.compile(
    r"\(([A-J])\)|\b(?:[Oo]ption|[Cc]hoice|[Aa]nswer|[Ll]etter)\s*(?:is|:)?\s*[*(\[]{0,2}([A-J])\b"
    r"|\*\*\(?([A-J])\)?[.:]?\*\*"
    r"|\b([A-J])\b(?=\s*(?:or|and|/|,|&)\s*\(?[A-J]\b)|\b(?:choose|pick|select|is|be)\s+([A-J])\b(?!\s+[a-z])"
    rf"|{_ALONE}([B-J]){_ENDS}(?=[.):。．]?\s*$)|(?:(?<=[a-z:]\s)|(?<=[\u4e00-\u9fff：]))(A)(?=[.):。．]?\s*$)"
    r"|\A\W*([A-HJ])\b(?=\)?\*{0,2}(?:\s*[,;，；]|\s+[-–—]\s|\s+(?:because|since|as|not|but|rather|instead)\b))"
    r"|(?:\b(?:go(?:es)? with|opt for|corresponds? to|match(?:es)?|it's|that's)\s+|选项?\s*[:：]?\s*)"
    rf"([A-HJ]){_ENDS}(?!\s+[a-z])|{_ALONE}([A-J])\s?选?项"
    r"|(?:(?<=\b[A-J] or )|(?<=\b[A-J] and )|(?<=\b[A-J], )|(?<=\b[A-J]/))([A-J])\b"
)
"""A letter within a sentence that can be neither an article nor a variable."""
_ASSERTED = re.compile(
    rf"{_ALONE}\(?([A-HJ])\)?{_ENDS}(?:[.:)]?\s*\([^()\n]{{1,80}}\))?\*{{0,2}},?\s+"
    r"(?:it is\b|(?:fits|matches|works|is)\s+best\b(?!\s+[a-z])|best\s+(?:fits|matches|describes|answers)\b"
    r"|(?:is|was|must be|has to be|should be|would be|will be|seems(?: to be)?|appears(?: to be)?)\s+"
    r"(?:(?:the|indeed|therefore|thus|hence|clearly|also|most|only|our|my|best)\s+){0,3}"
    r"(?:correct|right|best(?:\s+(?:choice|option|answer|one|match|fit)|(?!\s+[a-z]))|answer|true|proper)\b)"
    r"|\b(?:correct|right|best)\s+(?:answer|option|choice)\s+(?:is|must be|would be|should be)\s*:?\s*"
    rf"(?:option\s+|choice\s+)?[*(\[]{{0,3}}([A-HJ]){_ENDS}"
    rf"|{_ALONE}([A-J])\s*(?:选?项)?(?:是|才是|为|最)?(?:正确|对的|符合)"
    rf"|(?:正确的?(?:选项|答案|一项|说法)?(?:应该|应)?(?:是|为)|{_NOT_DENIED}选(?:择)?)\s*[:：]?\s*\(?([A-J]){_ENDS}"
)
"""A letter of which a sentence says that it is the answer: `B is correct`, 所以选B."""
_JOINED = re.compile(r"\(?\b[A-J]\b\)?(?:(?:\s*[,/&、]\s*|,?\s+(?:or|and)\s+|[或和])\(?[A-J]\b\)?)+")
"""Several letters in a row: `A, B or C`."""
_AND_ANOTHER = re.compile(r"(?:or|and|/|,|&)\W*(?:option\s*)?\(?[A-J]\b", re.IGNORECASE)
_DENIED = re.compile(
    r"(?:\b(?:not|nor|neither|than|rather\s+than|instead\s+of|unlike|if|whether|suppose|assuming|why)\s+"
    r"(?:(?:true|clear|certain|sure|said)\s+)?(?:that\s+)?(?:the\s+|an?\s+)?(?:(?:option|choice)\s+)?"
    r"|(?:不[能应会]?|排除|不是|而非|而不是|如果|若|假设)\s*(?:选项?)?)\(?\*{0,2}$",
    re.IGNORECASE,
)
_FULL_WIDTH = {0xFEE0 + ord(letter): letter for letter in string.ascii_letters}
_SAID = {"yes": "yes", "true": "yes", "no": "no", "false": "no"}
_YES_AND_NO = re.compile(r"\W*(?:yes|no|true|false)\W+(?:and|or)\W+(?:yes|no|true|false)\b", re.IGNORECASE)
_SAYS = re.compile(
    r"^\W*(yes|true|false|no(?=\W*$|\W*[,.;:!?—–-]|\s+(?:it|they|there|the|this|that|these|those|he|she|because|since)\b))\b"
    r"|\b(yes|true|false)\b|\b(no)\b(?=\W*$|[,.;:!?*\"'”’])",
    re.IGNORECASE,
)


def equal_options(answer: str, gold: str, choices: Sequence[str] = ()) -> bool | None:
    """Returns whether an answer names the gold option; None if the gold is no option, or letter and text disagree.

    Without choices, options are identified by their letters only.
    """
    right = named_options(gold, choices)
    if len(right) != 1:
        return None
    named = named_options(answer, choices)
    if named == right:
        return True
    return None if right < named and _disagrees(answer, choices) else False


def named_options(answer: str, choices: Sequence[str] = ()) -> set[str]:
    """Returns the options that an answer names, as normalised texts, or as letters if there are no texts."""
    keys = _keys(tuple(choices))
    text = _key(answer)
    by_text = _with_text(text, keys)
    if by_text:
        return by_text
    answer = in_latin_letters(undelimited(answer))
    letter, rest = _letter_of(answer, len(keys) or len(LETTERS))
    if letter is not None:
        own = keys[letter] if keys else LETTERS[letter]
        others = mentions(rest, choices) if _AND_ANOTHER.match(rest) else []
        return {own} | _with_text(_key(rest), keys) | {named for _, _, named in others}
    letters = {LETTERS.index(letter) for _, _, letter in asserted(answer, len(keys))}
    if len(letters) == 1:
        letter = letters.pop()
        return {keys[letter] if keys else LETTERS[letter]}
    return {named for _, _, named in mentions(answer, choices)}


def asserted(text: str, num_options: int) -> list[tuple[int, int, str]]:
    """Returns the positions of letters of which a text says that they are the answer, in order.

    Args:
        num_options: number of options; 0 if it is unknown.
    """
    known = LETTERS[: num_options or len(LETTERS)]
    found = []
    for match in _ASSERTED.finditer(in_latin_letters(text)):
        number = next(number for number, group in enumerate(match.groups(), start=1) if group)
        begin, end = match.span(number)
        if (
            match[number] in known
            and joined_letters(text, begin) is None
            and not _DENIED.search(text[max(0, begin - 40) : begin])
        ):
            found.append((begin, end, match[number]))
    return found


def joined_letters(text: str, begin: int) -> str | None:
    """Returns the row of letters to which the one at a position belongs, such as `A or B`; None if it is alone."""
    start = max(0, begin - 40)
    rows = _JOINED.finditer(text[start : begin + 40])
    return next((row.group() for row in rows if start + row.start() <= begin < start + row.end()), None)


def in_latin_letters(text: str) -> str:
    """Returns a text with full-width letters as ASCII letters, of the same length."""
    return text if text.isascii() else text.translate(_FULL_WIDTH)


def mentions(text: str, choices: Sequence[str]) -> list[tuple[int, int, str]]:
    """Returns the positions of options in a text, in order, except negated ones (`not B`)."""
    keys = _keys(tuple(choices))
    found = [
        (match.start(), match.end(), _key(match.group())) for match in _texts_pattern(tuple(choices)).finditer(text)
    ]
    texts = list(found)
    for match in _MARKED_LETTER.finditer(text):
        letter = LETTERS.index(next(group for group in match.groups() if group))
        is_in_text = any(start < match.end() and match.start() < end for start, end, _ in texts)
        if letter < (len(keys) or len(LETTERS)) and not is_in_text:
            found.append((match.start(), match.end(), keys[letter] if keys else LETTERS[letter]))
    return sorted(place for place in found if not _DENIED.search(text[max(0, place[0] - 40) : place[0]]))


def yes_or_no(text: str) -> set[str]:
    """Returns whether a text says `yes`, `no`, both or neither; if its first word is one of them, that decides.

    `No` before a noun (`no bar is taller`) does not count.
    """
    found = list(_SAYS.finditer(text))
    if found and found[0][1] and not _YES_AND_NO.match(text):
        return {_SAID[found[0][1].casefold()]}
    return {
        _SAID[(match[1] or match[2] or match[3]).casefold()]
        for match in found
        if not re.search(r"\b(?:not|n't)\W+(?:a\s+)?$", text[max(0, match.start() - 12) : match.start()], re.IGNORECASE)
    }


def equal_yes_no(answer: str, gold: str) -> bool | None:
    """Returns whether an answer agrees with the gold on yes/no or true/false; None if the gold is neither."""
    right = yes_or_no(plain(gold))
    return None if len(right) != 1 else yes_or_no(plain(answer)) == right


def _disagrees(answer: str, choices: Sequence[str]) -> bool:
    """True if the letter names one option and the text next to it another."""
    letter, rest = _letter_of(answer, len(choices))
    return letter is not None and len(_with_text(_key(rest), _keys(tuple(choices)))) == 1


def _letter_of(answer: str, num_options: int) -> tuple[int | None, str]:
    """Returns the index of the letter that an answer consists of or starts with, and the remaining text."""
    text = plain(answer)
    found = _LETTER_ALONE.fullmatch(text)
    letter, rest = (found[1], "") if found else (None, "")
    if found is None:
        found = _LETTER_THEN_TEXT.fullmatch(text)
        if found is not None:
            letter, rest = found[1] or found[2], found[3]
    if letter is None or LETTERS.index(letter.upper()) >= num_options:
        return None, ""
    return LETTERS.index(letter.upper()), rest


def _with_text(text: str, keys: tuple[str, ...]) -> set[str]:
    """Returns the options with this text: unchanged, else without articles and brackets, else by their number."""
    if not text:
        return set()
    for reduce in (str, _bare):
        same = {key for key in keys if reduce(key) == reduce(text)}
        if same:
            return same
    number = parse_quantity(text)
    if number is None:
        return set()
    quantities = ((key, parse_quantity(key)) for key in keys)
    same = {key for key, quantity in quantities if quantity is not None and equal_quantities(number, quantity)}
    return same if len(same) == 1 else set()


def _bare(key: str) -> str:
    stripped = key[1:-1] if key.startswith("(") and key.endswith(")") else key
    words = [word for word in re.split(r"[\s\"']+", stripped) if word not in ("a", "an", "the")]
    return " ".join(words) or stripped


@lru_cache(maxsize=1024)
def _keys(choices: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(_key(choice) for choice in choices)


def _key(text: str) -> str:
    return re.sub(r"\s+", " ", plain(undelimited(text))).casefold().strip()


@lru_cache(maxsize=1024)
def _texts_pattern(choices: tuple[str, ...]) -> re.Pattern[str]:
    """Matches the options' texts as whole words and whole numbers, longest first; single letters are excluded."""
    texts = sorted({choice.strip() for choice in choices}, key=len, reverse=True)
    spelled = ["\\s+".join(re.escape(word) for word in text.rstrip(".").split()) for text in texts]
    worth = [pattern for text, pattern in zip(texts, spelled, strict=True) if not re.fullmatch(r"\(?[A-Za-z]\)?", text)]
    if not worth:
        return re.compile(r"(?!)")
    return re.compile(rf"(?<![\w.\\-])(?:{'|'.join(worth)})(?![\w\\]|[.,:/^-]\d|\s?°)", re.IGNORECASE)
