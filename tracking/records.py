"""Which units of work are done? One JSON object per line, appended and flushed after each unit.

A killed command leaves at most one incomplete last line, which is dropped; its unit is redone.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from tracking.product import write_text

Record = dict[str, Any]


class RecordLog:
    """An append-only file of records with unique `key`s; when reopened, it knows which units are done."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._records: dict[str, Record] = {}
        valid_bytes = 0
        if path.exists():
            with path.open("rb") as file:
                for number, line in enumerate(file, start=1):
                    if not line.endswith(b"\n"):
                        break
                    record = _keyed(path, number, line)
                    key = record["key"]
                    if key in self._records:
                        raise ValueError(f"{path}:{number}: key {key!r} appears twice; start over with --overwrite")
                    self._records[key] = record
                    valid_bytes += len(line)
            os.truncate(path, valid_bytes)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8")

    def __enter__(self) -> "RecordLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def __contains__(self, key: str) -> bool:
        return key in self._records

    def __iter__(self) -> Iterator[Record]:
        return iter(self._records.values())

    def __len__(self) -> int:
        return len(self._records)

    def append(self, *records: Record) -> None:
        """Writes records together; each key must be new."""
        for record in records:
            assert record["key"] not in self._records, f"record {record['key']!r} was written already"
            self._records[record["key"]] = record
        self._file.write(encode_records(records))
        self._file.flush()

    def keep(self, wanted: Callable[[Record], bool]) -> None:
        """Drops records whose units will be redone."""
        kept = {key: record for key, record in self._records.items() if wanted(record)}
        if len(kept) == len(self._records):
            return
        self._file.close()
        write_text(self.path, encode_records(kept.values()))
        self._records = kept
        self._file = self.path.open("a", encoding="utf-8")


def encode_records(records: Iterable[Record]) -> str:
    """Formats records as in their file, one per line."""
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def read_finished(path: Path) -> list[Record]:
    """Reads the complete lines left by a killed command; empty if there is no file."""
    if not path.is_file():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]  # the rest after the last line break is incomplete
    return [_keyed(path, number, line) for number, line in enumerate(lines, start=1)]


def read_records(path: Path) -> list[Record]:
    """Reads a finished record file, of a command or user-made: its lines may lack keys.

    Raises:
        ValueError: if the file is missing, or a line is incomplete or not a record.
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist; expected the records of a finished command")
    with path.open("rb") as lines:  # as bytes: a reply may contain other line breaks, such as U+2028
        records = []
        for number, line in enumerate(lines, start=1):
            try:
                records.append(_parse(path, number, line))
            except ValueError as error:
                if line.endswith(b"\n"):
                    raise
                raise ValueError(f"{path}:{number}: torn record; run the command that wrote it again") from error
    return records


def _keyed(path: Path, number: int, line: bytes) -> Record:
    """Parses a line as a record with a key."""
    record = _parse(path, number, line)
    if "key" not in record:
        raise _no_record(path, number, "'key' is missing")
    return record


def _parse(path: Path, number: int, line: bytes) -> Record:
    try:
        record: Record = json.loads(line)
    except ValueError as error:
        raise _no_record(path, number, error) from error
    if not isinstance(record, dict):
        raise _no_record(path, number, f"found {type(record).__name__}")
    return record


def _no_record(path: Path, number: int, why: object) -> ValueError:
    return ValueError(f"{path}:{number}: not a record ({why}); remove the line, or start over with --overwrite")
