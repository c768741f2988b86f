"""Which kind an upstream row's answer suggests, and which options its question lists."""

import pytest

from data_builders.rl.kinds import inferred_kind, listed_options, stated_kind

OPTIONS = "Which is it?\nA. 12 cm\nB. 15 cm\nC. a line\nD. none of these"


@pytest.mark.parametrize(
    ("question", "answer", "kind"),
    [
        (OPTIONS, "B", "choice"),
        (OPTIONS, "(B)", "choice"),
        (OPTIONS, r"\text{(D)}", "choice"),
        (OPTIONS, "E", "math"),
        ("Name the point of intersection.", "B", "math"),
        ("Is it prime?", "Yes", "yes_no"),
        ("Is it prime?", "false.", "yes_no"),
        ("How many?", "1,234", "number"),
        ("How many?", "-3.5", "number"),
        ("What share?", "12%", "number"),
        ("What share?", "3/4", "number"),
        ("Solve.", r"\frac{3}{4}", "math"),
        ("Solve.", "x=5", "math"),
        ("Solve.", "2, 3", "math"),
        ("Give the bounding box of the cat.", "[10, 20, 30, 40]", "box"),
        ("Give the quartiles.", "[10, 20, 30, 40]", "math"),
        ("Name them in order.", '["red", "blue"]', "list"),
        ("What colour?", "dark red", "text"),
        ("Which product?", "abc", "math"),
        ("Solve.", ".", "math"),
        ("Solve.", "%", "math"),
    ],
)
def test_the_answer_and_the_question_suggest_a_kind(question: str, answer: str, kind: str) -> None:
    assert inferred_kind(question, answer) == kind


@pytest.mark.parametrize(
    ("question", "answer", "options"),
    [
        (OPTIONS, "A", ("12 cm", "15 cm", "a line", "none of these")),
        ("Which? (A) 1 (B) 2 (C) 3", "C", ("1", "2", "3")),
        ("In triangle A. B. is right. Choices: A: red B: blue", "B", ("red", "blue")),
        ("Which?\nA. red\nB. blue\nAnswer with the letter.", "blue", ("red", "blue")),
        ("Which?\nA. red\nB. blue", "C", ()),
        ("Which?\nA. red", "A", ()),
        ("Which?\nA.\nB. blue", "A", ()),
        ("What is the area?", "A", ()),
    ],
)
def test_options_are_read_from_the_question(question: str, answer: str, options: tuple[str, ...]) -> None:
    assert listed_options(question, answer) == options


def test_a_row_may_state_its_kind_in_three_places() -> None:
    for row in (
        {"answer_kind": "text"},
        {"extra_info": {"answer_kind": "text"}},
        {"extra_info": None, "reward_model": {"answer_kind": "text"}},
    ):
        assert stated_kind(row) == "text"
    assert stated_kind({"extra_info": {"index": 3}, "reward_model": {"ground_truth": "5"}}) is None
