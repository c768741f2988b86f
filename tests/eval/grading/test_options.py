"""Options: named by text, letter or mention, never by nearness."""

import string

import pytest

from eval.grading.options import LETTERS, equal_options, mentions, named_options, yes_or_no

ANIMALS = ("cat", "dog", "wild cat", "the dog's owner")


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        ("cat", {"cat"}),
        ("a wild cat", {"wild cat"}),
        ("It is the wild cat.", {"wild cat"}),
        ("cats", set()),
        ("cot", set()),
        ("B", {"dog"}),
        ("(b) dog", {"dog"}),
        ("B: cat", {"dog", "cat"}),
        ("A or B", {"cat", "dog"}),
        ("cat and dog", {"cat", "dog"}),
        ("not the cat but the dog", {"dog"}),
        ("E", set()),
        ("", set()),
    ],
)
def test_options_are_named_by_text_letter_or_mention(answer: str, named: set[str]) -> None:
    assert named_options(answer, ANIMALS) == named


def test_one_letter_more_or_less_is_another_answer() -> None:
    word = "oblique"
    for place in range(len(word)):
        assert equal_options(word[:place] + word[place + 1 :], word, ("obtuse", word)) is False
        for letter in set(string.ascii_lowercase) - {word[place]}:
            assert equal_options(word[:place] + letter + word[place + 1 :], word, ("obtuse", word)) is False


def test_every_letter_names_its_option_and_none_beyond_the_last() -> None:
    choices = [f"text {number}" for number in range(6)]
    for place, letter in enumerate(LETTERS):
        expected = {f"text {place}"} if place < 6 else set()
        assert named_options(f"({letter})", choices) == expected
        assert named_options(f"({letter})") == {letter}


@pytest.mark.parametrize(
    ("sentence", "last"),
    [
        ("So the dog runs from the cat", "cat"),
        ("So it is option B", "dog"),
        ("A cat is not a dog", "cat"),
        ("I choose C, not D", "wild cat"),
        ("A triangle has three sides", None),
    ],
)
def test_the_last_option_of_a_sentence_counts(sentence: str, last: str | None) -> None:
    found = mentions(sentence, ANIMALS)
    assert (found[-1][2] if found else None) == last


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Yes", {"yes"}),
        ("no.", {"no"}),
        ("False", {"no"}),
        ("Yes, and no bar is taller", {"yes"}),
        ("No it is not", {"no"}),
        ("no bars", set()),
        ("nobody", set()),
        ("yes or no", {"yes", "no"}),
        ("so, yes", {"yes"}),
        ("not true", set()),
        ("", set()),
    ],
)
def test_what_says_yes_and_what_says_no(text: str, said: set[str]) -> None:
    assert yes_or_no(text) == said
