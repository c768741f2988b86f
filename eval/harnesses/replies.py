"""What does a harness keep of a reply? One form for all formats, and how lines and fields are read."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Fields = Mapping[str, Any]
NO_QUESTION = "(the file does not have the question)"


class NotThisFormatError(ValueError):
    """A file does not have the fields of the harness that it was read as."""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """What a harness says of one reply under one of its metrics."""

    score: float
    answer: str | None = None
    """The answer that it read in the reply, where its file says so."""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """One reply, with what its file says of the prompt and of the verdict."""

    task: str
    id: str
    sample: int = 0
    question: str
    golds: tuple[str, ...]
    """All answers that the harness accepts."""
    response: str
    kind: str | None = None
    """How the answer is graded; None until `kinds.settle` has found it."""
    choices: tuple[str, ...] = ()
    precision: int | None = None
    pictures: tuple[str, ...] = ()
    """What identifies its pictures: paths, addresses, data URIs or hashes."""
    cluster: str | None = None
    fields: Fields = field(default_factory=dict)
    """All fields of its row that may describe the prompt, for `--cluster-by` and `--group-by`."""
    measures: Mapping[str, Measure] = field(default_factory=dict)
    """Metric -> verdict."""
    num_tokens: int | None = None
    finish_reason: str | None = None
    no_reply: str = ""
    """Why there is no reply, if the harness failed to get one."""

    @property
    def gold(self) -> str:
        """The gold answer; there is one once `kinds.settle` has been called."""
        (gold,) = self.golds
        return gold


@dataclass(frozen=True, kw_only=True)
class Source:
    """What was read from the files of one evaluation."""

    harness: str
    version: str | None = None
    model: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    """How replies were generated; models that are compared must share these."""
    max_new_tokens: int | None = None
    replies: list[Reply]
    left_out: Counter[str] = field(default_factory=Counter)
    """Reason -> number of rows that hold no reply to grade."""


def read_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the place (`FILE:LINE`) and the object of each line of a JSONL file; blank lines are skipped.

    Raises:
        ValueError: naming the line that is not UTF-8, not JSON, cut off, or not an object.
    """
    with path.open("rb") as lines:  # as bytes: a reply may contain other line breaks, such as U+2028
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                row = json.loads(line)
            except ValueError as error:
                cut = "" if line.endswith(b"\n") else "; the file ends in the middle of it: copy it again"
                raise ValueError(f"{where}: not JSON ({_said(error)}){cut}") from error
            if not isinstance(row, dict):
                raise ValueError(f"{where}: a JSON {type(row).__name__}; expected one object per line")
            yield where, row


def read_json(path: Path) -> Any:
    """Reads a whole JSON file.

    Raises:
        ValueError: in one line, if it is not JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({_said(error)}); it may be cut off: copy it again") from error


def _said(error: ValueError) -> str:
    return f"{error.msg} at character {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else "not UTF-8"


def need(row: Fields, where: str, *names: str) -> None:
    """Refuses a row without these fields.

    Raises:
        NotThisFormatError: naming the missing field and those that are there.
    """
    missing = [name for name in names if name not in row]
    if missing:
        raise NotThisFormatError(f"{where}: no field {missing[0]!r}; found {', '.join(map(str, row)) or 'none'}")


def as_text(value: Any) -> str:
    """Returns a field's value as text: nothing for None, and no `.0` behind a whole number."""
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return value if isinstance(value, str) else str(value)


def as_score(value: Any) -> float | None:
    """Returns a truth value, or a number from 0 to 1, as a score; None for anything else."""
    if isinstance(value, bool | int | float) and 0 <= float(value) <= 1:
        return float(value)
    return None


def is_number(value: Any) -> bool:
    """True for a number, and for a text that is one."""
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def first_line(text: str, otherwise: str) -> str:
    """Returns the first line of what a package says, or something else if it says nothing."""
    return (text.strip().splitlines() or [otherwise])[0]


def longest_reply(generation: Fields) -> int | None:
    """Returns the limit of a reply's length in tokens, under any name that harnesses use; None if it is not there."""
    for name in ("max_new_tokens", "max_gen_toks", "max_tokens"):
        if isinstance(generation.get(name), int):
            return int(generation[name])
    return None


PICTURE_FIELDS = ("image", "images", "image_path", "image_paths", "img_path", "image_id", "picture", "pictures")


def pictures_in(fields: Fields) -> tuple[str, ...]:
    """Returns what identifies the pictures of a row: paths, addresses or hashes.

    What a harness writes for a picture that it cannot store, such as `<PIL.Image at 0x7f…>`, identifies nothing.
    """
    for name in PICTURE_FIELDS:
        found = [one for one in _flat(fields.get(name)) if one and not one.startswith("<")]
        if found:
            return tuple(found)
    return ()


def _flat(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, int) and not isinstance(value, bool):
        yield str(value)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _flat(one)
    elif isinstance(value, dict):
        yield from _flat(value.get("path") or value.get("url"))
