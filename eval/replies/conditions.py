"""Under which conditions is a prompt asked, and how? As given, with black images, or with a description of them.

Asked *black*, a prompt keeps its words, and each image is a black one of the same size. Asked *described*, a
description of the images stands before the question as well. Prompts without images are asked as given alone, and those
without a description never described: for them the paper's definitions (`outcomes.py`) cannot be said, and they
are counted.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data_builders.prompt_sets.prompts import Prompt
from eval.replies.outcomes import ABILITY_CONDITIONS, BLACK, CONDITIONS, DESCRIBED, GIVEN, record_key
from eval.replies.pictures import Picture
from eval.tasks import Task
from tracking.command import did_you_mean

WITH_DESCRIPTION = "{description}\n{question}"
BY_ABILITY = "by ability"
"""What stands for the conditions in a run's settings where each ability's definition names them."""


@dataclass(frozen=True)
class Query:
    """One reply that is wanted: a prompt under a condition, and which of its samples."""

    task: str
    prompt: Prompt
    """With the question as it is put."""
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
    """Refuses conditions that are unknown or named twice, or that the abilities' definitions name already."""
    if abilities and conditions:
        raise ValueError("abilities names the conditions by their definitions; leave out either it or conditions")
    if conditions and GIVEN not in conditions:
        raise ValueError(f"conditions {', '.join(conditions)}: what they change is said against {GIVEN}; name it too")
    for name in conditions:
        if name not in CONDITIONS:
            meant = did_you_mean(name, CONDITIONS)
            raise ValueError(f"condition {name!r} is unknown; expected some of {', '.join(CONDITIONS)}{meant}")
        if list(conditions).count(name) > 1:
            raise ValueError(f"condition {name!r} is named twice")


def conditions_of(prompt: Prompt, conditions: Sequence[str], *, abilities: bool) -> tuple[str, ...]:
    """Returns the conditions under which a prompt is to be asked, descriptions permitting."""
    wanted = ABILITY_CONDITIONS.get(prompt.ability, (GIVEN,)) if abilities else tuple(conditions) or (GIVEN,)
    return tuple(name for name in CONDITIONS if name in wanted and (name == GIVEN or prompt.images))


def make_queries(
    task: Task, conditions: Callable[[Prompt], Sequence[str]], descriptions: Mapping[str, str], num_samples: int
) -> list[Query]:
    """Returns every reply that is wanted, prompt by prompt.

    Args:
        conditions: of a prompt.
        descriptions: by the prompts' ids; a prompt that has none is not asked described.
        num_samples: replies a prompt and condition.
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
    """Returns how many prompts were to be asked described and have no description."""
    return sum(DESCRIBED in conditions(prompt) and prompt.id not in descriptions for prompt in task.prompts)


def count_without_images(task: Task, conditions: Sequence[str], *, abilities: bool) -> int:
    """Returns how many prompts were to be asked with black images and have none to blacken."""
    return sum(
        bool({BLACK, DESCRIBED} & set(ABILITY_CONDITIONS.get(prompt.ability, ()) if abilities else conditions))
        for prompt in task.prompts
        if not prompt.images
    )
