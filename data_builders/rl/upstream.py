"""Can an upstream row become a prompt? Converts one row to one record, and stores its images.

A prompt is one question preceded by its images, with one answer. Additional content of upstream rows is removed and
noted (`NOTED`); a row with less or other content is dropped with a reason (`DROPPED`). Messages contain no local paths,
so equal rows give equal records.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from data_builders.prompt_sets.images import (
    PixelLimits,
    UnusableImageError,
    has_reference,
    is_blank,
    open_image,
    store_image,
)
from data_builders.rl.kinds import ANSWER_KINDS, stated_kind
from data_builders.sources.columns import (
    FIELDS,
    SCHEMAS,
    WITHOUT_PLACEHOLDERS,
    Columns,
    from_json,
    read_columns,
    value_of,
)
from data_builders.sources.rows import Row
from tracking.records import Record

PLACEHOLDER = "<image>"
IMAGE_PARTS = ("image", "image_url")
"""Types of a message's parts that stand for an image."""
MAX_EXTRA_CHARS = 100
"""Longer texts in `extra_info` (copies of question and answer) are not kept."""

DROPPED = {
    "unreadable_row": "not a JSON object, or the prompt is neither a text nor messages",
    "no_question": "no text in the user's message, or no such column",
    "several_turns": "more than one user's message, or other turns than system and user",
    "control_token": "a token of the chat template, or a video, in the question",
    "image_count": "the text has not as many `<image>` as the row has images",
    "missing_image": "the image's file does not exist",
    "remote_image": "the image is an address on a network; nothing is fetched",
    "broken_image": "the image cannot be decoded, or one side is 200 times the other",
    "no_answer": "no ground truth, or no such column",
    "several_answers": "the ground truth is not a single text or number",
    "unknown_kind": "the row's answer_kind is not a kind that the grader knows",
    "duplicate": "an earlier row has the same question, images and answer",
    "conflicting_answer": "another row has the same question and images, and another answer",
}
"""Reason -> its meaning."""
WAYS_OUT = {
    "no_question": "--columns prompt=NAME names the column",
    "image_count": "--allow_missing_placeholders true keeps rows whose text has no `<image>`; --columns images=NAME "
    "names the column of the images",
    "missing_image": "--image_root names the folder that image paths are relative to",
    "remote_image": "download the images and put their paths into the rows",
    "no_answer": "--columns answer=NAME names the column",
    "several_answers": "--columns answer=NAME names another column",
}
"""Reason -> what helps, where something does."""
NOTED = {
    "system_message": "taken out; see system_prompts",
    "image_moved": "an image stood within or after the text, and stands before it now",
    "no_placeholder": "images without `<image>`, kept because of allow_missing_placeholders or the schema",
    "blank_images": "taken out, being of one colour: upstream's stand-in for no image; see keep_blank_images",
    "boxed_answer": "the answer was written in \\boxed{}, which was taken out",
}

_CONTROL = re.compile(r"<\|[a-z_]{4,}\|>|<video>")
_MESSAGES_TEXT = re.compile(r"\s*\[?\s*\{\s*([\"'])(role|content|type|from|value)\1\s*:")
"""The beginning of messages or parts that are written as text, by JSON or by Python."""
_BOXED = re.compile(r"\\boxed\s*\{(.*)\}", re.DOTALL)


class DefectError(Exception):
    """A row that cannot become a prompt; `reason` is one of `DROPPED`, `str()` describes the finding."""

    def __init__(self, reason: str, found: str = "") -> None:
        assert reason in DROPPED, reason
        super().__init__(found)
        self.reason = reason


@dataclass(frozen=True)
class Asked:
    """The text of an upstream prompt."""

    question: str
    num_placeholders: int
    system: str
    moved: bool
    """True if an image was not before the text."""
    images: tuple[Any, ...]
    """The images that the messages' parts hold themselves."""


def read_prompt(prompt: Any) -> Asked:
    """Parses an upstream prompt (a text, or messages).

    Raises:
        DefectError: if it is not a single question.
    """
    messages = _as_messages(prompt)
    for message in messages:
        if "role" not in message:
            raise DefectError("unreadable_row", f"a message without role, with {', '.join(map(str, message))[:80]}")
    roles = [str(message.get("role")) for message in messages]
    if roles.count("user") == 0:
        raise DefectError("no_question", f"roles {roles}")
    if roles.count("user") > 1 or set(roles) - {"user", "system"}:
        raise DefectError("several_turns", f"roles {roles}")
    texts = {role: [_text(message) for message in messages if message["role"] == role] for role in ("system", "user")}
    written = texts["user"][0]
    found = _CONTROL.search(written)
    if found:
        raise DefectError("control_token", found.group())
    question = _without_placeholders(written)
    if not question:
        raise DefectError("no_question", repr(written[:40]))
    moved = PLACEHOLDER in re.sub(rf"^(?:\s*{PLACEHOLDER})+", "", written)
    images = tuple(_own_images(next(message for message in messages if message["role"] == "user")))
    return Asked(question, written.count(PLACEHOLDER), "\n".join(texts["system"]).strip(), moved, images)


def _as_messages(prompt: Any) -> list[Mapping[str, Any]]:
    """Returns a prompt's messages; those written as JSON text are parsed, and never taken as the question."""
    if prompt is None:
        raise DefectError("no_question", "the row has no prompt")
    if isinstance(prompt, str) and not _MESSAGES_TEXT.match(prompt):
        return [{"role": "user", "content": prompt}]
    found: Any = prompt
    if isinstance(prompt, str):
        try:
            found = json.loads(prompt)
        except (ValueError, RecursionError):
            raise DefectError("unreadable_row", f"messages as text that is not JSON: {prompt.strip()[:40]!r}") from None
    found = [found] if isinstance(found, Mapping) else found
    if not isinstance(found, list) or not all(isinstance(message, Mapping) for message in found):
        raise DefectError("unreadable_row", f"prompt is {type(prompt).__name__}")
    if found and all("type" in part and "role" not in part for part in found):
        return [{"role": "user", "content": found}]
    return found


def _own_images(message: Mapping[str, Any]) -> list[Any]:
    parts = message["content"] if isinstance(message["content"], list) else []
    return [part for part in parts if part["type"] in IMAGE_PARTS and has_reference(part)]


def _text(message: Mapping[str, Any]) -> str:
    """Returns a message as one text, with a placeholder for each image part."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise DefectError("unreadable_row", f"content is {type(content).__name__}")
    parts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind in IMAGE_PARTS:
            parts.append(PLACEHOLDER)
        elif kind == "text" and isinstance(part.get("text"), str):
            parts.append(part["text"])
        else:
            raise DefectError("control_token" if kind == "video" else "unreadable_row", f"a part of type {kind!r}")
    return "".join(parts)


def _without_placeholders(text: str) -> str:
    """Removes the placeholders, leaving one space or line break between words."""
    return re.sub(rf"\s*{PLACEHOLDER}\s*", lambda gap: "\n" if "\n" in gap.group() else " ", text).strip()


def read_answer(truth: Any) -> str:
    """Returns the ground truth as a text, without a box around all of it.

    Raises:
        DefectError: if there is not exactly one.
    """
    if isinstance(truth, list) and len(truth) == 1:
        truth = truth[0]
    if truth is None or (isinstance(truth, str) and not truth.strip()) or truth == []:
        raise DefectError("no_answer")
    if isinstance(truth, str):
        return _without_box(truth.strip())
    if isinstance(truth, int) or (isinstance(truth, float) and math.isfinite(truth)):
        return str(truth)
    raise DefectError("several_answers", type(truth).__name__)


def _without_box(answer: str) -> str:
    found = _BOXED.fullmatch(answer)
    if found is None or not found[1].strip():
        return answer
    depth = 0
    for sign in found[1]:
        depth += (sign == "{") - (sign == "}")
        if depth < 0:  # the first box ends before the last brace
            return answer
    return found[1].strip()


@dataclass(frozen=True, kw_only=True)
class RowRules(PixelLimits):
    """How rows are read."""

    schema: str = field(
        default="verl",
        metadata={"help": f"whose columns the rows have: {', '.join(SCHEMAS)}"},
    )
    columns: list[str] = field(
        default_factory=list,
        metadata={
            "help": f"single columns as FIELD=NAME, with the fields {', '.join(FIELDS)}; a dot in a name means a field "
            "inside a column"
        },
    )
    allow_missing_placeholders: bool = field(
        default=False, metadata={"help": "keep rows that have images although their text contains no <image>"}
    )
    keep_blank_images: bool = field(
        default=False, metadata={"help": "keep images of one colour, which upstream uses as a placeholder for no image"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        read_columns(self.schema, self.columns)

    @cached_property
    def names(self) -> Columns:
        """The names of the columns."""
        return read_columns(self.schema, self.columns)

    @property
    def needs_placeholders(self) -> bool:
        return not self.allow_missing_placeholders and self.schema not in WITHOUT_PLACEHOLDERS


def examine(key: str, row: Row, root: Path | None, images_dir: Path, rules: RowRules) -> Record:
    """Turns one row into a record, and stores its images; defects are also records.

    Args:
        key: name of the row.
        row: as read by `data_builders.sources.rows`.
        root: base of relative image paths.
        images_dir: folder for stored images.
    """
    names = rules.names
    record: Record = {"key": key, "data_source": _data_source(row, names)}
    try:
        if row is None:
            raise DefectError("unreadable_row")
        prompt = value_of(row, names.prompt)
        if prompt is None:
            raise DefectError("no_question", f"no {names.prompt!r}; the row has {', '.join(map(str, row))[:200]}")
        asked = read_prompt(prompt)
        truth = value_of(row, names.answer)
        answer = read_answer(truth)
        kind = stated_kind(row)
        if kind is not None and kind not in ANSWER_KINDS:
            raise DefectError("unknown_kind", f"{kind!r}; expected one of {', '.join(ANSWER_KINDS)}")
        entries = _as_list(value_of(row, names.images)) or list(asked.images)
        if len(entries) != asked.num_placeholders and (asked.num_placeholders or rules.needs_placeholders):
            raise DefectError("image_count", f"{asked.num_placeholders} {PLACEHOLDER}, {len(entries)} images")
        images, all_blank = _store_images(entries, root, images_dir, rules)
    except DefectError as defect:
        return {**record, "dropped": defect.reason, "found": str(defect)}
    notes = {
        "system_message": bool(asked.system),
        "image_moved": asked.moved and bool(images),
        "no_placeholder": bool(entries) and not asked.num_placeholders,
        "blank_images": all_blank,
        "boxed_answer": isinstance(truth, str) and answer != truth.strip(),
    }
    return {
        **record,
        "question": asked.question,
        "answer": answer,
        **({"answer_kind": kind} if kind is not None else {}),
        "images": images,
        "system": asked.system,
        "extra": _extra(value_of(row, names.extra), names.extra),
        "notes": [note for note, applies in notes.items() if applies],
    }


def _store_images(
    entries: Sequence[Any], root: Path | None, images_dir: Path, rules: RowRules
) -> tuple[list[str], bool]:
    """Returns the names of the stored images, and whether all of them were blank and left out."""
    names, num_blank = [], 0
    for number, entry in enumerate(entries, start=1):
        try:
            image = open_image(entry, root, rules)
        except UnusableImageError as error:
            raise DefectError(error.reason, f"image {number}: {error}") from error
        num_blank += is_blank(image)
        names.append(store_image(image, images_dir))
    all_blank = bool(names) and num_blank == len(names) and not rules.keep_blank_images
    return ([] if all_blank else names), all_blank


def _as_list(entries: Any) -> list[Any]:
    found = from_json(entries)
    return [] if found is None else found if isinstance(found, list) else [found]


def _data_source(row: Row, names: Columns) -> str:
    found = value_of(row, names.data_source) if row else None
    return found if isinstance(found, str) and found.strip() else ""


def _extra(extra: Any, name: str) -> dict[str, Any]:
    """Returns the short values of `extra_info`, such as the row's index upstream."""
    found = from_json(extra)
    extra = found if isinstance(found, Mapping) else {name: found}
    return {
        str(name): value
        for name, value in extra.items()
        if (isinstance(value, bool | int) or (isinstance(value, str) and len(value) <= MAX_EXTRA_CHARS))
        and name not in ("question", "answer")
    }
