"""Aligns all models' outcomes per task and ability in one order, and forms the pairs of models to compare.

A *group* is one ability of one task. A *metric* defines a prompt's value and which prompts are compared:

    accuracy                                 the share of samples that are right, if both models could be judged
    accuracy where both are well-formed      the same, for prompts that both answered in the requested form, so that
                                             form alone makes no difference
    ability                                  the paper's definition (`eval/replies/outcomes.py`); only if other
                                             conditions were asked too; otherwise it would repeat the accuracy

A prompt that is right more than half the time under one model and less than half under the other has *flipped*; with
one answer per prompt these are McNemar's discordant pairs.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import Bool, Float, Int

from eval.replies.outcomes import Outcome

ACCURACY, WELL_FORMED, ABILITY = "accuracy", "accuracy where both are well-formed", "ability"
METRICS = (ACCURACY, WELL_FORMED, ABILITY)
FLIPPING_METRICS = (ACCURACY, ABILITY)
"""Metrics whose flips are listed; the flips of the second metric are a subset of the first's."""
HALF = 0.5
Seed = TypeVar("Seed", int, str)
KINDS = ("right->wrong", "wrong->right", "right->right", "wrong->wrong")
"""Transitions of a prompt from the comparison model to the model; the first two are flips."""


@dataclass(frozen=True)
class Entry:
    """One evaluated model: its name, its training seed if any, and its records."""

    name: str
    seed: int | None
    directory: Path

    @property
    def label(self) -> str:
        return label(self.name, self.seed)


def label(name: str, seed: int | None) -> str:
    """Returns `NAME` or `NAME@SEED`."""
    return name if seed is None else f"{name}@{seed}"


def parse_entry(text: str) -> Entry:
    """Parses `NAME=DIR` or `NAME@SEED=DIR`; `DIR` alone is named after its folder."""
    name_and_seed, separator, directory = text.partition("=")
    if not separator:
        name_and_seed, directory = Path(text).resolve().name, text
    name, at, seed = name_and_seed.partition("@")
    if not name or not directory or (at and not seed.isdigit()):
        raise ValueError(f"{text!r} is not DIR, NAME=DIR or NAME@SEED=DIR, such as full@0=outputs/eval/full-seed0")
    return Entry(name, int(seed) if seed else None, Path(directory))


ENTRIES_ARGUMENT = {
    "help": "output directories of eval.run: DIR, NAME=DIR or NAME@SEED=DIR",
    "positional": True,
    "metavar": "NAME=DIR",
    "check": parse_entry,
}
"""Metadata of the field `models` of commands that compare evaluations."""


@dataclass(frozen=True)
class Answers:
    """One model's answers in one group, one row per seed; NaN if a value is undefined."""

    seeds: tuple[int | None, ...]
    accuracy: Float[np.ndarray, "seeds n"]
    ability: Float[np.ndarray, "seeds n"]
    well_formed: Bool[np.ndarray, "seeds n"]

    def values(self, metric: str) -> Float[np.ndarray, "seeds n"]:
        """Returns every prompt's value under a metric; NaN if it is not compared."""
        if metric == WELL_FORMED:
            return np.where(self.well_formed, self.accuracy, np.nan)
        return self.ability if metric == ABILITY else self.accuracy


@dataclass(frozen=True)
class Pair:
    """A model and its comparison model, on the same prompts."""

    name: str
    against: str
    first: Answers
    """Answers of the model."""
    second: Answers
    """Answers of the comparison model."""

    def seeds(self) -> Iterator[tuple[int | None, int, int]]:
        """Yields each seed that both models have, with its row in either; a model without seeds has one row."""
        shared = common_seeds(self.first.seeds, self.second.seeds)
        rows = (rows_of_seeds(own.seeds, shared) for own in (self.first, self.second))
        yield from zip(shared, *rows, strict=True)


@dataclass(frozen=True)
class Group:
    """One ability of one task, answered by every model."""

    task: str
    ability: str
    ids: tuple[str, ...]
    num_samples: int
    """Number of answers per prompt."""
    clusters: Int[np.ndarray, " n"] | None
    """Index from 0 of each prompt's cluster; None if prompts are independent."""
    answers: dict[str, Answers]

    def pairs(self, baseline: str, reference: str | None) -> Iterator[Pair]:
        """Yields all models against the baseline, then all others against the reference."""
        for against in dict.fromkeys(filter(None, (baseline, reference))):
            for name, own in self.answers.items():
                if name != against and (against == baseline or name != baseline):
                    yield Pair(name, against, own, self.answers[against])


def collect_groups(entries: Sequence[Entry], outcomes: Mapping[str, Sequence[Outcome]]) -> list[Group]:
    """Returns the groups of all models.

    Args:
        entries: the models.
        outcomes: model label -> its outcomes.

    Raises:
        ValueError: if models answered different prompts, or a name is given with and without a seed.
    """
    found: dict[tuple[str, str], dict[str, dict[str, Outcome]]] = {}
    labels = [entry.label for entry in entries]
    for entry_label in labels:
        for outcome in outcomes[entry_label]:
            place = outcome.task, outcome.ability
            if place not in found:
                found[place] = {label: {} for label in labels}
            found[place][entry_label][outcome.id] = outcome
    return [_group(task, ability, entries, by_label) for (task, ability), by_label in found.items()]


def _group(
    task: str,
    ability: str,
    entries: Sequence[Entry],
    by_label: Mapping[str, Mapping[str, Outcome]],
) -> Group:
    first = by_label[entries[0].label]
    ids = sorted(first)
    sizes = {len(outcome.samples) for own in by_label.values() for outcome in own.values()}
    for entry in entries:
        if sorted(by_label[entry.label]) != ids:
            raise ValueError(f"{entry.label} and {entries[0].label} answered different samples of {ability}")
    if len(sizes) > 1:
        raise ValueError(f"{task}: prompts of {ability} have {sorted(sizes)} answers; expected equally many for each")
    answers = {}
    for name in dict.fromkeys(entry.name for entry in entries):
        own = [entry for entry in entries if entry.name == name]
        if len(own) > 1 and any(entry.seed is None for entry in own):
            raise ValueError(f"{name!r} is given with and without a seed; expected NAME@SEED throughout")
        rows = [[by_label[entry.label][prompt_id] for prompt_id in ids] for entry in own]
        answers[name] = Answers(
            seeds=tuple(entry.seed for entry in own),
            accuracy=np.array([[outcome.accuracy for outcome in row] for row in rows], float),
            ability=np.array([[outcome.ability_score for outcome in row] for row in rows], float),
            well_formed=np.array([[outcome.well_formed for outcome in row] for row in rows]),
        )
    return Group(
        task, ability, tuple(ids), sizes.pop(), _cluster_numbers([first[prompt_id] for prompt_id in ids]), answers
    )


def _cluster_numbers(prompts: Sequence[Outcome]) -> Int[np.ndarray, " n"] | None:
    places: dict[object, int] = {}
    numbers = [places.setdefault(prompt.cluster or (prompt.id,), len(places)) for prompt in prompts]
    return np.array(numbers) if len(places) < len(prompts) else None


def common_seeds(first: Sequence[Seed | None], second: Sequence[Seed | None]) -> tuple[Seed | None, ...]:
    """Returns the seeds that two models share; a model without seeds matches each of the other's."""
    if tuple(first) == (None,):
        return tuple(second)
    if tuple(second) == (None,):
        return tuple(first)
    return tuple(seed for seed in first if seed in second)


def rows_of_seeds(own: Sequence[Seed | None], wanted: Sequence[Seed | None]) -> list[int]:
    """Returns the rows of a model's seeds; a model without seeds repeats its single row."""
    return [0 if tuple(own) == (None,) else list(own).index(seed) for seed in wanted]


def went(before: Float[np.ndarray, " n"], after: Float[np.ndarray, " n"], kind: str) -> Bool[np.ndarray, " n"]:
    """Returns which prompts made a transition of `KINDS`; right means more than half the time, wrong less."""
    start, end = kind.split("->")
    found: Bool[np.ndarray, " n"] = _is(before, start) & _is(after, end)
    return found


def _is(values: Float[np.ndarray, " n"], word: str) -> Bool[np.ndarray, " n"]:
    return values > HALF if word == "right" else values < HALF
