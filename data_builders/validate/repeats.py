"""Is a pair duplicated, or is a word or photograph in two splits? Checked across all sets given together.

A pair is identified by its prompt and the pixels of its two images, in either order; words by their letters;
photographs by their pixels.
"""

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

from data_builders.pairs.pair import Pair
from data_builders.pairs.pictures import PairPictures

KEY_BYTES = 16
"""Bytes kept of each hash."""
REPEAT_DEFECTS = {
    "repeated_pair": "the same prompt with the same two pictures",
    "repeated_words": "the same two words",
    "shared_by_splits": "a word or photograph stands in sets of two splits",
}
"""Defects of duplication."""


class Keys(NamedTuple):
    """Identity of a pair."""

    pair: bytes | None
    """Hash of prompt and images; None if the images cannot be read."""
    words: bytes | None = None
    """Hash of the two words of an ocr pair."""
    held_apart: tuple[bytes, ...] = ()
    """Hashes of the words or the photograph, which no other split may contain."""


def keys_of(pair: Pair, pictures: PairPictures | None, *, builder: str | None) -> Keys:
    """Returns the identity of a pair.

    Args:
        pair: from a set.
        pictures: its images, if they can be read.
        builder: the task that built it; None for sets without a manifest.
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
    """Index of the pairs so far."""

    def __init__(self) -> None:
        self._names: dict[bytes, str] = {}
        self._splits: dict[bytes, tuple[str, str]] = {}

    def add(self, name: str, keys: Keys, *, split: str | None) -> Iterator[tuple[str, str]]:
        """Yields the duplicates of a pair, and adds it to the index."""
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
