"""Under which conditions is a prompt asked? As given, with black images, or with a description of the images.

Under *black*, the text is unchanged and each image is replaced by a black one of the same size. Under *described*, a
description of the images is also placed before the question. Prompts without images are only asked as given, and
prompts without a description are not asked under *described*: the paper's definitions (`outcomes.py`) cannot be
evaluated for them, and they are counted.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_builders.prompt_sets.prompts import Prompt
from eval.replies.outcomes import ABILITY_CONDITIONS, BLACK, CONDITIONS, DESCRIBED, GIVEN, record_key
from eval.replies.pictures import Picture
from eval.tasks import Task
from tracking.command import did_you_mean
from tracking.records import Record
from tracking.reuse import earlier_records, merged_by_key

WITH_DESCRIPTION = "{description}\n{question}"
BY_ABILITY = "by ability"
"""Value of the conditions in a run's settings if they follow from each ability's definition."""
CHOOSING = ("model", "tasks", "conditions", "limit", "descriptions")
"""Settings that choose which replies are asked for; `model_fingerprint` identifies the model, not its path."""
REUSE_ARGUMENT = {
    "help": "results of earlier evaluations of this model with the same settings: their replies are taken over, not "
    "generated again"
}


@dataclass(frozen=True)
class Query:
    """One requested reply: a prompt, a condition and a sample number."""

    task: str
    prompt: Prompt
    """With the question as asked."""
    condition: str
    sample: int
    directory: Path

    @property
    def key(self) -> str:
        return record_key(self.task, self.prompt.id, self.condition, self.sample)

    @property
    def key_of_first(self) -> str:
        """The key of the first sample of the same prompt and condition."""
        return record_key(self.task, self.prompt.id, self.condition)

    @property
    def pictures(self) -> tuple[Picture, ...]:
        return tuple(Picture(self.directory / image, black=self.condition != GIVEN) for image in self.prompt.images)


def check_conditions(conditions: Sequence[str], *, abilities: bool) -> None:
    """Rejects conditions that are unknown or duplicated, or that are given together with `abilities`."""
    if abilities and conditions:
        raise ValueError("abilities names the conditions by their definitions; leave out either it or conditions")
    if conditions and GIVEN not in conditions:
        raise ValueError(f"conditions {', '.join(conditions)}: their effect is measured against {GIVEN}; name it too")
    for name in conditions:
        if name not in CONDITIONS:
            meant = did_you_mean(name, CONDITIONS)
            raise ValueError(f"condition {name!r} is unknown; expected some of {', '.join(CONDITIONS)}{meant}")
        if list(conditions).count(name) > 1:
            raise ValueError(f"condition {name!r} is named twice")


def conditions_of(prompt: Prompt, conditions: Sequence[str], *, abilities: bool) -> tuple[str, ...]:
    """Returns the conditions under which a prompt is asked, if it has the descriptions needed."""
    wanted = ABILITY_CONDITIONS.get(prompt.ability, (GIVEN,)) if abilities else tuple(conditions) or (GIVEN,)
    return tuple(name for name in CONDITIONS if name in wanted and (name == GIVEN or prompt.images))


def make_queries(
    task: Task, conditions: Callable[[Prompt], Sequence[str]], descriptions: Mapping[str, str], num_samples: int
) -> list[Query]:
    """Returns all requested replies, prompt by prompt.

    Args:
        conditions: returns the conditions of a prompt.
        descriptions: prompt id -> description; a prompt without one is not asked under `described`.
        num_samples: replies per prompt and condition.
    """
    queries = []
    for prompt in task.prompts:
        for condition in conditions(prompt):
            if condition == DESCRIBED and prompt.id not in descriptions:
                continue
            put = prompt
            if condition == DESCRIBED:
                question = WITH_DESCRIPTION.format(description=descriptions[prompt.id], question=prompt.question)
                put = replace(prompt, question=question)
            queries += [Query(task.name, put, condition, sample, task.directory) for sample in range(num_samples)]
    return queries


def count_undescribed(
    task: Task, conditions: Callable[[Prompt], Sequence[str]], descriptions: Mapping[str, str]
) -> int:
    """Returns the number of prompts that should be asked under `described` but have no description."""
    return sum(DESCRIBED in conditions(prompt) and prompt.id not in descriptions for prompt in task.prompts)


def count_without_images(task: Task, conditions: Sequence[str], *, abilities: bool) -> int:
    """Returns the number of prompts that should be asked under `black` but have no image."""
    return sum(
        bool({BLACK, DESCRIBED} & set(ABILITY_CONDITIONS.get(prompt.ability, ()) if abilities else conditions))
        for prompt in task.prompts
        if not prompt.images
    )


def earlier_replies(folders: Sequence[str], settings: Mapping[str, Any]) -> dict[str, Record]:
    """Returns the records, by key, that an evaluation with these settings may take over from earlier ones.

    Replies under *described* are taken over only if the descriptions are the same.

    Raises:
        ValueError: if an earlier evaluation used other settings or other prompts, or was judged by a model.
    """
    parts = []
    for folder in folders:
        earlier, records = earlier_records(Path(folder), "eval.run", settings, choosing=CHOOSING)
        if earlier["judge"] is not None:
            raise ValueError(
                f"{folder} was judged by {earlier['judge']}; such verdicts are not taken over; leave it out"
            )
        tasks = {name: value for name, value in earlier["tasks"].items() if name in settings["tasks"]}
        if not tasks:
            there, here = ", ".join(earlier["tasks"]), ", ".join(settings["tasks"])
            raise ValueError(f"{folder} has the tasks {there}; expected one of {here}")
        for name, fingerprint in tasks.items():
            if fingerprint != settings["tasks"][name]:
                raise ValueError(f"{folder}: its task {name!r} has other prompts; expected the same prompt set")
        described = earlier.get("descriptions") == settings.get("descriptions")
        parts.append(
            [
                record
                for record in records
                if record["task"] in tasks and (described or record["condition"] != DESCRIBED)
            ]
        )
    return merged_by_key(parts)
