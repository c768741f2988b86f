"""Reads a benchmark's rows from its files on the hub, at a fixed commit, or from local copies.

Formats: Parquet, JSON Lines, and JSON files with a list of rows or a mapping from ids to rows. Only the files needed
are fetched from the hub, into the hub's cache, so later reads need no network.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from eval.tasks.benchmark import Benchmark, Row
from models.hub import Repository, snapshot

SUFFIXES = (".parquet", ".jsonl", ".json")
BATCH_ROWS = 16
"""Rows of a Parquet file read at a time: rows contain their images."""


def hub_files(benchmark: Benchmark, revision: str) -> list[Path]:
    """Returns the benchmark's files in the hub's cache, fetching missing ones.

    Raises:
        ValueError: in one line, if neither the cache nor the hub has them.
    """
    repository = Repository(repo=benchmark.repo, kind="dataset", revision=revision)
    folder = snapshot(repository, patterns=[benchmark.files[0]])
    files = sorted(folder.glob(benchmark.files[0]))
    if not files:
        raise ValueError(f"dataset {repository} has no {benchmark.files[0]}; name another revision, or a local copy")
    return files


def local_files(benchmark: Benchmark, place: Path) -> list[Path]:
    """Returns the benchmark's files in a folder, or the given file.

    Raises:
        ValueError: if the path does not exist or contains none.
    """
    if place.is_dir():
        for pattern in benchmark.files:
            files = sorted(place.glob(pattern))
            if files:
                return files
        raise ValueError(
            f"{place} contains none of {', '.join(benchmark.files)}; name the file, or download the data set "
            f"{benchmark.repo} of the hub into it"
        )
    if not place.is_file():
        raise ValueError(f"{place} does not exist; expected a file or folder with the problems of {benchmark.repo}")
    if place.suffix not in SUFFIXES:
        raise ValueError(f"{place} is none of {', '.join(SUFFIXES)}; expected the problems of {benchmark.repo}")
    return [place]


def read_rows(path: Path) -> Iterator[Row]:
    """Yields the rows of one file, in its order.

    Raises:
        ValueError: if the file is damaged or has other content; the message names file and line.
    """
    if path.suffix == ".parquet":
        yield from _parquet_rows(path)
    elif path.suffix == ".jsonl":
        with path.open(encoding="utf-8", newline="\n") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _mapping(_parse(line, f"{path}:{number}"), f"{path}:{number}")
    else:
        document = _parse(path.read_text(encoding="utf-8"), str(path))
        if not isinstance(document, dict | list):
            raise ValueError(
                f"{path}: contains a {type(document).__name__}; expected a list of rows, or a mapping from ids to rows"
            )
        for number, row in enumerate(document.values() if isinstance(document, dict) else document, start=1):
            yield _mapping(row, f"{path}: row {number}")


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            for batch in file.iter_batches(BATCH_ROWS, use_threads=False):
                yield from batch.to_pylist()
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is not readable as Parquet ({str(error).splitlines()[0]})") from error


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON ({error.msg})") from error


def _mapping(row: Any, where: str) -> Row:
    if not isinstance(row, dict):
        raise ValueError(f"{where}: a {type(row).__name__}; expected a row with named columns")
    return row
