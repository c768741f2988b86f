"""Which prompts are asked with a description in place of their pictures, and do all of them have one?

`descriptions.py` has the sources of descriptions, `conditions.py` when a prompt is asked this way.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_builders.prompt_sets.prompts import Prompt
from eval.judge.asking import count_reasons
from eval.replies.descriptions import LIMIT_HINT, DescriptionArguments, Descriptions, open_descriptions
from eval.replies.outcomes import DESCRIBED
from eval.tasks import Task
from tracking.command import is_main_process

ConditionsOf = Callable[[Prompt], tuple[str, ...]]
"""Prompt -> the conditions under which it is asked."""


def described_prompts(task: Task, conditions_of: ConditionsOf) -> list[Prompt]:
    """Returns the prompts of a task that are asked with a description."""
    return [prompt for prompt in task.prompts if DESCRIBED in conditions_of(prompt)]


def open_needed(
    describing: DescriptionArguments, tasks: Sequence[Task], conditions_of: ConditionsOf, output_dir: Path
) -> Descriptions | None:
    """Returns the configured source of descriptions; None if no prompt is asked with one.

    Raises:
        ValueError: if descriptions are needed and none are configured, or the other way round.
    """
    needed = any(described_prompts(task, conditions_of) for task in tasks)
    named = describing.descriptions or describing.describe_model
    if needed and not named:
        raise ValueError(
            "prompts are to be asked with a description of their images, and there is none; give --descriptions FILE "
            "or --describe-model M, or name the --conditions to ask"
        )
    if named and not needed:
        raise ValueError(f"descriptions of {named} have no effect: no prompt is asked described; leave them out")
    return open_descriptions(describing, output_dir) if needed else None


def describe(
    descriptions: Descriptions | None, tasks: Sequence[Task], conditions_of: ConditionsOf
) -> dict[str, dict[str, str]]:
    """Returns for each task the descriptions, by id, of the prompts asked under `described`."""
    told: dict[str, dict[str, str]] = {}
    for task in tasks:
        prompts = described_prompts(task, conditions_of)
        if descriptions is None or not prompts:
            told[task.name] = {}
            continue
        descriptions.prepare(prompts, task.directory)
        found = {prompt.id: descriptions(prompt, task.directory) for prompt in prompts}
        told[task.name] = {name: text for name, text in found.items() if text}
    return told


def say_what_is_missing(notes: Mapping[str, Any], descriptions: Descriptions | None) -> None:
    """Prints how many images have no description, and how many prompts are therefore not asked in every condition.

    Args:
        notes: of the run, with `num_undescribed` and `num_without_images`.
        descriptions: their source; None if none are needed.
    """
    if descriptions is not None and descriptions.undescribed and is_main_process():
        refused = descriptions.undescribed
        reasons = count_reasons(refused, hint=LIMIT_HINT)
        print(f"{refused.total()} images have no description: {reasons}")
    for name, what in (
        ("num_undescribed", "have no description and are not asked described"),
        ("num_without_images", "have no image and are asked as given alone"),
    ):
        if notes[name] and is_main_process():
            print(f"{notes[name]} prompts {what}; their ability is not scored where its definition needs it")
