"""Which defects does one pair have? Checks its texts, sizes and boxes, and the content of its images.

A pair drawn by one of the builders is compared with its own record (`TASK/check.py`); any other is checked by its
pixels only (`data_builders/pairs/unproven.py`).
"""

from collections.abc import Callable
from typing import NamedTuple

from data_builders.counting import check as counting
from data_builders.grounding import check as grounding
from data_builders.ocr import check as ocr
from data_builders.pairs import defects
from data_builders.pairs.defects import preflight
from data_builders.pairs.pair import Pair
from data_builders.pairs.pictures import Found, PairPictures
from data_builders.pairs.unproven import NOT_SEEN, UNPROVEN_DEFECTS, check_unproven
from data_builders.pocket import check as pocket
from data_builders.recognition import check as recognition
from data_builders.validate.repeats import REPEAT_DEFECTS, Keys, keys_of
from data_builders.validate.set_files import PAIR_RECORD_DEFECTS, PairSet, check_id, check_sizes

MISREAD = "word_misread"
"""The only kind that is checked on request only."""


class Checks(NamedTuple):
    """The defects of one kind of pair, and how they are found."""

    defects: dict[str, str]
    check: Callable[[PairPictures], Found]
    not_seen: str | None = None
    """What cannot be checked for this kind of pair."""
    unseen: Callable[[Pair], str | None] = lambda pair: None
    """Returns what cannot be checked for a given pair on this machine."""


CHECKS: dict[str, Checks] = {
    "ocr": Checks(ocr.DEFECTS, ocr.check_ocr, unseen=ocr.unseen),
    "counting": Checks(counting.DEFECTS, counting.check_counting),
    "grounding": Checks(grounding.DEFECTS, grounding.check_grounding),
    "recognition": Checks(
        recognition.DEFECTS, recognition.check_recognition, "whether photographs show what is annotated"
    ),
    "pocket_pairs": Checks(pocket.DEFECTS, pocket.check_pocket),
}
"""Task in `data_builders.build` -> the checks of its pairs."""


class PairFindings(NamedTuple):
    """The findings for one pair."""

    pair_id: str
    found: list[tuple[str, str]]
    """Kinds of defects, each with a text."""
    keys: Keys
    differing_frac: float | None
    """Share of the pixels that differ; None if the images cannot be compared."""
    unseen: str | None
    """What could not be checked on this machine."""


def builder_of(pair_set: PairSet, pair: Pair) -> str | None:
    """Returns the builder task of a pair, from its id's prefix; None for pairs of other origin.

    A pair of two scenes from another data set (`minimal` is false in its record) has no proof either.
    """
    builder = pair_set.builder or pair.id.rpartition("-")[0]
    return builder if builder in CHECKS and (pair.meta or {}).get("minimal") is not False else None


def checks_of(pair_set: PairSet, pair: Pair) -> Checks:
    """Returns the checks of a pair's images."""
    builder = builder_of(pair_set, pair)
    if builder is None:
        return Checks(UNPROVEN_DEFECTS[pair.task], check_unproven, NOT_SEEN[pair.task])
    return CHECKS[builder]


def meanings_of(pair_set: PairSet, pair: Pair, *, read_back: bool) -> dict[str, str]:
    """Returns all kinds of defects checked in a pair, with their meanings."""
    found = defects.DEFECTS | REPEAT_DEFECTS
    if pair_set.manifest:
        found |= PAIR_RECORD_DEFECTS
    found |= checks_of(pair_set, pair).defects
    if has_words(pair_set, pair):
        found.pop(MISREAD, None)
        if read_back:
            found[MISREAD] = ocr.DEFECTS[MISREAD]
    return found


def has_words(pair_set: PairSet, pair: Pair) -> bool:
    """True if a pair shows words to read, rather than the pocket world's shapes."""
    return pair.task == "ocr" and builder_of(pair_set, pair) in ("ocr", None)


def check_pair(pair_set: PairSet, pair: Pair, number: int, *, read_back: bool) -> PairFindings:
    """Runs all checks of a single pair.

    Args:
        pair_set: the set of the pair.
        pair: the pair; its images are compared if both can be read and have the same size.
        number: its index in the set, from 0.
        read_back: read its words with Tesseract.
    """
    early = preflight(pair_set.directory, [pair])
    found = [*check_id(pair_set, pair, number), *((defect.kind, defect.text) for defect in early)]
    kinds = {defect.kind for defect in early}
    builder = builder_of(pair_set, pair)
    if "unreadable_image" in kinds:
        return PairFindings(pair.id, found, keys_of(pair, None, builder=builder), None, None)
    pictures = PairPictures(pair_set.directory, pair)
    if pair_set.grid is not None:
        height, width = pictures.target.shape[:2]
        found += check_sizes(pair, (width, height), pair_set.grid)
    differing_frac = unseen = None
    if "unequal_sizes" not in kinds:
        checks = checks_of(pair_set, pair)
        differing_frac = float(pictures.differs.mean())
        found += checks.check(pictures)
        unseen = checks.unseen(pair)
        if read_back and has_words(pair_set, pair):
            found += ocr.read_words(pictures)
    return PairFindings(pair.id, found, keys_of(pair, pictures, builder=builder), differing_frac, unseen)
