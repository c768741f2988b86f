"""Reads texts from text files, JSON Lines, Parquet and hub data sets, one at a time."""

import gzip
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from data_builders.sources.files import check_columns, file_sha256, parquet_columns
from data_builders.sources.hub import hub_place, stream_rows
from models.hub import Repository, parse_repository

JSON_SUFFIXES = (".json", ".jsonl")
"""arXiv's metadata is a `.json` file with one object per line."""
SUFFIXES = (".txt", *JSON_SUFFIXES, ".parquet")
BATCH_ROWS = 256


@dataclass(frozen=True, kw_only=True)
class TextSource:
    """Named texts."""

    label: str
    fingerprint: str
    """Version of the texts: a file's sha256, or the commit of a hub data set."""
    texts: Callable[[], Iterator[str | None]]
    """Yields the texts in order; None for a row that cannot be read or has none."""


def open_texts(names: Sequence[str], *, columns: Sequence[str], config: str | None, split: str) -> list[TextSource]:
    """Opens files and hub data sets, sorted by label.

    Args:
        names: files, or hub ids such as `owner/name` or `owner/name@revision`.
        columns: columns with the text of a row; several are joined.
        config, split: part of a hub data set.
    """
    sources = []
    for name in names:
        path = Path(name)
        repository = parse_repository(name, kind="dataset")
        if path.is_file():
            sources.append(_file_texts(path, columns))
        elif repository is not None and not name.endswith((*SUFFIXES, ".gz")):
            sources.append(_hub_texts(repository, columns, config, split))
        else:
            raise ValueError(f"source {name} does not exist; expected a file, or a hub id such as owner/name")
    labels = [source.label for source in sources]
    for label in labels:
        if labels.count(label) > 1:
            raise ValueError(f"two sources are called {label}; name each once, and rename files of equal name")
    return sorted(sources, key=lambda source: source.label)


def _file_texts(path: Path, columns: Sequence[str]) -> TextSource:
    suffix = Path(path.name.removesuffix(".gz")).suffix
    if suffix not in SUFFIXES or (suffix == ".parquet" and path.suffix == ".gz"):
        raise ValueError(f"source {path} is none of {', '.join(SUFFIXES)}, nor one of the first three with .gz")
    read = _lines if suffix == ".txt" else _parquet_texts if suffix == ".parquet" else _json_texts
    return TextSource(label=path.name, fingerprint=file_sha256(path), texts=lambda: read(path, columns))


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _lines(path: Path, columns: Sequence[str]) -> Iterator[str | None]:
    with _open(path) as file:
        for line in file:
            if line.strip():
                yield line.decode(errors="replace")


def _json_texts(path: Path, columns: Sequence[str]) -> Iterator[str | None]:
    found: set[str] = set()
    any_text = False
    with _open(path) as file:
        for line in file:
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            text = _text_of(row, columns) if isinstance(row, dict) else None
            any_text = any_text or text is not None
            if not any_text and isinstance(row, dict):
                found.update(row)
            yield text
    if not any_text:
        named = f"its rows have {', '.join(sorted(found))}" if found else "it does not have one JSON object per line"
        raise ValueError(f"source {path} has no text in the column {' or '.join(columns)}; {named}")


def _parquet_texts(path: Path, columns: Sequence[str]) -> Iterator[str | None]:
    import pyarrow.parquet as pq

    check_columns(path, columns, parquet_columns(path))
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(BATCH_ROWS, columns=list(columns), use_threads=False):
            yield from (_text_of(row, columns) for row in batch.to_pylist())


def _hub_texts(repository: Repository, columns: Sequence[str], config: str | None, split: str) -> TextSource:
    place = hub_place(repository)
    dataset = stream_rows(
        place.path,
        config,
        split=split,
        revision=place.revision,
        named=f"source {repository}",
        correct="--hub_config or --hub_split, or download it and name its files",
    )
    if dataset.column_names is not None:
        check_columns(repository.repo, columns, dataset.column_names)
        dataset = dataset.select_columns(list(columns))
    label = "/".join([repository.repo, *([config] if config else []), split])
    return TextSource(
        label=label, fingerprint=place.commit, texts=lambda: (_text_of(row, columns) for row in iter(dataset))
    )


def _text_of(row: Mapping[str, Any], columns: Sequence[str]) -> str | None:
    texts = [row[column] for column in columns if isinstance(row.get(column), str)]
    return "\n".join(texts) if any(text.strip() for text in texts) else None
