"""What is rewarded? Functions for TRL's trainer that call the suite's one grader.

TRL masks a sample only where *every* reward returns None, so an answer that cannot be judged is None in all of them.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from eval.grading import UNSCORED, Verdict, grade, is_well_formed
from tracking.command import did_you_mean

RewardFunction = Callable[..., list[float | None]]


@lru_cache(maxsize=65_536)
def _graded(response: str, gold: str, kind: str) -> Verdict:
    return grade(response, gold, kind)


def _replies(completions: Sequence[Any]) -> list[str]:
    """Returns the text of each completion: a string, or the messages of a turn."""
    return [reply if isinstance(reply, str) else reply[-1]["content"] for reply in completions]


def accuracy(
    completions: Sequence[Any], answer: Sequence[str], answer_kind: Sequence[str], **_: Any
) -> list[float | None]:
    """1 for a right answer, 0 for a wrong one, None where the grader cannot judge."""
    verdicts = map(_graded, _replies(completions), answer, answer_kind)
    return [None if verdict.correct is None else float(verdict.correct) for verdict in verdicts]


def format(  # noqa: A001 (TRL logs a reward under its function's name)
    completions: Sequence[Any], answer: Sequence[str], answer_kind: Sequence[str], **_: Any
) -> list[float | None]:
    """1 for `<think>…</think><answer>…</answer>` and nothing else, 0 otherwise, None where accuracy is None."""
    replies = _replies(completions)
    verdicts = map(_graded, replies, answer, answer_kind)
    return [
        None if verdict.status == UNSCORED else float(is_well_formed(reply))
        for reply, verdict in zip(replies, verdicts, strict=True)
    ]


REWARDS: dict[str, RewardFunction] = {"accuracy": accuracy, "format": format}


def choose_rewards(names: Sequence[str]) -> list[RewardFunction]:
    """Returns the reward functions by name, in order; their weights are TRL's `reward_weights`."""
    if not names:
        raise ValueError(f"rewards is empty; expected at least one of {', '.join(REWARDS)}")
    for name in names:
        if name not in REWARDS:
            raise ValueError(f"reward {name!r} is unknown; expected {', '.join(REWARDS)}{did_you_mean(name, REWARDS)}")
        if list(names).count(name) > 1:
            raise ValueError(f"reward {name!r} is named twice")
    return [REWARDS[name] for name in names]
