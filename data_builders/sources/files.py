"""What is in a file of rows, and has it changed? Fingerprints, and the columns of Parquet files."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path


def file_sha256(path: Path) -> str:
    """Returns the sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_sha256(paths: Iterable[Path]) -> str:
    """Returns one sha256 over those of several files, in their order."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(bytes.fromhex(file_sha256(path)))
    return digest.hexdigest()


def parquet_columns(path: Path) -> list[str]:
    """Returns the names of a Parquet file's columns.

    Raises:
        ValueError: where it is not readable as Parquet.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return list(pq.read_schema(path).names)
    except pa.ArrowInvalid as error:
        raise ValueError(f"source {path} is not readable as Parquet ({str(error).splitlines()[0]})") from error


def check_columns(place: Path | str, needed: Iterable[str], columns: Sequence[str]) -> None:
    """Refuses a source that lacks a column."""
    for column in needed:
        if column not in columns:
            raise ValueError(f"source {place} has no column {column!r}; it has {', '.join(columns)}")
