"""What a wrong reply votes for: its meaning under its kind and choices."""

from typing import Any

import pytest

from eval.support.samples import majority_share
from eval.support.votes import MEANINGS, RIGHT, vote

LENGTHS = ["12 cm", "24 cm", "36 cm", "48 cm"]


def sample(extracted: str | None, kind: str = "choice", status: str = "incorrect", **further: Any) -> dict[str, Any]:
    return {"extracted": extracted, "answer_kind": kind, "status": status, "choices": [], "gold": "?", **further}


@pytest.mark.parametrize(
    ("kind", "same", "others", "further"),
    [
        (
            "choice",
            ("B", "(B)", "B. 24 cm", "24 cm", "option B", "**B**"),
            ("C", "48 cm", "E", "B or C"),
            {"choices": LENGTHS},
        ),
        ("choice", ("B", "(b)", "B) twelve"), ("C",), {}),
        ("yes_no", ("yes", "Yes, it is", "true"), ("no", "perhaps"), {}),
        ("number", ("0.5", "1/2", "$0.50"), ("5", "half of it"), {"gold": "7"}),
        ("number", ("7", "7 apples", "7.0"), ("8 apples",), {"gold": "9"}),
        ("number", ("120 minutes", "2 hours", "120"), ("2 minutes", "3", "2 kg"), {"gold": "90 minutes"}),
        ("number", ("1.24", "1.2"), ("1.3",), {"gold": "2.0", "precision": 1}),
        ("math", (r"\frac12", "0.5", r"x = \frac{1}{2}", "$1/2$"), ("2", r"\sqrt{2}"), {}),
        ("math", (r"2\sqrt5", r"$2\sqrt{5}$"), (r"5\sqrt{2}",), {}),
        ("text", ("Red circle", "the red circle."), ("blue circle",), {}),
        ("box", ("[10, 20, 30, 40]", "(10, 20), (30, 40)"), ("[10, 20, 30, 41]",), {}),
        ("list", ("[1, 2]", "[1,2]"), ("[2, 1]",), {}),
    ],
)
def test_replies_with_one_meaning_cast_one_vote(
    kind: str, same: tuple[str, ...], others: tuple[str, ...], further: dict[str, Any]
) -> None:
    assert len({vote(sample(answer, kind, **further)) for answer in same}) == 1
    assert len({vote(sample(answer, kind, **further)) for answer in (same[0], *others)}) == 1 + len(others)


def test_three_spellings_of_a_wrong_option_outvote_two_right_replies() -> None:
    wrong = [sample(answer, choices=LENGTHS, gold="A") for answer in ("B", "(B)", "B. 24 cm")]
    right = [sample(answer, choices=LENGTHS, gold="A", status="correct") for answer in ("A", "12 cm")]
    assert majority_share([*wrong, *right]) == 0
    assert majority_share([*wrong[:2], *right]) == 1 / 2


def test_right_replies_vote_alike_and_no_wrong_one_votes_with_them() -> None:
    assert vote(sample("anything", status="correct")) == RIGHT
    assert all(vote(sample("right", kind)) != RIGHT for kind in MEANINGS)
