"""How are the columns of a published table read? PMC-VQA, SLAKE, VQA-RAD and PathVQA, recognised by their columns.

    pmc_vqa    CSV: Figure_path, Question, Answer, Choice A to Choice D, Answer_label; the options begin with their
               letters (`A:Focal uptake`), and early cards spell `Anwser` (card of xmcmic/PMC-VQA). Version 2 has no
               Answer_label. Copies on the hub have an `image` column and lower-case names (mdwiratathya/PMC-VQA_small)
    slake      JSON list: img_name, question, answer, q_lang, answer_type, modality, location, content_type, qid; the
               pictures are in `imgs/` (card of BoKelvin/SLAKE: train.json, validation.json, test.json)
    vqa_rad    JSON list: image_name, question, answer, answer_type, phrase_type, image_organ, qid; questions of the
               test have a phrase_type that begins with `test_` (Lau et al., Scientific Data 5:180251, 2018)
    question   image, question, answer, without a type: Parquet on the hub (cards of flaviagiammarino/vqa-rad and
               flaviagiammarino/path-vqa), and PathVQA's own pickled lists, whose `image` is a name without `.jpg`

Upper and lower case, spaces and underscores in names of columns are not distinguished.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_builders.prompt_sets.choices import LETTERS

SPLITS = ("rl", "validation", "test")
PICTURE_SUFFIX = ".jpg"
"""Suffix of pictures that a table names without one (PathVQA)."""

DROPPED = {
    "unreadable_row": "not a row with named columns",
    "no_question": "no question",
    "no_answer": "no answer",
    "other_language": "the question is in a language that was not asked for",
    "wrong_options": "fewer than two options, an empty option, or two equal ones",
    "answer_not_an_option": "the answer is none of the options",
    "conflicting_label": "the answer's text and its letter name different options",
    "open_answer": "a free answer, neither yes, no nor one of several options",
    "missing_image": "the picture's file does not exist",
    "remote_image": "the picture is an address on a network; nothing is fetched",
    "broken_image": "the picture cannot be decoded, or one side is 200 times the other",
    "duplicate": "an earlier row of the split has the same question, picture and answer",
    "conflicting_answer": "another row has the same question and picture, and another answer",
}
"""Reason -> its meaning."""
WAYS_OUT = {
    "other_language": "--languages names others",
    "open_answer": "--keep_open true keeps them, graded as text",
    "missing_image": "--image_root names the folder of the pictures",
    "remote_image": "download the pictures and put their paths into the rows",
}
"""Reason -> what helps, where something does."""


class UnusableRowError(Exception):
    """A row that cannot become a prompt; `reason` is one of `DROPPED`, `str()` describes the finding."""

    def __init__(self, reason: str, found: str = "") -> None:
        assert reason in DROPPED, reason
        super().__init__(found)
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where a table has what."""

    image: tuple[str, ...]
    """Columns of the picture; the first that a row has is used."""
    folders: tuple[str, ...]
    """Folders beside the table in which its pictures are published."""
    kept: tuple[str, ...] = ()
    """Columns that are kept in the prompt's `meta`."""
    has_choices: bool = False

    @property
    def needed(self) -> tuple[str, ...]:
        return ("question", "answer") if not self.has_choices else ("question", "choicea", "choiceb")


LAYOUTS = {
    "pmc_vqa": Layout(
        image=("figurepath", "image"), folders=("images", "figures", "images_2"), has_choices=True, kept=("figurepath",)
    ),
    "slake": Layout(image=("imgname",), folders=("imgs",), kept=("modality", "location", "contenttype", "qid")),
    "vqa_rad": Layout(
        image=("imagename",),
        folders=("VQA_RAD Image Folder", "images"),
        kept=("imageorgan", "questiontype", "phrasetype", "qid"),
    ),
    "question": Layout(image=("image",), folders=("images", "images/train", "images/val", "images/test")),
}
"""Name -> layout; the first that fits is taken."""
META_NAMES = {
    "figurepath": "figure", "contenttype": "content_type", "imageorgan": "organ", "questiontype": "question_type",
    "phrasetype": "phrase_type",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a row asks."""

    question: str
    answer: str
    choices: tuple[str, ...]
    answer_kind: str
    image: Any
    split: str | None
    """Where the row itself states one."""
    meta: dict[str, Any]


def plain_name(column: str) -> str:
    """Returns a column's name without case, spaces and underscores; `anwser` is read as `answer`."""
    return re.sub(r"[\s_]+", "", column).lower().replace("anwser", "answer")


def find_layout(columns: Iterable[str]) -> str | None:
    """Returns the name of the layout whose columns are there; None if there is none."""
    found = {plain_name(column) for column in columns}
    fits = (
        name
        for name, layout in LAYOUTS.items()
        if {*layout.needed} <= found and any(each in found for each in layout.image)
    )
    return next(fits, None)


def read_row(row: Mapping[str, Any] | None, layout: Layout, *, languages: Collection[str], keep_open: bool) -> Asked:
    """Returns what a row asks.

    Raises:
        UnusableRowError: if it cannot become a prompt.
    """
    if row is None:
        raise UnusableRowError("unreadable_row")
    values = {plain_name(str(name)): value for name, value in row.items() if name is not None}
    question = _text(values.get("question"))
    if not question:
        raise UnusableRowError("no_question")
    language = _text(values.get("qlang"))
    if language and language not in languages:
        raise UnusableRowError("other_language", language)
    choices = _choices(values) if layout.has_choices else ()
    answer = _right_option(values, choices) if choices else _text(values.get("answer"))
    if not answer:
        raise UnusableRowError("no_answer")
    kind = "choice" if choices else "yes_no" if answer.lower().rstrip(".") in ("yes", "no") else "text"
    if kind == "text" and not keep_open:
        raise UnusableRowError("open_answer", answer[:80])
    image = next((values[name] for name in layout.image if values.get(name)), None)
    if image is None:
        raise UnusableRowError("missing_image", f"no value in the column {' or '.join(layout.image)}")
    phrase = _text(values.get("phrasetype"))
    return Asked(
        question=question,
        answer=answer.lower().rstrip(".") if kind == "yes_no" else answer,
        choices=choices,
        answer_kind=kind,
        image=image,
        split=("test" if phrase.startswith("test_") else "rl") if phrase else None,
        meta={META_NAMES.get(name, name): values[name] for name in layout.kept if values.get(name) not in (None, "")},
    )


def _text(value: Any) -> str:
    return " ".join(str(value).split()) if isinstance(value, str | int | float) and not isinstance(value, bool) else ""


def _choices(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the texts of the options, without the letters with which they begin."""
    found = []
    for letter in LETTERS:
        if f"choice{letter.lower()}" not in values:
            break
        text = _text(values[f"choice{letter.lower()}"])
        found.append(re.sub(rf"^\(?{letter}\s*[:.)]\s*", "", text))
    while found and not found[-1]:  # questions with fewer options than columns
        found.pop()
    if len(found) < 2 or not all(found) or len({text.lower() for text in found}) < len(found):
        raise UnusableRowError("wrong_options", str(found)[:200])
    return tuple(found)


def _right_option(values: Mapping[str, Any], choices: tuple[str, ...]) -> str:
    """Returns the option that letter and text of the answer name."""
    letters = LETTERS[: len(choices)]
    answer, label = _text(values.get("answer")), _text(values.get("answerlabel"))
    if not label and not answer:
        raise UnusableRowError("no_answer")
    by_text = [text for text in choices if text.lower() == _without_letter(answer, letters).lower()]
    if not label and not by_text and answer.upper() in letters:
        label = answer
    if label:
        if len(label) != 1 or label.upper() not in letters:
            raise UnusableRowError("answer_not_an_option", f"letter {label!r} of {len(choices)} options")
        right = choices[letters.index(label.upper())]
        if by_text and by_text[0] != right:
            raise UnusableRowError("conflicting_label", f"letter {label}, text {answer[:80]!r}")
        return right
    if not by_text:
        raise UnusableRowError("answer_not_an_option", answer[:80])
    return by_text[0]


def _without_letter(answer: str, letters: str) -> str:
    return re.sub(rf"^\(?[{letters}]\s*[:.)]\s*(?=\S)", "", answer)


def split_of(path: str) -> str | None:
    """Returns the split that a file's name stands for: `train` is `rl`; None if it names none."""
    words = re.split(r"[^a-z]+", Path(path).name.lower())
    named = {"train": "rl", "training": "rl", "val": "validation", "valid": "validation", "validate": "validation",
             "validation": "validation", "test": "test"}  # fmt: skip
    return next((named[word] for word in words if word in named), None)
