"""Can a row in verl's schema become a prompt? Converts one row to one record, and stores its images.

A prompt is one question preceded by its images, with one answer. Additional content of upstream rows is removed and
noted (`NOTED`); a row with less or other content is dropped with a reason (`DROPPED`). Messages contain no local paths,
so equal rows give equal records.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_builders.prompt_sets.images import PixelLimits, UnusableImageError, is_blank, open_image, store_image
from data_builders.rl.kinds import ANSWER_KINDS, stated_kind
from data_builders.sources.rows import Row
from tracking.records import Record

PLACEHOLDER = "<image>"
MAX_EXTRA_CHARS = 100
"""Longer texts in `extra_info` (copies of question and answer) are not kept."""

DROPPED = {
    "unreadable_row": "no JSON object, or no text where one belongs",
    "no_question": "no text in the user's message",
    "several_turns": "more than one user's message, or other turns than system and user",
    "control_token": "a token of the chat template, or a video, in the question",
    "image_count": "not as many `<image>` as images",
    "missing_image": "no such file",
    "remote_image": "an address on a network; nothing is fetched",
    "broken_image": "could not be decoded, or has a side 200 times the other",
    "no_answer": "no ground truth",
    "several_answers": "the ground truth is no single text or number",
    "unknown_kind": "the row's answer_kind is no kind of the grader",
    "duplicate": "question and images stand in an earlier row, with the same answer",
    "conflicting_answer": "question and images stand in another row, with another answer",
}
NOTED = {
    "system_message": "taken out; see system_prompts",
    "image_moved": "an image stood within or after the text, and stands before it now",
    "no_placeholder": "images without `<image>`, kept because allow_missing_placeholders is set",
    "blank_images": "taken out, being of one colour: upstream's stand-in for no image; see keep_blank_images",
}

_CONTROL = re.compile(r"<\|[a-z_]{4,}\|>|<video>")


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


def read_prompt(prompt: Any) -> Asked:
    """Parses an upstream prompt (a text, or messages).

    Raises:
        DefectError: if it is not a single question.
    """
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if not isinstance(messages, list) or not all(isinstance(message, Mapping) for message in messages):
        raise DefectError("unreadable_row", f"prompt is {type(prompt).__name__}")
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
    return Asked(question, written.count(PLACEHOLDER), "\n".join(texts["system"]).strip(), moved)


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
        if kind == "image":
            parts.append(PLACEHOLDER)
        elif kind == "text" and isinstance(part.get("text"), str):
            parts.append(part["text"])
        else:
            raise DefectError("control_token" if kind == "video" else "unreadable_row", f"a part of type {kind!r}")
    return "".join(parts)


def _without_placeholders(text: str) -> str:
    """Removes the placeholders, leaving one space or line break between words."""
    return re.sub(rf"\s*{PLACEHOLDER}\s*", lambda gap: "\n" if "\n" in gap.group() else " ", text).strip()


def read_answer(row: Mapping[str, Any]) -> str:
    """Returns the ground truth as a text.

    Raises:
        DefectError: if there is not exactly one.
    """
    reward_model = row.get("reward_model")
    truth = reward_model.get("ground_truth") if isinstance(reward_model, Mapping) else None
    if isinstance(truth, list) and len(truth) == 1:
        truth = truth[0]
    if truth is None or (isinstance(truth, str) and not truth.strip()) or truth == []:
        raise DefectError("no_answer")
    if isinstance(truth, str):
        return truth.strip()
    if isinstance(truth, int) or (isinstance(truth, float) and math.isfinite(truth)):
        return str(truth)
    raise DefectError("several_answers", type(truth).__name__)


@dataclass(frozen=True, kw_only=True)
class RowRules(PixelLimits):
    """How rows are read."""

    allow_missing_placeholders: bool = field(
        default=False, metadata={"help": "keep rows that have images although their text contains no <image>"}
    )
    keep_blank_images: bool = field(
        default=False, metadata={"help": "keep images of one colour, which upstream uses as a placeholder for no image"}
    )


def examine(key: str, row: Row, root: Path | None, images_dir: Path, rules: RowRules) -> Record:
    """Turns one row into a record, and stores its images; defects are also records.

    Args:
        key: name of the row.
        row: as read by `data_builders.sources.rows`.
        root: base of relative image paths.
        images_dir: folder for stored images.
    """
    record: Record = {"key": key, "data_source": _data_source(row)}
    try:
        if row is None:
            raise DefectError("unreadable_row")
        asked = read_prompt(row.get("prompt"))
        answer = read_answer(row)
        kind = stated_kind(row)
        if kind is not None and kind not in ANSWER_KINDS:
            raise DefectError("unknown_kind", f"{kind!r}; expected one of {', '.join(ANSWER_KINDS)}")
        entries = row.get("images")
        entries = [] if entries is None else entries if isinstance(entries, list) else [entries]
        if len(entries) != asked.num_placeholders and (asked.num_placeholders or not rules.allow_missing_placeholders):
            raise DefectError("image_count", f"{asked.num_placeholders} {PLACEHOLDER}, {len(entries)} images")
        images, all_blank = _store_images(entries, root, images_dir, rules)
    except DefectError as defect:
        return {**record, "dropped": defect.reason, "found": str(defect)}
    notes = {
        "system_message": bool(asked.system),
        "image_moved": asked.moved and bool(images),
        "no_placeholder": bool(entries) and not asked.num_placeholders,
        "blank_images": all_blank,
    }
    return {
        **record,
        "question": asked.question,
        "answer": answer,
        **({"answer_kind": kind} if kind is not None else {}),
        "images": images,
        "system": asked.system,
        "extra": _extra(row.get("extra_info")),
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


def _data_source(row: Row) -> str:
    found = row.get("data_source") if row else None
    return found if isinstance(found, str) and found.strip() else ""


def _extra(extra: Any) -> dict[str, Any]:
    """Returns the short values of `extra_info`, such as the row's index upstream."""
    if not isinstance(extra, Mapping):
        return {}
    return {
        str(name): value
        for name, value in extra.items()
        if (isinstance(value, bool | int) or (isinstance(value, str) and len(value) <= MAX_EXTRA_CHARS))
        and name not in ("question", "answer")
    }
