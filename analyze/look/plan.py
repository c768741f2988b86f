"""Which prompts are looked at, with which replies, by which models? The plan, before a model is loaded.

Models and replies come from evaluations of `eval.run`. Prompts on which the models disagree come first.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analyze.probes.inputs import Problem
from eval.compare.alike import check_alike
from eval.compare.page import find_tasks
from eval.replies.outcomes import GIVEN
from eval.replies.subject import open_subject
from eval.statistics.pairing import Entry
from models.foreign import CONFIG_FILE
from models.layout import Layout, config_value, layout_of
from tracking.command import did_you_mean
from tracking.records import Record, read_records
from tracking.run import is_finished, read_run

RECORDS_FILE = "records.jsonl"
CORRECT = "correct"
RECURRENT = "linear_attention"
"""The kind of decoder layers without attention weights (Qwen3.5)."""


@dataclass(frozen=True, kw_only=True)
class Reader:
    """A model, and the evaluation that names it."""

    entry: Entry
    run: Mapping[str, Any]
    answers: Mapping[str, Record]
    """Prompt key -> its first reply under the given condition."""

    @property
    def label(self) -> str:
        return self.entry.label

    @property
    def model(self) -> str:
        return str(self.run["settings"]["model"])


@dataclass(frozen=True, kw_only=True)
class Look:
    """One reply to one prompt, read by every model."""

    problem: Problem
    author: str
    """The model whose reply it is."""
    reply: str
    statuses: Mapping[str, str]
    """Model -> how its own reply to this prompt was graded."""

    @property
    def key(self) -> str:
        return f"{self.problem.key}/{self.author}"

    @property
    def flipped(self) -> bool:
        """True if one model is right and another is not."""
        return len({status == CORRECT for status in self.statuses.values()}) > 1


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All models, and all replies that they read."""

    readers: list[Reader]
    looks: list[Look]
    layout: Layout
    num_prompts: int
    num_flipped: int


def read_plan(
    entries: Sequence[Entry], *, tasks: Sequence[str], authors: Sequence[str], limit: int, rollout: bool = False
) -> Plan:
    """Finds prompts, replies and models of the evaluations.

    Args:
        entries: the evaluations, in the order in which their models are shown.
        tasks: where the prompts are now, if they were moved.
        authors: models whose replies are read; by default the first and the last.
        limit: maximum number of prompts.
        rollout: every layer must have attention.

    Raises:
        ValueError: if an evaluation is unfinished, was made otherwise than the others, or its prompts are gone.
    """
    for entry in entries:
        if not is_finished(entry.directory):
            raise ValueError(f"{entry.directory} is not finished; run eval.run again to its end")
    check_alike(entries)
    readers = [_reader(entry) for entry in entries]
    labels = [reader.label for reader in readers]
    for author in authors:
        if author not in labels:
            raise ValueError(f"--authors {author!r} is none of {', '.join(labels)}{did_you_mean(author, labels)}")
    found = find_tasks(readers[0].run, tasks)
    if not found.found:
        task, why = next(iter(found.missing.items()))
        raise ValueError(f"the prompts of {task} are not to be had: {why}; name them with --tasks")
    pictured = [
        Problem(task=name, directory=task.directory, prompt=prompt)
        for name, task in found.found.items()
        for prompt in task.prompts
        if prompt.images and all(f"{name}/{prompt.id}" in reader.answers for reader in readers)
    ]
    if not pictured:
        raise ValueError(f"{', '.join(found.found)}: no prompt with a picture was answered by every model")
    chosen = list(dict.fromkeys(authors or (labels[0], labels[-1])))
    looks = [_looks(problem, readers, chosen) for problem in pictured]
    flipped = [own for own in looks if own[0].flipped]
    same = [own for own in looks if not own[0].flipped]
    return Plan(
        readers=readers,
        looks=[look for own in (flipped + same)[:limit] for look in own],
        layout=_layout(readers, rollout=rollout),
        num_prompts=min(limit, len(looks)),
        num_flipped=min(limit, len(flipped)),
    )


def _reader(entry: Entry) -> Reader:
    answers: dict[str, Record] = {}
    for record in read_records(entry.directory / RECORDS_FILE):
        if record.get("condition", GIVEN) == GIVEN and record.get("sample", 0) == 0:
            answers[f"{record['task']}/{record['id']}"] = record
    return Reader(entry=entry, run=read_run(entry.directory), answers=answers)


def _looks(problem: Problem, readers: Sequence[Reader], authors: Sequence[str]) -> list[Look]:
    answers = {reader.label: reader.answers[problem.key] for reader in readers}
    statuses = {label: str(answer["status"]) for label, answer in answers.items()}
    replies: dict[str, str] = {}
    for author in authors:  # a reply that two models gave alike is read once
        replies.setdefault(str(answers[author]["response"]), author)
    return [Look(problem=problem, author=author, reply=reply, statuses=statuses) for reply, author in replies.items()]


def parse_heads(named: Sequence[str], plan: Plan) -> list[tuple[int, int]]:
    """Returns heads named as `LAYER.HEAD`.

    Raises:
        ValueError: if a name is malformed, or the models have no such head.
    """
    if not named:
        return []
    folder = open_subject(plan.readers[0].model).directory
    config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    num_heads = int(config_value(config, "text_config", "num_attention_heads"))
    attending = [layer for layer, kind in enumerate(plan.layout.layer_kinds) if kind != RECURRENT]
    found = []
    for name in named:
        layer, dot, head = name.partition(".")
        if not (dot and layer.isdigit() and head.isdigit()):
            raise ValueError(f"--show-heads {name!r}; expected LAYER.HEAD, such as 0.0")
        if int(layer) not in attending or int(head) >= num_heads:
            raise ValueError(
                f"--show-heads {name}: expected a layer of {_ranges(attending)} and a head of 0 to {num_heads - 1}"
            )
        found.append((int(layer), int(head)))
    return found


def _ranges(numbers: Sequence[int]) -> str:
    whole = list(range(numbers[0], numbers[-1] + 1))
    return f"{whole[0]} to {whole[-1]}" if list(numbers) == whole else ", ".join(map(str, numbers))


def _layout(readers: Sequence[Reader], *, rollout: bool) -> Layout:
    """Returns the layout of the models, which must have the same depth and read pictures."""
    layouts = {reader.label: layout_of(open_subject(reader.model).directory) for reader in readers}
    first, *others = layouts
    if layouts[first].family.text_only:
        raise ValueError(f"{first} is a text-only model ({layouts[first].family.model_type}); it looks at no picture")
    if rollout and layouts[first].family.layer_kinds:
        raise ValueError(
            f"--rollout: some layers of {layouts[first].family.model_type} have a recurrent state and no attention to "
            "multiply; leave it out"
        )
    for other in others:
        if layouts[other].num_layers != layouts[first].num_layers:
            raise ValueError(
                f"{first} has {layouts[first].num_layers} decoder layers and {other} {layouts[other].num_layers}; "
                "models that are compared block by block need the same depth"
            )
    return layouts[first]
