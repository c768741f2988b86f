"""What is the outcome of each prompt? Reduces reply records to one value per prompt and metric.

A prompt is asked under one or several *conditions*: `given` (unchanged), `black` (its images replaced by black ones of
the same size), `described` (black images and a description in words). Under each condition it is answered once or
several times (`sample` 0, 1, …). Metrics:

    accuracy   the share of samples that are right as given (accuracy@1)
    ability    the paper's definition (arXiv 2602.12395, eqs. 4 to 6), sample by sample:
               vision: right as given and wrong when black; vision-to-reasoning: right as given and right when
               described; reasoning: right

A metric is None if it is undefined: no sample could be judged, or a condition was not asked.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from eval.grading import CORRECT, UNSCORED
from tracking.records import Record

GIVEN, BLACK, DESCRIBED = "given", "black", "described"
CONDITIONS = (GIVEN, BLACK, DESCRIBED)
ABILITY_CONDITIONS = {"vision": (GIVEN, BLACK), "vision-to-reasoning": (GIVEN, DESCRIBED), "reasoning": (GIVEN,)}
"""Ability -> the conditions in its definition."""

Rights = Mapping[str, bool]
"""Condition -> whether one sample is right under it."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of one prompt."""

    task: str
    id: str
    ability: str
    samples: tuple[bool | None, ...]
    """Right, wrong or unscored, for each sample under `given`, in order."""
    ability_samples: tuple[bool | None, ...]
    """The ability's definition, per sample."""
    well_formed: bool
    """True if all samples under `given` had the requested form."""
    cluster: str | None = None
    """Group of related prompts, such as those about one image."""

    @property
    def key(self) -> str:
        return f"{self.task}/{self.id}"

    @property
    def accuracy(self) -> float | None:
        return _mean(self.samples)

    @property
    def ability_score(self) -> float | None:
        return _mean(self.ability_samples)


def record_key(task: str, prompt_id: str, condition: str = GIVEN, sample: int = 0) -> str:
    """Returns the key of a reply: `TASK/ID`, plus the condition and the sample unless they are the first."""
    key = f"{task}/{prompt_id}" if condition == GIVEN else f"{task}/{prompt_id}/{condition}"
    return f"{key}#{sample}" if sample else key


def outcomes(records: Iterable[Record]) -> list[Outcome]:
    """Returns one outcome per prompt, in order of first appearance."""
    by_prompt: dict[tuple[str, str], dict[tuple[str, int], Record]] = {}
    for record in records:
        place = record.get("condition", GIVEN), record.get("sample", 0)
        by_prompt.setdefault((record["task"], record["id"]), {})[place] = record
    return [_outcome(task, prompt_id, replies) for (task, prompt_id), replies in by_prompt.items()]


def _outcome(task: str, prompt_id: str, replies: dict[tuple[str, int], Record]) -> Outcome:
    ability = next(iter(replies.values()))["ability"]
    asked = [place for place in sorted(replies) if place[0] == GIVEN]
    given = [replies[place] for place in asked]
    return Outcome(
        task=task,
        id=prompt_id,
        ability=ability,
        samples=tuple(_right(reply) for reply in given),
        ability_samples=tuple(_ability(ability, replies, sample) for _, sample in asked),
        well_formed=all(reply["well_formed"] for reply in given),
        cluster=next(iter(replies.values())).get("cluster"),
    )


def _right(reply: Record | None) -> bool | None:
    return None if reply is None or reply["status"] == UNSCORED else reply["status"] == CORRECT


HAS_ABILITY: dict[str, Callable[[Rights], bool]] = {
    "vision": lambda right: right[GIVEN] and not right[BLACK],
    "vision-to-reasoning": lambda right: right[GIVEN] and right[DESCRIBED],
    "reasoning": lambda right: right[GIVEN],
}
"""Ability -> its definition, for one sample."""


def _ability(ability: str, replies: Mapping[tuple[str, int], Record], sample: int) -> bool | None:
    if ability not in HAS_ABILITY:
        return None
    right = {condition: _right(replies.get((condition, sample))) for condition in ABILITY_CONDITIONS[ability]}
    known = {condition: value for condition, value in right.items() if value is not None}
    return HAS_ABILITY[ability](known) if len(known) == len(right) else None


def _mean(samples: tuple[bool | None, ...]) -> float | None:
    judged = [sample for sample in samples if sample is not None]
    return sum(judged) / len(judged) if judged else None
