"""Which model reads which replies? The plan of a run of `analyze.attention`, before anything is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from analyze.attention.controls import TEACHER_FORCED
from analyze.attention.records import Label
from analyze.probes.inputs import Problem
from eval.replies.subject import Subject, check_subject, open_subject
from models.layout import Layout, layout_of
from tracking.command import did_you_mean
from tracking.records import Record, read_records

OWN = "own"
MODES = (TEACHER_FORCED, OWN)
STORED = "response"
"""The reference that uses the prompts' own responses."""


@dataclass(frozen=True)
class Contender:
    """One model of the comparison."""

    label: Label
    subject: Subject
    layout: Layout


@dataclass(frozen=True)
class Unit:
    """One reply read by one model."""

    label: Label
    mode: str
    problem: Problem
    reply: str

    @property
    def head(self) -> dict[str, str]:
        return {"model": self.label.name, "seed": self.label.seed, "mode": self.mode, **self.problem.head}


def parse_contender(text: str) -> tuple[Label, str]:
    """Parses `NAME=MODEL` or `NAME@SEED=MODEL`."""
    label, _, model = text.partition("=")
    name, at, seed = label.partition("@")
    if not name or not model or (at and not seed) or "/" in label:
        raise ValueError(
            f"--models {text!r} is not NAME=MODEL or NAME@SEED=MODEL, such as sft=outputs/sft/final (no / in NAME)"
        )
    return Label(name, seed), model


def check_contender(text: str) -> None:
    """Refuses a model that is not named, or plainly not there.

    Raises:
        ValueError: that says what it is instead.
    """
    _, model = parse_contender(text)
    check_subject(model)


def open_contenders(models: Sequence[str]) -> list[Contender]:
    """Opens the models, which must differ in name or seed and have the same depth."""
    named = [parse_contender(text) for text in models]
    labels = [label for label, _ in named]
    for label in labels:
        if labels.count(label) > 1:
            raise ValueError(f"model {str(label)!r} is named twice; expected each model and seed once")
        if not label.seed and [other.name for other in labels].count(label.name) > 1:
            raise ValueError(f"{label.name!r} is given with and without a seed; expected NAME@SEED throughout")
    subjects = [open_subject(model) for _, model in named]
    contenders = [
        Contender(label, subject, layout_of(subject.directory)) for label, subject in zip(labels, subjects, strict=True)
    ]
    depths = {str(one.label): one.layout.num_layers for one in contenders}
    first, *others = depths
    for other in others:
        if depths[other] != depths[first]:
            raise ValueError(
                f"{first} has {depths[first]} decoder layers and {other} {depths[other]}; compared layer by layer, "
                "models need the same depth"
            )
    return contenders


def check_baselines(labels: Sequence[Label], baselines: Sequence[str]) -> None:
    """Rejects unknown baselines."""
    names = list(dict.fromkeys(label.name for label in labels))
    for name in baselines:
        if name not in names:
            raise ValueError(f"baseline {name!r} is not among the models {', '.join(names)}{did_you_mean(name, names)}")


def given_replies(reference: str, problems: Sequence[Problem]) -> dict[str, str]:
    """Returns the replies stored with the prompts, or in a file.

    Raises:
        ValueError: if a prompt has none.
    """
    if reference == STORED:
        found = {problem.key: problem.prompt.response for problem in problems}
    else:
        replies = _read_replies(Path(reference))
        found = {problem.key: replies.get(problem.key, replies.get(problem.prompt.id)) for problem in problems}
    for key, reply in found.items():
        if reply is None:
            raise ValueError(
                f"--reference {reference}: no reply to the prompt {key}; give a file with one for each, or the name of "
                "a model, whose answers are then generated"
            )
    return {key: reply for key, reply in found.items() if reply is not None}


def _read_replies(path: Path) -> dict[str, str]:
    """Returns a file's replies, keyed by `TASK/ID`, or by the id if a line has no task."""
    try:
        records = read_records(path)
    except ValueError as error:
        cause = error.__cause__
        if not isinstance(cause, UnicodeDecodeError):
            raise
        raise ValueError(f"{path}: not readable as text ({cause}); expected lines of id and response") from error
    replies: dict[str, str] = {}
    for number, record in enumerate(records, start=1):
        if not isinstance(record.get("response"), str) or "id" not in record:
            raise ValueError(f"{path}:{number}: no reply; expected an object with id and response")
        key = f"{record['task']}/{record['id']}" if "task" in record else str(record["id"])
        if key in replies:
            raise ValueError(f"{path}:{number}: a second reply to {key}; expected one for each prompt")
        replies[key] = record["response"]
    return replies


def check_reference(reference: str, labels: Sequence[Label]) -> Label | None:
    """Returns the model that a reference names; None if it names stored replies or a file."""
    by_name = {str(label): label for label in labels}
    if reference in by_name:
        return by_name[reference]
    if reference != STORED and not Path(reference).is_file():
        valid = [*by_name, STORED]
        raise ValueError(
            f"--reference {reference!r} is neither a model, nor {STORED!r}, nor a file{did_you_mean(reference, valid)} "
            f"(models: {', '.join(by_name)})"
        )
    return None


def plan_units(
    contenders: Sequence[Contender],
    problems: Sequence[Problem],
    modes: Sequence[str],
    reference: Label | None,
    replies: dict[str, str],
    answers: Sequence[Record],
) -> list[Unit]:
    """Returns all replies that each model reads.

    Args:
        contenders: the models.
        problems: the prompts.
        modes: teacher-forced, own or both.
        reference: the model whose answers are used in the teacher-forced mode; None if `replies` has the text.
        replies: problem key -> reply.
        answers: the models' own answers, as far as requested.
    """
    own = {
        f"{Label(record['model'], record['seed'])}/{record['task']}/{record['id']}": record["response"]
        for record in answers
    }
    texts = {problem.key: own[f"{reference}/{problem.key}"] for problem in problems} if reference else replies
    units = []
    for contender in contenders:
        for mode in (mode for mode in MODES if mode in modes):
            for problem in problems:
                reply = texts[problem.key] if mode == TEACHER_FORCED else own[f"{contender.label}/{problem.key}"]
                units.append(Unit(contender.label, mode, problem, reply))
    return units
