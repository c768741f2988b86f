"""The record of each step: one JSON file, rewritten atomically with every figure."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tracking.product import write_text

RUNNING, DONE, SKIPPED, FAILED, STOPPED = "running", "done", "skipped", "failed", "stopped"


def record_path(directory: Path, step: str) -> Path:
    """Returns the file of a step."""
    return directory / f"gpu_{step}.json"


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(record, indent=1) + "\n")


def read_record(path: Path) -> dict[str, Any] | None:
    """Returns the content of a step's file; None if there is none.

    Raises:
        ValueError: if the file is something else.
    """
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not readable as JSON ({error}); remove it and run again") from error
    if not isinstance(record, dict) or "status" not in record:
        raise ValueError(f"{path} was not written by this command; choose another folder")
    return record


class Figures:
    """A step's measurements, written to its file immediately."""

    def __init__(self, path: Path) -> None:
        record = read_record(path)
        assert record is not None, path
        self._path, self._record = path, record

    def note(self, **figures: Any) -> None:
        """Adds or replaces figures."""
        self._record.setdefault("figures", {}).update(figures)
        write_record(self._path, self._record)

    def add(self, name: str, row: Mapping[str, Any]) -> None:
        """Appends a row to a list of figures."""
        rows = self._record.setdefault("figures", {}).get(name, [])
        self.note(**{name: [*rows, dict(row)]})
