"""Which words are forms of the same word? Rules for plurals, -ed, -ing, -ly, -ic, -ics, -ical and British spelling.

The rules generate all possible base forms of a word, some of which are not words; two words count as the same if they
share a base form. Occasionally different words do (`early` and `ear`), and the vocabulary loses one of them.
"""

import re
from collections.abc import Iterator

INFLECTIONS = (
    ("ies", ("y", "ie")),
    ("ices", ("ix", "ex", "ice")),
    ("ses", ("sis", "s", "se")),
    ("es", ("", "e")),
    ("s", ("",)),
    ("ae", ("a",)),
    ("i", ("us",)),
    ("a", ("um",)),
    ("ed", ("", "e")),
    ("ing", ("", "e")),
    ("ally", ("al", "")),
    ("ily", ("y",)),
    ("ly", ("",)),
    ("ical", ("ic",)),
)
"""Ending -> possible endings of the base form."""
IRREGULAR = {
    "automata": "automaton", "axes": "axis", "bacilli": "bacillus", "corpora": "corpus", "criteria": "criterion",
    "feet": "foot", "ganglia": "ganglion", "genera": "genus", "halves": "half", "larvae": "larva", "leaves": "leaf",
    "lives": "life", "mice": "mouse", "mitochondria": "mitochondrion", "phenomena": "phenomenon",
    "polyhedra": "polyhedron", "taxa": "taxon", "teeth": "tooth", "vortices": "vortex",
}  # fmt: skip
SPELLINGS = (
    (re.compile(r"is(e|ed|es|er|ing|ation|ations)$"), r"iz\1"),
    (re.compile(r"ys(e|ed|er|ing)$"), r"yz\1"),
    (re.compile(r"our"), "or"),
    (re.compile(r"[ao]e(?=.)"), "e"),
    (re.compile(r"(?<=[bt])re(s?)$"), r"er\1"),
    (re.compile(r"ogue$"), "og"),
    (re.compile(r"sulph"), "sulf"),
    (re.compile(r"ll(?=ed$|ing$|er$)"), "l"),
    (re.compile(r"^aluminium"), "aluminum"),
)
"""British to American; the result need not be a word, only the same for both spellings."""
MIN_STEM_LETTERS = 3


def base_forms(word: str) -> frozenset[str]:
    """Returns a word and all its possible base forms; two words with a common form count as the same."""
    for pattern, replacement in SPELLINGS:
        word = pattern.sub(replacement, word)
    forms: set[str] = set()
    new = {word}
    while new:
        forms |= new
        new = {base for form in new for base in _bases(form)} - forms
    return frozenset(forms)


def _bases(form: str) -> Iterator[str]:
    if form in IRREGULAR:
        yield IRREGULAR[form]
    for ending, replacements in INFLECTIONS:
        stem = form.removesuffix(ending)
        if stem == form or len(stem) < MIN_STEM_LETTERS or not re.search("[aeiouy]", stem):
            continue
        if ending == "s" and stem.endswith(("s", "u", "i")):  # mass, radius, axis
            continue
        yield from (stem + replacement for replacement in replacements)
        if ending in ("ed", "ing") and stem[-1] == stem[-2]:
            yield stem[:-1]
