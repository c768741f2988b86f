"""Which words meet in a pair: every two words at most once, and each pair by its number alone."""

import random
from collections import Counter
from itertools import combinations
from math import comb
from typing import Any

import numpy as np
import pytest

from data_builders.ocr.words import (
    DISTRACTORS,
    LETTER_COSTS,
    LETTERS,
    MAX_SIMILAR,
    WordPairs,
    edit_distance,
    encode_words,
    look_distances,
)
from data_builders.vocabulary.command import SCIENCE_FILE, read_vocabulary

SCIENCE = read_vocabulary(SCIENCE_FILE)


def rng(*names: Any) -> random.Random:
    return random.Random("/".join(map(str, ("test", *names))))


def all_pairs(words: list[str], distractor: str) -> list[tuple[str, str]]:
    pairs = WordPairs(words, distractor, rng)
    return [pairs[index] for index in range(len(pairs))]


@pytest.mark.parametrize("num_words", [2, 3, 7, 12])
def test_all_words_meet_each_other_word_once(num_words: int) -> None:
    words = SCIENCE[:num_words]
    met = Counter(map(frozenset, all_pairs(words, "any")))
    assert met == Counter(map(frozenset, combinations(words, 2)))


def test_words_of_one_length_meet_each_other_once_and_no_others() -> None:
    words = SCIENCE[:60]
    met = Counter(map(frozenset, all_pairs(words, "length")))
    assert met == Counter(frozenset(two) for two in combinations(words, 2) if len(two[0]) == len(two[1]))


def test_no_two_similar_pairs_hold_the_same_words() -> None:
    pairs = all_pairs(SCIENCE[:100], "similar")
    assert len(set(map(frozenset, pairs))) == len(pairs) == 100 * MAX_SIMILAR
    assert all(target != source for target, source in pairs)


@pytest.mark.parametrize("distractor", DISTRACTORS)
def test_each_word_is_the_target_once_in_a_round(distractor: str) -> None:
    words = [word for word in SCIENCE if len(word) in (6, 7)][:90]
    pairs = WordPairs(words, distractor, rng)
    for number in range(3):
        targets = [pairs[index][0] for index in range(number * len(words), (number + 1) * len(words))]
        assert sorted(targets) == sorted(words)


def test_similar_words_look_more_alike_than_any_words() -> None:
    words = SCIENCE[:400]
    means = {}
    for distractor in ("any", "similar"):
        pairs = WordPairs(words, distractor, rng)
        means[distractor] = np.mean([edit_distance(*pairs[index]) for index in range(100)])
    assert means["similar"] < 0.65 * means["any"]


@pytest.mark.parametrize("distractor", DISTRACTORS)
def test_a_pair_hangs_neither_on_the_order_of_reading_nor_on_that_of_the_words(distractor: str) -> None:
    words = SCIENCE[:50]
    pairs, again = WordPairs(words, distractor, rng), WordPairs(words[::-1], distractor, rng)
    indices = random.Random(0).sample(range(len(pairs)), 40)
    found = {index: again[index] for index in sorted(indices)}
    assert {index: pairs[index] for index in indices} == found


def test_there_are_as_many_pairs_as_two_words_can_be_chosen() -> None:
    words = SCIENCE[:41]
    lengths = Counter(map(len, words))
    assert len(WordPairs(words, "any", rng)) == comb(41, 2)
    assert len(WordPairs(words, "length", rng)) == sum(comb(number, 2) for number in lengths.values())
    assert len(WordPairs([], "any", rng)) == len(WordPairs(["boson"], "any", rng)) == 0


@pytest.mark.parametrize(
    ("first", "second", "distance"),
    [("kitten", "sitting", 3), ("proton", "photon", 1), ("boson", "boson", 0), ("muon", "", 4), ("flaw", "lawn", 2)],
)
def test_edit_distance(first: str, second: str, distance: int) -> None:
    assert edit_distance(first, second) == edit_distance(second, first) == distance


def slow_look_distance(first: str, second: str) -> int:
    """The same distance from its recursive definition."""
    if not first or not second:
        return 2 * (len(first) + len(second))
    cost = int(LETTER_COSTS[LETTERS.index(first[-1]), LETTERS.index(second[-1])])
    return min(
        slow_look_distance(first[:-1], second) + 2,
        slow_look_distance(first, second[:-1]) + 2,
        slow_look_distance(first[:-1], second[:-1]) + cost,
    )


def test_looks_are_compared_with_many_words_as_with_one() -> None:
    words = ["coal", "ceal", "cool", "loom", "foal", "a", "coral", "mines", "oil"]
    codes, lengths = encode_words(words), np.array(list(map(len, words)))
    for row, word in enumerate(words):
        found = look_distances(codes[row][: len(word)], codes, lengths)
        assert found.tolist() == [slow_look_distance(word, other) for other in words]
    assert slow_look_distance("coal", "ceal") == 1 < slow_look_distance("coal", "goal")
    assert np.array_equal(LETTER_COSTS, LETTER_COSTS.T)
