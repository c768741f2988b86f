"""Builds prompts from the files of MedMNIST and MedMNIST+: multiple-choice and yes/no questions, split as published.

    python -m data_builders.build medmnist --source pathmnist_224.npz chestmnist_224.npz --output-dir outputs/medical
    python -m data_builders.build medmnist --source FOLDER --forms choice yes_no --per_class 500 --output-dir D

Writes `rl.jsonl` (the published training split), `validation.jsonl`, `test.jsonl`, `images/` and `build_report.json`.
A prompt's `meta` has the set, the modality, the published split, the picture's number in it and the class. If a set has
several findings per picture, the class is the finding that is asked about, and `findings` names all that apply. Which
questions are asked is in `questions.py`, the names of the classes in `sets.py`.

The pictures are stored as published: not resized, grey ones as grey. They are read once, as a stream (`npz.py`), so
memory does not grow with their number. A training or validation picture with the same pixels as a test picture, or a
training picture with those of a validation picture, is left out and counted. A split is ordered by a hash of seed and
id, so its beginning has questions of all sets.

Known limit: pictures are compared after the selection, so a class may have slightly fewer questions than others.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from data_builders.medmnist.archives import SPLITS, Archive, Part, open_archives
from data_builders.medmnist.pictures import picture_name, store_pictures
from data_builders.medmnist.questions import (
    CHOICE,
    Question,
    QuestionRules,
    ask_choice,
    ask_yes_no,
    count_asked,
    options_of,
    plan_questions,
)
from data_builders.medmnist.sets import Labels
from data_builders.prompt_sets.choices import LETTERS
from data_builders.prompt_sets.prompts import Prompt, write_prompts
from tracking.command import check_least
from tracking.progress import Progress

REPORT_FILE = "build_report.json"
ABILITY = "vision"
READ_ORDER = ("test", "val", "train")
"""Held-out pictures are read first, so that copies of them can be left out of the others."""


@dataclass(frozen=True, kw_only=True)
class MedmnistArguments(QuestionRules):
    """The files, and which questions are asked about their pictures."""

    source: list[str] = field(
        metadata={"help": "one or more files such as pathmnist.npz or pathmnist_224.npz, or folders of them"}
    )
    responses: bool = field(
        default=False,
        metadata={
            "help": "give every prompt a response, for supervised training: the class as the thought, and the "
            "right answer"
        },
    )
    num_threads: int = field(default=0, metadata={"help": "threads that store pictures; 0: one per core"})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(self, num_threads=0)
        if not self.source:
            raise ValueError("source is empty; expected at least one .npz file or folder")

    @cached_property
    def opened(self) -> tuple[list[Archive], list[str]]:
        """The checked archives, and the names of other files in the folders."""
        return open_archives(self.source)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The questions about one split of one archive."""

    archive: Archive
    part: Part
    questions: list[Question]
    num_copies: int

    def id(self, question: Question) -> str:
        asked = f"{question.form}-{question.asked}"
        return f"{self.archive.stem}-{self.part.name}-{question.picture:06d}-{asked}"

    def to_prompt(self, question: Question, *, num_options: int, seed: int, responses: bool = False) -> Prompt:
        """Returns a question as a prompt, with a response if they are wanted."""
        medical_set = self.archive.medical_set
        label = self.part.labels[question.picture]
        name = self.id(question)
        if question.form == CHOICE:
            values = label.tolist() if medical_set.labels == Labels.FINDINGS else []
            options = options_of(question, values, medical_set, num_options, f"{seed}/options/{name}")
            text, answer = ask_choice(options, medical_set), medical_set.names[question.asked]
        else:
            options, text, answer = [], ask_yes_no(question, medical_set), "yes" if question.applies else "no"
        findings = medical_set.labels == Labels.FINDINGS
        own = question.asked if findings else int(label)
        shown = medical_set.names[own] if question.applies or not findings else f"no {medical_set.names[own]}"
        return Prompt(
            id=name,
            ability=ABILITY,
            question=text,
            answer=answer,
            answer_kind=question.form,
            choices=tuple(options),
            response=respond(shown, options, answer) if responses else None,
            images=(picture_name(self.archive.stem, self.part.name, question.picture),),
            meta={
                "data_source": "medmnist",
                "set": self.archive.set_name,
                "modality": medical_set.modality,
                "split": self.part.name,
                "index": question.picture,
                "class": medical_set.names[own],
                **self._findings(question),
            },
        )

    def _findings(self, question: Question) -> dict[str, list[str]]:
        """Returns all findings of a question's picture, if the set has several per picture."""
        medical_set = self.archive.medical_set
        if medical_set.labels != Labels.FINDINGS:
            return {}
        numbers = np.flatnonzero(self.part.labels[question.picture])
        return {"findings": [medical_set.names[number] for number in numbers]}


def respond(shown: str, options: Sequence[str], answer: str) -> str:
    """Returns a response in the suite's format: the picture's class, then the right option's letter, or yes or no."""
    said = LETTERS[options.index(answer)] if options else answer
    return f"<think>{shown}</think><answer>{said}</answer>"


def describe(arguments: MedmnistArguments) -> dict[str, Any]:
    """Returns what determines the product: the arguments, with file contents instead of paths."""
    settings = asdict(arguments)
    del settings["num_threads"]
    if not arguments.responses:
        del settings["responses"]  # what was built before there were any stays valid
    settings["source"] = {archive.path.name: archive.fingerprint for archive in arguments.opened[0]}
    return settings


def check_sources(arguments: MedmnistArguments) -> None:
    """Checks all files before anything is written.

    Raises:
        ValueError: if one is not what MedMNIST publishes.
    """
    arguments.opened  # noqa: B018


def build_medmnist(directory: Path, arguments: MedmnistArguments, seed: int) -> None:
    """Writes the prompt set into an existing folder."""
    archives, other = arguments.opened
    num_threads = arguments.num_threads or len(os.sched_getaffinity(0))
    asked: dict[str, list[Asked]] = {split: [] for split in SPLITS}
    total = sum(len(part.images) for archive in archives for part in archive.parts.values())
    with Progress(label="pictures", total=total, unit="picture") as counter:
        for archive in archives:
            held_out: set[int] = set()
            for split in READ_ORDER:
                part = archive.parts[split]
                asked[split].append(
                    _store(directory, archive, part, arguments, seed, held_out, num_threads, counter.advance)
                )
    for split, name in SPLITS.items():
        if any(each.questions for each in asked[split]):
            write_prompts(directory, name, _in_order(asked[split], arguments, seed))
    report = {
        "sets": {archive.stem: _report(archive, asked) for archive in archives},
        "splits": {name: sum(len(each.questions) for each in asked[split]) for split, name in SPLITS.items()},
        "not_read": other,
    }
    (directory / REPORT_FILE).write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    _print_report(report)


def _store(
    directory: Path,
    archive: Archive,
    part: Part,
    arguments: MedmnistArguments,
    seed: int,
    held_out: set[int],
    num_threads: int,
    advance: Callable[[float], None],
) -> Asked:
    """Selects the questions of a split and writes their pictures; adds the pictures' digests to `held_out`."""
    questions = plan_questions(part.labels, archive.medical_set, arguments, f"{seed}/{archive.stem}/{part.name}")
    copies: set[int] = set()
    own: list[int] = []
    results = store_pictures(
        part.images,
        directory,
        stem=archive.stem,
        split=part.name,
        needed={question.picture for question in questions},
        held_out=held_out,
        num_threads=num_threads,
    )
    for num_pictures, digests, left_out in results:
        own += digests if part.name != "train" else []
        copies.update(left_out)
        advance(num_pictures)
    held_out.update(own)
    kept = [question for question in questions if question.picture not in copies]
    return Asked(archive=archive, part=part, questions=kept, num_copies=len(copies))


def _in_order(asked: Sequence[Asked], arguments: MedmnistArguments, seed: int) -> Iterator[Prompt]:
    """Yields the prompts of all sets, ordered by a hash of seed and id."""
    places = [(number, question) for number, each in enumerate(asked) for question in each.questions]
    hashes = np.array([_hash(f"{seed}/order/{asked[number].id(question)}") for number, question in places], np.uint64)
    for place in np.argsort(hashes, kind="stable").tolist():
        number, question = places[place]
        yield asked[number].to_prompt(
            question, num_options=arguments.num_options, seed=seed, responses=arguments.responses
        )


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def _report(archive: Archive, asked: Mapping[str, Sequence[Asked]]) -> dict[str, Any]:
    """Returns what became of one file."""
    names = archive.medical_set.names
    findings = archive.medical_set.labels == Labels.FINDINGS

    def of(part: Part) -> dict[str, Any]:
        own = next(each for each in asked[part.name] if each.archive is archive)
        per_class = part.labels.sum(axis=0) if findings else np.bincount(part.labels, minlength=len(names))
        num_used = len({question.picture for question in own.questions})
        return {
            "num_pictures": len(part.images),
            "num_used": num_used,
            "num_not_selected": len(part.images) - num_used - own.num_copies,
            "num_copies_of_held_out": own.num_copies,
            "pictures": {name: int(num) for name, num in zip(names, per_class, strict=True)},
            **({"without_findings": int((part.labels.sum(axis=1) == 0).sum())} if findings else {}),
            "questions": count_asked(own.questions, names),
        }

    return {
        "modality": archive.medical_set.modality,
        "labels": archive.medical_set.labels.value,
        "splits": {SPLITS[split]: of(part) for split, part in archive.parts.items()},
    }


def _print_report(report: Mapping[str, Any]) -> None:
    for stem, own in report["sets"].items():
        for split, found in own["splits"].items():
            num_questions = sum(sum(counts.values()) for counts in found["questions"].values())
            copies = found["num_copies_of_held_out"]
            print(
                f"{stem}, {split}: {num_questions} questions about {found['num_used']} of {found['num_pictures']} "
                "pictures" + (f"; {copies} left out, with the pixels of a held-out picture" if copies else "")
            )
    for name in report["not_read"]:
        print(f"{name}: not read, as no 2D set of MedMNIST has this name")
