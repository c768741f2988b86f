"""How does a reward of one's own enter training? As `MODULE:FUNCTION` among `rewards`; the package stays as it is.

    # my_rewards.py, in the current directory or in an installed package
    def short(completions, answer, **columns):
        return [-len(messages[-1]["content"]) / 1000 for messages in completions]

    # in the YAML of train.grpo
    rewards: [accuracy, my_rewards:short]
    reward_weights: [1.0, 0.1]

The signature is TRL's. The function is called once per batch with keyword arguments, lists with an entry a reply:

    completions       the reply as a list of messages; its text is `messages[-1]["content"]`
    completion_ids    its tokens
    prompts           the prompt as a list of messages
    answer, answer_kind, choices, precision    of the prompt, as its prompt set has them
    log_metric        a function (name, value) that adds a column to `metrics.csv`

It returns a list with a number for each reply, or None for a reply that it cannot judge. TRL (1.16) leaves a reply out
of the loss only where every reward returns None for it. Name and sha256 of the source file stand in `run.json`; a run
does not continue with another source. Known limit: the hash covers the function's file, not what that file imports.
"""

import hashlib
import importlib
import inspect
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from numbers import Real
from pathlib import Path
from typing import Any

RewardFunction = Callable[..., list[float | None]]


@dataclass(frozen=True, kw_only=True)
class OwnReward:
    """A reward from outside this package."""

    function: RewardFunction
    """Returns what the imported function returns, checked."""
    source_sha256: str
    """Of the file in which it is defined."""


def is_own(name: str) -> bool:
    """True for `MODULE:FUNCTION`."""
    return ":" in name


def check_name(name: str) -> None:
    """Refuses what is no `MODULE:FUNCTION`, without importing it.

    Raises:
        ValueError: naming what was expected.
    """
    module, _, function = name.partition(":")
    if not all(part.isidentifier() for part in module.split(".")) or not function.isidentifier():
        raise ValueError(f"reward {name!r} is malformed; expected MODULE:FUNCTION, such as my_rewards:short")


def load_reward(name: str) -> OwnReward:
    """Imports a reward from the current directory or an installed package.

    Raises:
        ValueError: where the module cannot be imported, or holds no such function.
    """
    check_name(name)
    module_name, _, function_name = name.partition(":")
    if str(Path.cwd()) not in sys.path and "" not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(
            f"reward {name!r}: module {module_name!r} cannot be imported ({error}); expected a file of the current "
            f"directory, {Path.cwd()}, or an installed package"
        ) from error
    function = getattr(module, function_name, None)
    if not inspect.isfunction(function):
        defined = sorted(name for name, value in vars(module).items() if inspect.isfunction(value))
        raise ValueError(
            f"reward {name!r}: {module.__file__} defines no function {function_name!r}; "
            f"it has {', '.join(defined) or 'no function'}"
        )
    source = inspect.getsourcefile(inspect.unwrap(function))
    assert source is not None, name
    digest = hashlib.sha256(Path(source).read_bytes()).hexdigest()
    return OwnReward(function=_checked(name, function), source_sha256=digest)


def _checked(name: str, function: Callable[..., Any]) -> RewardFunction:
    """Returns the function with its results checked; TRL would take what is wrong with them for rewards."""

    @wraps(function)
    def rewarded(completions: Sequence[Any], **columns: Any) -> list[float | None]:
        values = function(completions=completions, **columns)
        if not isinstance(values, list | tuple) or len(values) != len(completions):
            found = f"{len(values)} values" if isinstance(values, list | tuple) else f"a {type(values).__name__}"
            raise ValueError(f"reward {name!r} returned {found}; expected a list of {len(completions)}, one per reply")
        for value in values:
            if value is not None and not (isinstance(value, Real) and math.isfinite(value)):
                raise ValueError(f"reward {name!r} returned {value!r}; expected finite numbers, or None")
        return [None if value is None else float(value) for value in values]

    return rewarded
