"""Which questions are asked about the pictures of a split? Selected by class, from the labels alone.

    choice   one right option and others that do not apply, shuffled by the seed; of grades all, in their order
    yes_no   one label is named: half of the questions name one that applies

Sets of one label per picture: every selected picture is asked about once per form. Of the yes/no questions of a class
every second names another class, each other class equally often.

Sets of findings: a picture is asked about once per finding that it has, beside findings that it has not; pictures
without findings have no choice question. Yes/no questions name each finding equally often; unless balanced, every
picture is asked about one finding, in turn, and `yes` is as frequent as the findings are.

Balanced: every class (or finding) has as many questions as the rarest one that occurs, and findings as many `no` as
`yes`.
"""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from jaxtyping import Integer

from data_builders.medmnist.sets import Labels, MedicalSet
from data_builders.prompt_sets.choices import LETTERS, ask_with_choices
from tracking.command import check_least, did_you_mean

CHOICE, YES_NO = "choice", "yes_no"
FORMS = (CHOICE, YES_NO)
ANSWER_YES_NO = "Answer yes or no."

LabelArray = Integer[np.ndarray, " pictures"] | Integer[np.ndarray, "pictures findings"]


@dataclass(frozen=True, kw_only=True)
class QuestionRules:
    """Which questions are asked, and how many."""

    forms: list[str] = field(default_factory=lambda: [CHOICE], metadata={"help": f"one or both of {', '.join(FORMS)}"})
    num_options: int = field(
        default=4,
        metadata={
            "help": f"options of a multiple-choice question, 2 to {len(LETTERS)}; fewer if a set has fewer classes"
        },
    )
    balance: bool = field(
        default=True,
        metadata={"help": "ask equally often about every class: as often as about the rarest one in the split"},
    )
    per_class: int | None = field(
        default=None, metadata={"help": "maximum number of pictures of a class in each split; all by default"}
    )

    def __post_init__(self) -> None:
        for form in self.forms:
            if form not in FORMS:
                raise ValueError(f"forms: {form!r} is not one of {', '.join(FORMS)}{did_you_mean(form, FORMS)}")
        if not self.forms or len(set(self.forms)) < len(self.forms):
            raise ValueError(f"forms is {self.forms}; expected one or both of {', '.join(FORMS)}, each once")
        if not 2 <= self.num_options <= len(LETTERS):
            raise ValueError(f"num_options is {self.num_options}; expected 2 to {len(LETTERS)}, the letters of options")
        if self.per_class is not None:
            check_least(self, per_class=1)


class Question(NamedTuple):
    """A question about one picture."""

    picture: int
    """The picture's number in its split."""
    form: str
    asked: int
    """The label that is right (choice) or named (yes_no)."""
    applies: bool
    """Whether that label applies to the picture."""


def plan_questions(labels: LabelArray, medical_set: MedicalSet, rules: QuestionRules, seed: str) -> list[Question]:
    """Returns the questions about a split, in the order of its pictures.

    Args:
        labels: a number per picture, or 0 and 1 per picture and finding.
        medical_set: names of the labels.
        rules: which questions are asked.
        seed: seed of the selection.
    """
    rng = random.Random(f"{seed}/questions")
    if medical_set.labels == Labels.FINDINGS:
        forms = [form for form in FORMS if form in rules.forms]
        chosen = [question for form in forms for question in _of_findings(labels, form, rules, rng)]
    else:
        chosen = list(_of_classes(labels, rules, rng, len(medical_set.names)))
    return sorted(chosen)


def _shuffled(indices: Integer[np.ndarray, " pictures"], rng: random.Random) -> list[int]:
    found: list[int] = indices.tolist()
    rng.shuffle(found)
    return found


def _at_most(rules: QuestionRules, counts: Sequence[int]) -> int:
    """Returns how many questions a class may have, given how many each could have."""
    rarest = min((count for count in counts if count), default=0)
    limits = ([rarest] if rules.balance else []) + ([rules.per_class] if rules.per_class is not None else [])
    return min(limits, default=max(counts, default=0))


def _of_classes(labels: LabelArray, rules: QuestionRules, rng: random.Random, num_classes: int) -> Iterator[Question]:
    pictures = [_shuffled(np.flatnonzero(labels == number), rng) for number in range(num_classes)]
    most = _at_most(rules, [len(own) for own in pictures])
    for number, own in enumerate(pictures):
        others = [other for other in range(num_classes) if other != number]
        for place, index in enumerate(own[:most]):
            if CHOICE in rules.forms:
                yield Question(index, CHOICE, number, True)
            if YES_NO in rules.forms:
                applies = place % 2 == 0
                asked = number if applies else others[(number + place // 2) % len(others)]
                yield Question(index, YES_NO, asked, applies)


def _of_findings(labels: LabelArray, form: str, rules: QuestionRules, rng: random.Random) -> Iterator[Question]:
    num_findings = labels.shape[1]
    has, lacks = labels == 1, labels == 0
    if form == CHOICE:
        usable = has & lacks.any(axis=1, keepdims=True)
        present = [_shuffled(np.flatnonzero(usable[:, number]), rng) for number in range(num_findings)]
        absent: list[list[int]] = [[] for _ in range(num_findings)]
    else:
        whose = np.ones_like(has)
        if not rules.balance:  # one finding per picture
            order = np.array(_shuffled(np.arange(len(labels)), rng), dtype=np.int64)
            whose = np.zeros_like(has)
            whose[order, np.arange(len(labels)) % num_findings] = True
        present = [_shuffled(np.flatnonzero(has[:, number] & whose[:, number]), rng) for number in range(num_findings)]
        absent = [_shuffled(np.flatnonzero(lacks[:, number] & whose[:, number]), rng) for number in range(num_findings)]
    counts = [len(own) for own in present]
    if form == YES_NO and rules.balance:
        counts = [min(len(own), len(other)) for own, other in zip(present, absent, strict=True)]
    most = _at_most(rules, [*counts, *(len(other) for other in absent)] if not rules.balance else counts)
    for number in range(num_findings):
        if form == YES_NO and rules.balance and not counts[number]:
            continue
        yield from (Question(index, form, number, True) for index in present[number][:most])
        yield from (Question(index, form, number, False) for index in absent[number][:most])


def options_of(
    question: Question, label: Sequence[int], medical_set: MedicalSet, num_options: int, seed: str
) -> list[str]:
    """Returns the options of a multiple-choice question in their order.

    Args:
        question: the question.
        label: the picture's labels: its class, or 0 and 1 per finding.
        medical_set: names of the labels.
        num_options: number of options, if there are enough labels that do not apply.
        seed: seed of the other options and their order.
    """
    names = medical_set.names
    if medical_set.labels == Labels.GRADES:
        return list(names)
    if medical_set.labels == Labels.FINDINGS:
        others = [name for name, value in zip(names, label, strict=True) if not value]
    else:
        others = [name for number, name in enumerate(names) if number != question.asked]
    rng = random.Random(seed)
    options = [names[question.asked], *rng.sample(others, min(num_options - 1, len(others)))]
    rng.shuffle(options)
    return options


def ask_yes_no(question: Question, medical_set: MedicalSet) -> str:
    """Returns the text of a yes/no question."""
    name, picture = medical_set.names[question.asked], medical_set.picture
    if medical_set.labels == Labels.FINDINGS:
        return f"Does this {picture} show the finding “{name}”? {ANSWER_YES_NO}"
    if medical_set.labels == Labels.GRADES:
        return f"Does this {picture} show diabetic retinopathy of grade {name}? {ANSWER_YES_NO}"
    return f"Does the label “{name}” describe this {picture}? {ANSWER_YES_NO}"


def ask_choice(options: Sequence[str], medical_set: MedicalSet) -> str:
    """Returns the text of a multiple-choice question with its options."""
    return ask_with_choices(medical_set.question, options)


def count_asked(questions: Sequence[Question], names: Sequence[str]) -> dict[str, dict[str, int]]:
    """Returns the number of questions per form and answer, such as `yes_no` -> `edema: no` -> 12."""
    counted: dict[str, Counter[str]] = {}
    for question in questions:
        answer = "" if question.form == CHOICE else ": yes" if question.applies else ": no"
        counted.setdefault(question.form, Counter())[names[question.asked] + answer] += 1
    return {form: dict(sorted(counts.items())) for form, counts in counted.items()}
