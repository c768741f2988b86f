"""Which two words are in a pair? No two pairs of a set have the same words, and pairs do not depend on each other.

The words of a split (those that may be paired: all, or all of one length) are arranged on a circle in a random order
from the seed. A word's partners are the words on the following half circle, so of two words exactly one has the other
as a partner. In round r each word, in a random order for that round, is the target once, with its r-th partner. The
order of partners is random from the seed (`any`, `length`) or by similarity, most similar first (`similar`).

Similarity is an edit distance in which substitutions of similar letters cost 1/2, insertions and deletions 1.
"""

import random
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import accumulate

import numpy as np
from jaxtyping import Int, UInt8

DISTRACTORS = ("any", "length", "similar")
MAX_SIMILAR = 12
"""Number of partners per word under `similar`; later ones are hardly similar."""
LOOK_ALIKE = (
    "ceo", "aeo", "ag", "gq", "gy", "bdh", "bp", "pq", "dq", "ijl", "ilt", "ft", "hkb", "mn", "hnu", "nr", "uv", "vwy",
    "sz", "xk",
)  # fmt: skip
"""Groups of letters that look alike."""
LETTERS = "abcdefghijklmnopqrstuvwxyz"

Rng = Callable[..., random.Random]
"""Returns the random number generator for some names."""


def edit_distance(first: str, second: str) -> int:
    """Returns how many letters must be replaced, inserted or deleted to make one word of the other (Levenshtein)."""
    above = list(range(len(second) + 1))
    for row, letter in enumerate(first, start=1):
        current = [row]
        for column, other in enumerate(second, start=1):
            current.append(min(above[column] + 1, current[-1] + 1, above[column - 1] + (letter != other)))
        above = current
    return above[-1]


def _letter_costs() -> Int[np.ndarray, "27 27"]:
    """Returns substitution costs in units of 1/2; the last index is padding."""
    costs = np.full((len(LETTERS) + 1,) * 2, 2, dtype=np.int16)
    for group in LOOK_ALIKE:
        numbers = [LETTERS.index(letter) for letter in group]
        costs[np.ix_(numbers, numbers)] = 1
    np.fill_diagonal(costs, 0)
    return costs


LETTER_COSTS = _letter_costs()


def encode_words(words: Sequence[str]) -> UInt8[np.ndarray, "words letters"]:
    """Encodes words as padded arrays of letter numbers."""
    longest = max(map(len, words))
    codes = np.full((len(words), longest), len(LETTERS), dtype=np.uint8)
    for row, word in enumerate(words):
        codes[row, : len(word)] = [LETTERS.index(letter) for letter in word]
    return codes


def look_distances(
    word: UInt8[np.ndarray, " letters"], others: UInt8[np.ndarray, "words letters"], lengths: Int[np.ndarray, " words"]
) -> Int[np.ndarray, " words"]:
    """Returns the distances of a word to all others in units of 1/2, vectorised."""
    num_columns = others.shape[1]
    above = [np.full(len(others), 2 * column, dtype=np.int16) for column in range(num_columns + 1)]
    for row, letter in enumerate(word, start=1):
        costs = LETTER_COSTS[letter][others]  # [words, letters]
        current = [np.full(len(others), 2 * row, dtype=np.int16)]
        for column in range(1, num_columns + 1):
            cheapest = np.minimum(above[column], current[-1]) + 2
            current.append(np.minimum(cheapest, above[column - 1] + costs[:, column - 1]))
        above = current
    distances: Int[np.ndarray, " words"] = np.stack(above)[lengths, np.arange(len(others))]
    return distances


class Circle:
    """Words that may be paired."""

    def __init__(self, words: Sequence[str], distractor: str, rng: Rng) -> None:
        name = len(words[0]) if distractor == "length" else "all"
        self.words = sorted(words)
        rng("circle", name).shuffle(self.words)
        self._half = (len(words) - 1) // 2
        steps = list(range(1, self._half + 1))
        rng("steps", name).shuffle(steps)
        self._steps = [*steps, self._half + 1]  # the last is directly opposite, if the number of words is even
        self._limit = MAX_SIMILAR if distractor == "similar" else len(words)
        self._codes = encode_words(self.words) if distractor == "similar" else None
        self._lengths = np.array([len(word) for word in self.words])

    def num_partners(self, position: int) -> int:
        """Returns the number of partners of the word at a position."""
        across = len(self.words) % 2 == 0 and position < len(self.words) // 2
        return min(self._half + across, self._limit)

    def partner(self, position: int, number: int) -> str:
        """Returns a partner of the word at a position."""
        if self._codes is None:
            return self.words[(position + self._steps[number]) % len(self.words)]
        num_behind = self._half + (len(self.words) % 2 == 0 and position < len(self.words) // 2)
        behind = (position + np.arange(1, num_behind + 1)) % len(self.words)
        distances = look_distances(
            self._codes[position][: self._lengths[position]], self._codes[behind], self._lengths[behind]
        )
        return self.words[int(behind[np.argsort(distances, kind="stable")[number]])]


class WordPairs:
    """All pairs of words of a vocabulary, numbered."""

    def __init__(self, words: Sequence[str], distractor: str, rng: Rng) -> None:
        assert distractor in DISTRACTORS, distractor
        self._rng = rng
        groups: dict[int, list[str]] = {}
        for word in words:
            groups.setdefault(len(word) if distractor == "length" else 0, []).append(word)
        circles = [Circle(group, distractor, rng) for _, group in sorted(groups.items())]
        places = [(circle, position) for circle in circles for position in range(len(circle.words))]
        self._places = sorted(places, key=lambda place: -place[0].num_partners(place[1]))
        numbers = [circle.num_partners(position) for circle, position in self._places]
        self._in_round = [sum(number > r for number in numbers) for r in range(max(numbers, default=0))]
        self._begins = list(accumulate(self._in_round, initial=0))
        self._order_of = lru_cache(maxsize=1)(self._draw_order)

    def __len__(self) -> int:
        return self._begins[-1]

    def _draw_order(self, number: int) -> list[int]:
        """Returns the order of the targets in a round."""
        order = list(range(self._in_round[number]))
        self._rng("round", number).shuffle(order)
        return order

    def __getitem__(self, index: int) -> tuple[str, str]:
        """Returns target and source of a pair, given its number."""
        assert 0 <= index < len(self), index
        number = bisect_right(self._begins, index) - 1
        circle, position = self._places[self._order_of(number)[index - self._begins[number]]]
        return circle.words[position], circle.partner(position, number)
