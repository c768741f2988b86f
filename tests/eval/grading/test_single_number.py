"""The number that a marked text states, and sentences that state none of their several numbers."""

import pytest

from eval.grading.single_number import states_several, the_number


@pytest.mark.parametrize(
    ("text", "stated"),
    [
        ("7", "7"),
        ("she has 18 dollars left", "18 dollars"),
        ("18 dollars for 9 eggs", "18 dollars"),
        ("In 2019, the value was 45", "45"),
        ("The value in 2019 was 45", "45"),
        ("The value was 45 in 2019", "45"),
        ("The value was 45, which is 5 more than 40", "45"),
        ("If 2 is added, the result is 45", "45"),
        ("Of the 12 apples, there are 5 left", "5"),
        ("3 plus 4 equals 7", "7"),
        ("3 * 4 = 12 apples", "12"),
        ("x = 5", "x = 5"),
        ("$12$ cm", "12 cm"),
        ("about 5", "about 5"),
    ],
)
def test_a_sentence_states_the_number_after_its_verb(text: str, stated: str) -> None:
    assert the_number(text) == stated


@pytest.mark.parametrize(
    "text",
    [
        "5 or 6",
        "1, 2, 3",
        "The 12 students take 3 pencils home",
        "She has 3 apples and 4 pears",
        "It is 5 or 6",
        "It was 40 and is 45",
        "no number",
        "5 plus",
    ],
)
def test_a_text_without_one_number_is_returned_whole(text: str) -> None:
    assert the_number(text) == text


@pytest.mark.parametrize(
    ("text", "gold", "expected"),
    [
        ("The 12 students take 3 pencils home", "3", True),
        ("The 12 students take 3 pencils home", "3.0", True),
        ("The 12 students take 3 pencils home", "4", False),
        ("5 or 6", "5", False),
        ("I think that it is either 5 or 6", "5", False),
        ("between 4 and 6", "4", False),
        ("The numbers of this list are 1 2 3 4 5", "3", False),
    ],
)
def test_a_sentence_that_could_mean_the_gold_cannot_be_judged(text: str, gold: str, expected: bool) -> None:
    assert states_several(text, gold) is expected


@pytest.mark.parametrize(
    ("text", "stated"),
    [
        ("So she has 14, because 12 x 25 = 300 miles", "300 miles"),
        ("He was 23 when she was born, so 37 years - 23 years = <<37-23=14>>14 years ago", "14"),
        ("The number of those who left is 700-420 = 280", "280"),
        ("There are 12 and 8, for a total of 12 + 8 = 20 windows", "20"),
    ],
)
def test_a_calculation_states_what_follows_its_last_equals_sign(text: str, stated: str) -> None:
    assert the_number(text).startswith(stated)
