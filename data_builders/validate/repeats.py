"""Does a pair stand twice, or a word or photograph in two splits? Seen across all sets that are checked together.

A pair is known by its prompt and the pixels of its two pictures, in either order, words by their letters, photographs
by their pixels.
"""

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

from data_builders.pairs.pair import Pair
from data_builders.pairs.pictures import PairPictures

KEY_BYTES = 16
"""Of a hash, kept for everything seen."""
REPEAT_DEFECTS = {
    "repeated_pair": "the same prompt with the same two pictures",
    "repeated_words": "the same two words",
    "shared_by_splits": "a word or photograph stands in sets of two splits",
}
"""What must not stand twice."""


class Keys(NamedTuple):
    """By what a pair is known."""

    pair: bytes | None
    """None where its pictures cannot be read."""
    words: bytes | None = None
    """Of the two words of an ocr pair."""
    held_apart: tuple[bytes, ...] = ()
    """Of the words or the photograph that no other split may show."""


def keys_of(pair: Pair, pictures: PairPictures | None, *, builder: str | None) -> Keys:
    """Returns by what a pair is known.

    Args:
        pair: from a set.
        pictures: what it shows, where that can be read.
        builder: the task it was built with; None for sets without a manifest.
    """
    shown = None
    by_side: list[bytes] = []
    if pictures is not None:
        by_side = [_key(picture.shape, picture.tobytes()) for picture in (pictures.target, pictures.source)]
        shown = _key(pair.prompt, *sorted(by_side))
    if pair.task == "ocr" and builder in ("ocr", None):
        words = [answer.strip().casefold() for answer in (pair.target_answer, pair.source_answer)]
        return Keys(shown, _key("words", *sorted(words)), tuple(_key("word", word) for word in words))
    if builder == "recognition":
        return Keys(shown, held_apart=tuple(by_side[:1]))
    return Keys(shown)


class Seen:
    """What stood in the pairs so far."""

    def __init__(self) -> None:
        self._names: dict[bytes, str] = {}
        self._splits: dict[bytes, tuple[str, str]] = {}

    def add(self, name: str, keys: Keys, *, split: str | None) -> Iterator[tuple[str, str]]:
        """Yields what of a pair stood before, and remembers the pair."""
        for kind, key in (("repeated_pair", keys.pair), ("repeated_words", keys.words)):
            if key is None:
                continue
            first = self._names.setdefault(key, name)
            if first is not name:
                yield kind, f"as {first}"
        if split is None:
            return
        for key in keys.held_apart:
            first_split, first = self._splits.setdefault(key, (split, name))
            if first_split != split:
                yield "shared_by_splits", f"in {split}, and in {first_split} with {first}"


def _key(*parts: object) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else repr(part).encode()
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.digest()[:KEY_BYTES]
