"""Reads upstream rows from Parquet, JSON Lines, folders of both, and hub data sets, a few rows at a time.

Rows have the columns of `columns.py`, by default those of verl: `prompt`, `images`, `reward_model.ground_truth`,
`extra_info`, `data_source`. Rows contain their images, so at most `BATCH_ROWS` rows are in memory, plus the current
page of the Parquet file (with most writers a row group, or 1,024 rows of it). Reading can start at any row.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from data_builders.sources.columns import Columns, check_columns_named
from data_builders.sources.files import file_sha256, parquet_columns
from data_builders.sources.hub import hub_place, stream_rows
from models.hub import Repository, parse_repository

VERL = Columns()
SUFFIXES = (".parquet", ".jsonl")
BATCH_ROWS = 16
NUM_PEEKED = 100
"""Rows of a JSON Lines file in which a column is looked for."""
BUFFER_BYTES = 2**20
"""Read-ahead of the Parquet reader; without a limit it keeps each page twice, compressed and decompressed."""

Row = dict[str, Any] | None
"""None for a row that cannot be read as a mapping."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Named rows, readable from any position."""

    label: str
    """Name of the source in ids and reports: the shortest unique suffix of its path."""
    fingerprint: str
    """Version of the rows: a file's sha256, or the commit of a hub data set."""
    rows: Callable[[int], Iterator[Row]]
    """Yields the rows, starting at the given number."""
    image_root: Path | None
    """Base of relative image paths."""


def open_sources(
    names: Sequence[str],
    *,
    config: str | None,
    split: str,
    revision: str | None,
    image_root: Path | None,
    columns: Columns = VERL,
) -> list[Source]:
    """Opens files, folders and hub data sets, sorted by label, so that the order of the names does not matter.

    Args:
        names: a `.parquet` or `.jsonl` file, a folder of such files, or a hub id such as `owner/name` or
            `owner/name@revision`.
        config, split, revision: part of a hub data set; a revision in the name takes precedence.
        image_root: base of image paths instead of each file's folder.
        columns: the names of the columns that are read.

    Raises:
        ValueError: if a name is none of these, a file is named twice, or needed columns are missing.
    """
    files: list[Path] = []
    hub: list[Repository] = []
    for name in names:
        path = Path(name)
        repository = None if path.suffix in SUFFIXES else parse_repository(name, kind="dataset")
        if path.is_dir():
            files.extend(_files_in(path))
        elif path.is_file():
            files.append(path)
        elif repository is not None:
            hub.append(replace(repository, revision=repository.revision or revision))
        else:
            raise ValueError(f"source {name} does not exist; expected a file, a folder, or a hub id such as owner/name")
    for path in files:
        if path.suffix not in SUFFIXES:
            raise ValueError(f"source {path} is not a {' or '.join(SUFFIXES)} file")
    resolved = [path.resolve() for path in files]
    for name, num in Counter([*map(str, resolved), *(each.repo for each in hub)]).items():
        if num > 1:
            raise ValueError(f"source {name} is named twice")
    sources = [
        _file_source(path, label, image_root, columns)
        for path, label in zip(files, _short_names(resolved), strict=True)
    ]
    sources.extend(_hub_source(repository, config, split, columns) for repository in hub)
    return sorted(sources, key=lambda source: source.label)


def _files_in(folder: Path) -> list[Path]:
    files = [path for path in sorted(folder.rglob("*")) if path.suffix in SUFFIXES and path.is_file()]
    files = [path for path in files if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    if not files:
        raise ValueError(f"source {folder} contains no {' or '.join(SUFFIXES)} file")
    return files


def _short_names(paths: Sequence[Path]) -> list[str]:
    """Returns the shortest suffixes that distinguish all paths."""
    num_parts = 1
    while True:
        names = ["/".join(path.parts[-num_parts:]) for path in paths]
        if len(set(names)) == len(paths):
            return names
        num_parts += 1


def _file_source(path: Path, label: str, image_root: Path | None, columns: Columns) -> Source:
    is_parquet = path.suffix == ".parquet"
    found = parquet_columns(path) if is_parquet else _json_columns(path, columns)
    if found is not None:
        check_columns_named(path, columns, found)
    read = partial(_parquet_rows, path, columns) if is_parquet else partial(_json_rows, path)
    return Source(
        label=label,
        fingerprint=file_sha256(path),
        rows=read,
        image_root=image_root or path.parent,
    )


def _parquet_rows(path: Path, named: Columns, start: int) -> Iterator[Row]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path, buffer_size=BUFFER_BYTES, pre_buffer=False) as file:
        columns = [column for column in named.top_level if column in file.schema_arrow.names]
        position = 0
        for group in range(file.num_row_groups):
            num_rows = file.metadata.row_group(group).num_rows
            if position + num_rows <= start:
                position += num_rows
                continue
            batches = file.iter_batches(BATCH_ROWS, row_groups=[group], columns=columns, use_threads=False)
            for batch in batches:
                yield from batch.slice(max(start - position, 0)).to_pylist()
                position += batch.num_rows


def _json_columns(path: Path, columns: Columns) -> list[str] | None:
    """Returns the names in the first rows, up to the first row with all needed ones; None if no row can be read."""
    found: dict[str, None] = {}
    for row in islice(_json_rows(path, 0), NUM_PEEKED):
        found.update(dict.fromkeys(row or ()))
        if not columns.missing(found):
            break
    return list(found) or None


def _json_rows(path: Path, start: int) -> Iterator[Row]:
    with path.open("rb") as file:
        for line in islice((line for line in file if line.strip()), start, None):
            try:
                row = json.loads(line)
                if b"\\u" in line:
                    json.dumps(row, ensure_ascii=False).encode()  # a lone surrogate could not be written
            except (ValueError, RecursionError):
                row = None
            yield row if isinstance(row, dict) else None


def _hub_source(repository: Repository, config: str | None, split: str, columns: Columns) -> Source:
    place = hub_place(repository)
    rows = stream_dataset(place.path, config=config, split=split, revision=place.revision, columns=columns)
    label = "/".join([repository.repo, *([config] if config else []), split])
    return Source(label=label, fingerprint=place.commit, rows=rows, image_root=None)


def stream_dataset(
    place: str, *, config: str | None, split: str, revision: str | None = None, columns: Columns = VERL
) -> Callable[[int], Iterator[Row]]:
    """Returns the rows of a hub data set, or of a folder with the same layout, starting at the given number.

    They are streamed with `datasets`, with encoded images.
    """
    dataset = stream_rows(
        place,
        config,
        split=split,
        revision=revision,
        named=f"source {place}",
        correct="hub_config or hub_split, or download it and name the folder",
    ).decode(False)
    found = dataset.column_names
    if found is not None:
        check_columns_named(place, columns, found)
        dataset = dataset.select_columns([column for column in columns.top_level if column in found])
    return lambda start: iter(dataset.skip(start))
