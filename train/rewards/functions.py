"""What is rewarded? Reward functions for TRL's trainer that call the suite's grader.

    accuracy   1 for a right answer, 0 for a wrong one
    format     1 for a reply in the form that the prompt style requires, 0 otherwise
               (a `<think>` that the chat template opened counts as the reply's, `form.py`)
    overlong   0 up to L - B tokens, falling to -1 at L tokens: DAPO's soft penalty (arXiv 2503.14476, eq. 13), with
               L = max_completion_length and B = overlong_buffer_tokens
    MODULE:FUNCTION   a reward of your own (`own.py`)

TRL masks a sample only if *every* reward returns None, so an answer that cannot be judged is None in all of them. It is
judged only once, and the share of such samples is logged as `unscored_frac`. Each question has its own time limit
(`eval/grading/mathematics.py`), and MAX_JUDGES questions of a batch are judged concurrently.
"""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

from eval.grading import BOX_SPACES, MAX_JUDGES, check_box_space, grade, is_well_formed, last_boxed
from tracking.command import check_all, did_you_mean
from tracking.run import OVERWRITE_ARGUMENT
from train.rewards.form import AS_GIVEN, ReplyForm
from train.rewards.own import RewardFunction, check_name, is_own, load_reward

MAX_REMEMBERED = 65_536
"""Size of the verdict cache, above the number of replies in any generation batch."""


def has_box(response: str) -> bool:
    r"""True if the last `\boxed{…}` of a reply is closed and not empty."""
    return bool((last_boxed(response) or "").strip())


FORMATS: dict[str, Callable[[str], bool]] = {"plain": is_well_formed, "think": is_well_formed, "boxed": has_box}
"""Prompt style -> check of a reply's form; `plain` requires none, so the cold start's form is expected."""


@dataclass(frozen=True, kw_only=True)
class RewardArguments:
    """The rewards; their weights are TRL's `reward_weights`."""

    rewards: list[str] = field(
        default_factory=lambda: ["accuracy", "format"],
        metadata={
            "help": "one or more rewards, in the order of reward_weights: accuracy, format, overlong, or your "
            "own function as MODULE:FUNCTION"
        },
    )
    overlong_buffer_tokens: int | None = field(
        default=None,
        metadata={
            "help": "number of tokens before max_completion_length over which the overlong reward falls from 0 to -1"
        },
    )
    box_space: str | None = field(
        default=None,
        metadata={
            "help": f"coordinates in which the model writes boxes: {', '.join(BOX_SPACES)}; by default those of the "
            "model's family"
        },
    )
    overwrite: bool = field(default=False, metadata=OVERWRITE_ARGUMENT)

    def __post_init__(self) -> None:
        check_all(partial(check_rewards, self.rewards), self._check_buffer, partial(check_box_space, self.box_space))

    def check_inputs(self) -> None:
        """Imports rewards of one's own."""
        choose_rewards(self.rewards)

    def source_digests(self) -> dict[str, str]:
        """Returns the sha256 of the source of each reward of one's own; the others change with this package."""
        return {name: load_reward(name).source_sha256 for name in self.rewards if is_own(name)}

    def _check_buffer(self) -> None:
        if ("overlong" in self.rewards) != (self.overlong_buffer_tokens is not None):
            raise ValueError(
                f"rewards {self.rewards} and overlong_buffer_tokens {self.overlong_buffer_tokens} do not fit; "
                "expected the reward overlong with its buffer, or neither"
            )


def accuracy(
    completions: Sequence[Any],
    answer: Sequence[str],
    answer_kind: Sequence[str],
    choices: Sequence[Sequence[str]] | None = None,
    precision: Sequence[int | None] | None = None,
    images: Sequence[Sequence[Any]] | None = None,
    *,
    form: ReplyForm = AS_GIVEN,
    log_metric: Callable[[str, float], None] | None = None,
    **_: Any,
) -> list[float | None]:
    """1 for a right answer, 0 for a wrong one, None if the grader cannot judge."""
    replies = _replies(completions, form)
    verdicts = _judge_all(replies, answer, answer_kind, choices, precision, images, form, log_metric)
    return [None if verdict is None else float(verdict) for verdict in verdicts]


def format(  # noqa: A001 (TRL logs a reward under its function's name)
    completions: Sequence[Any],
    answer: Sequence[str],
    answer_kind: Sequence[str],
    choices: Sequence[Sequence[str]] | None = None,
    precision: Sequence[int | None] | None = None,
    images: Sequence[Sequence[Any]] | None = None,
    *,
    prompt_style: str = "plain",
    form: ReplyForm = AS_GIVEN,
    log_metric: Callable[[str, float], None] | None = None,
    **_: Any,
) -> list[float | None]:
    """1 for a reply in the form of the prompt style, 0 otherwise, None if accuracy is None."""
    replies = _replies(completions, form)
    verdicts = _judge_all(replies, answer, answer_kind, choices, precision, images, form, log_metric)
    return [
        None if verdict is None else float(FORMATS[prompt_style](reply))
        for reply, verdict in zip(replies, verdicts, strict=True)
    ]


def overlong(
    completions: Sequence[Any],
    answer: Sequence[str],
    answer_kind: Sequence[str],
    completion_ids: Sequence[Sequence[int]],
    choices: Sequence[Sequence[str]] | None = None,
    precision: Sequence[int | None] | None = None,
    images: Sequence[Sequence[Any]] | None = None,
    *,
    max_tokens: int,
    buffer_tokens: int,
    form: ReplyForm = AS_GIVEN,
    log_metric: Callable[[str, float], None] | None = None,
    **_: Any,
) -> list[float | None]:
    """0 for a reply that does not reach the buffer, -1 at the maximum length, linear between; None as in accuracy."""
    replies = _replies(completions, form)
    verdicts = _judge_all(replies, answer, answer_kind, choices, precision, images, form, log_metric)
    return [
        None if verdict is None else length_penalty(len(tokens), max_tokens=max_tokens, buffer_tokens=buffer_tokens)
        for tokens, verdict in zip(completion_ids, verdicts, strict=True)
    ]


def length_penalty(num_tokens: int, *, max_tokens: int, buffer_tokens: int) -> float:
    """Returns DAPO's soft penalty for a reply of `num_tokens`, between -1 and 0."""
    return min(0.0, max(-1.0, (max_tokens - buffer_tokens - num_tokens) / buffer_tokens))


REWARDS: dict[str, RewardFunction] = {"accuracy": accuracy, "format": format, "overlong": overlong}


def check_rewards(names: Sequence[str]) -> None:
    """Refuses names that are unknown, malformed or repeated, one line per mistake; imports nothing.

    Raises:
        ValueError: with the mistakes.
    """
    if not names:
        raise ValueError(f"rewards is empty; expected at least one of {', '.join(REWARDS)}, or MODULE:FUNCTION")
    check_all(*(partial(_check_reward, name) for name in names))
    columns = [name.rpartition(":")[2] for name in names]
    for name, column in zip(names, columns, strict=True):
        if names.count(name) > 1:
            raise ValueError(f"reward {name!r} is named twice")
        if columns.count(column) > 1 or (is_own(name) and column in REWARDS):
            raise ValueError(f"reward {name!r} shares its columns in metrics.csv with another; rename the function")


def _check_reward(name: str) -> None:
    if is_own(name):
        check_name(name)
    elif name not in REWARDS:
        raise ValueError(
            f"reward {name!r} is unknown; expected {', '.join(REWARDS)} or MODULE:FUNCTION{did_you_mean(name, REWARDS)}"
        )


def choose_rewards(names: Sequence[str]) -> list[RewardFunction]:
    """Returns the reward functions by name, in order; those of one's own are imported."""
    check_rewards(names)
    return [load_reward(name).function if is_own(name) else REWARDS[name] for name in names]


def bind_rewards(
    arguments: RewardArguments, *, weights: Sequence[float] | None, prompt_style: str, max_completion_tokens: int
) -> list[RewardFunction]:
    """Returns the functions as TRL calls them, bound to the other arguments that they need.

    Raises:
        ValueError: if there is not one weight per reward, or the buffer of `overlong` does not fit.
    """
    if weights is not None and len(weights) != len(arguments.rewards):
        raise ValueError(
            f"reward_weights {list(weights)} does not match the rewards {arguments.rewards}; expected one each"
        )
    buffer_tokens = arguments.overlong_buffer_tokens
    if buffer_tokens is not None and not 0 < buffer_tokens <= max_completion_tokens:
        raise ValueError(
            f"overlong_buffer_tokens is {buffer_tokens}; expected 1 to max_completion_length, {max_completion_tokens}"
        )
    bound: dict[str, dict[str, Any]] = {
        "format": {"prompt_style": prompt_style},
        "overlong": {"max_tokens": max_completion_tokens, "buffer_tokens": buffer_tokens},
    }
    return [
        partial(function, **bound[name]) if name in bound else function  # TRL names a partial after its function
        for name, function in zip(arguments.rewards, choose_rewards(arguments.rewards), strict=True)
    ]


def in_form(functions: Sequence[RewardFunction], names: Sequence[str], form: ReplyForm) -> list[RewardFunction]:
    """Returns the functions with the form in which the model writes; those of one's own get the replies as they are."""
    return [
        function if is_own(name) else partial(function, form=form)
        for name, function in zip(names, functions, strict=True)
    ]


def _replies(completions: Sequence[Any], form: ReplyForm) -> list[str]:
    """Returns the text of each completion: a string, or the messages of a turn."""
    return [form.reply(reply if isinstance(reply, str) else reply[-1]["content"]) for reply in completions]


def _judge_all(
    replies: Sequence[str],
    golds: Sequence[str],
    kinds: Sequence[str],
    choices: Sequence[Sequence[str]] | None,
    precisions: Sequence[int | None] | None,
    images: Sequence[Sequence[Any]] | None,
    form: ReplyForm,
    log_metric: Callable[[str, float], None] | None,
) -> list[bool | None]:
    """Returns the grader's verdicts, with the golds as the model would write them; logs the share without one."""
    shown = [()] * len(golds) if images is None else images
    golds = [form.gold(gold, kind, own) for gold, kind, own in zip(golds, kinds, shown, strict=True)]
    options = [()] * len(replies) if choices is None else [tuple(texts) for texts in choices]
    with ThreadPoolExecutor(MAX_JUDGES) as pool:
        verdicts = list(pool.map(_judge, replies, golds, kinds, options, precisions or [None] * len(replies)))
    if log_metric is not None:
        log_metric("unscored_frac", verdicts.count(None) / len(verdicts))
    return verdicts


def _judge(reply: str, gold: str, kind: str, choices: tuple[str, ...], precision: int | None) -> bool | None:
    """Returns whether a reply is right, or None if it cannot be judged; the first verdict on a reply is cached."""
    kept = _kept_verdict(hashlib.sha256(repr((reply, gold, kind, choices, precision)).encode()).digest())
    if not kept:
        kept.append(grade(reply, gold, kind, choices, precision).correct)
    return kept[0]


@lru_cache(maxsize=MAX_REMEMBERED)
def _kept_verdict(digest: bytes) -> list[bool | None]:
    """Returns the cache entry of one reply's verdict, empty before it is judged."""
    return []
