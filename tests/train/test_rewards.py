"""Rewards: the grader's verdicts, as the trainer takes them."""

from typing import Any

import pytest

from eval.grading import grade
from train.rewards import REWARDS, choose_rewards

REPLIES = (
    ("<think>2+3</think><answer>5</answer>", "5", "number", 1.0, 1.0),
    ("<think>2+3</think><answer>6</answer>", "5", "number", 0.0, 1.0),
    ("<answer>5</answer>", "5", "number", 1.0, 0.0),
    ("", "5", "number", 0.0, 0.0),
    ("<think>2+3</think><answer>5</answer>", "many", "number", None, None),
)
"""Reply, gold, kind, accuracy, format."""


def rewards(name: str, completions: list[Any]) -> list[float | None]:
    return REWARDS[name](
        completions=completions,
        answer=[gold for _, gold, _, _, _ in REPLIES],
        answer_kind=[kind for _, _, kind, _, _ in REPLIES],
        prompts=["…"] * len(REPLIES),
        trainer_state=None,
    )


@pytest.mark.parametrize(("name", "column"), [("accuracy", 3), ("format", 4)])
@pytest.mark.parametrize("conversational", [False, True])
def test_replies_as_strings_and_as_messages_are_rewarded_alike(name: str, column: int, conversational: bool) -> None:
    replies: list[Any] = [row[0] for row in REPLIES]
    if conversational:
        replies = [[{"role": "assistant", "content": reply}] for reply in replies]
    assert rewards(name, replies) == [row[column] for row in REPLIES]


def test_an_answer_that_cannot_be_judged_is_none_in_every_reward() -> None:
    replies = [row[0] for row in REPLIES]
    unscored = [grade(reply, gold, kind).correct is None for reply, gold, kind, _, _ in REPLIES]
    assert any(unscored)
    for name in REWARDS:
        assert [reward is None for reward in rewards(name, replies)] == unscored


def test_rewards_are_chosen_in_the_order_they_are_named() -> None:
    assert choose_rewards(["format", "accuracy"]) == [REWARDS["format"], REWARDS["accuracy"]]


@pytest.mark.parametrize(
    ("names", "message"),
    [(["acuracy"], "did you mean 'accuracy'"), ([], "rewards is empty"), (["format", "format"], "named twice")],
)
def test_a_bad_choice_of_rewards_is_refused(names: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose_rewards(names)
