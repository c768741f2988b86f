"""Reads the rows of tables: CSV, JSON, JSON Lines, Parquet, pickled lists and hub data sets.

Parquet, CSV, JSON Lines and hub data sets are streamed; a JSON list (SLAKE's largest has 3 MB) is read whole. Of a
pickle only lists, mappings, texts and numbers are loaded: anything else could run code.
"""

import csv
import json
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from data_builders.choices.layouts import LAYOUTS, Layout, find_layout, split_of
from data_builders.sources.files import file_sha256
from data_builders.sources.hub import hub_place, stream_rows
from models.hub import Repository, parse_repository

BATCH_ROWS = 16
CSV_FIELD_CHARS = 2**24

Row = Mapping[str, Any] | None
"""None for a row that cannot be read as a mapping."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of one published table."""

    label: str
    fingerprint: str
    """sha256 of a file, or the commit of a hub data set."""
    rows: Callable[[], Iterator[Row]]
    layout_name: str
    split: str | None
    """The split that the table's name stands for."""
    folder: Path | None

    @property
    def layout(self) -> Layout:
        return LAYOUTS[self.layout_name]


def open_tables(
    names: Sequence[str], *, layout: str | None, config: str | None, hub_splits: Sequence[str]
) -> list[Table]:
    """Opens files and hub data sets, sorted by label.

    Raises:
        ValueError: if a name is neither, two have one name, or the columns are those of no layout.
    """
    tables: list[Table] = []
    for name in names:
        path = Path(name)
        repository = None if path.suffix in READERS else parse_repository(name, kind="dataset")
        if path.is_file() and path.suffix in READERS:
            read = partial(READERS[path.suffix], path)
            tables.append(_table(name, path.name, file_sha256(path), read, layout, split_of(name), path.parent))
        elif path.exists():
            raise ValueError(f"source {name} is not a file of {', '.join(READERS)}; name the tables themselves")
        elif repository is not None:
            tables += [_hub_table(repository, layout, config, split) for split in hub_splits]
        else:
            raise ValueError(f"source {name} does not exist; expected a file of {', '.join(READERS)}, or a hub id")
    labels = [table.label for table in tables]
    if repeated := sorted({label for label in labels if labels.count(label) > 1}):
        raise ValueError(f"two sources are called {repeated[0]}; name each once, and rename files of equal name")
    return sorted(tables, key=lambda table: table.label)


def _table(
    name: str, label: str, fingerprint: str, rows: Callable[[], Iterator[Row]], layout: str | None, split: str | None,
    folder: Path | None,
) -> Table:  # fmt: skip
    first = next((row for row in islice(rows(), 100) if row is not None), None)
    if first is None:
        raise ValueError(f"source {name} holds no rows with named columns")
    found = layout or find_layout(map(str, first))
    if found is None:
        raise ValueError(
            f"source {name} has the columns {', '.join(map(str, first))}; expected those of {', '.join(LAYOUTS)}, such "
            "as image, question and answer"
        )
    return Table(label=label, fingerprint=fingerprint, rows=rows, layout_name=found, split=split, folder=folder)


def _hub_table(repository: Repository, layout: str | None, config: str | None, split: str) -> Table:
    place = hub_place(repository)

    def rows() -> Iterator[Row]:
        return iter(
            stream_rows(
                place.path,
                config,
                split=split,
                revision=place.revision,
                named=f"source {repository.repo}",
                correct="hub_config or hub_splits, or download it and name its files",
            ).decode(False)
        )

    label = "/".join([repository.repo, *([config] if config else []), split])
    return _table(repository.repo, label, place.commit, rows, layout, split_of(split), None)


def _csv_rows(path: Path) -> Iterator[Row]:
    csv.field_size_limit(CSV_FIELD_CHARS)
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        try:
            yield from csv.DictReader(file, strict=True)
        except csv.Error as error:
            raise ValueError(f"source {path} is not readable as CSV ({error})") from error


def _json_rows(path: Path) -> Iterator[Row]:
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"source {path} is not readable as JSON ({error}); expected a list of objects") from error
    if not isinstance(found, list):
        raise ValueError(f"source {path} is a {type(found).__name__}; expected a list of objects")
    yield from (row if isinstance(row, dict) else None for row in found)


def _json_lines(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        for line in file:
            if line.strip():
                try:
                    row = json.loads(line)
                except ValueError:
                    row = None
                yield row if isinstance(row, dict) else None


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(BATCH_ROWS, use_threads=False):
                yield from batch.to_pylist()
    except pa.ArrowInvalid as error:
        raise ValueError(f"source {path} is not readable as Parquet ({str(error).splitlines()[0]})") from error


class _PlainUnpickler(pickle.Unpickler):
    """Loads lists, mappings, texts and numbers, which need no class."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it holds {module}.{name}")


def _pickled_rows(path: Path) -> Iterator[Row]:
    try:
        with path.open("rb") as file:
            found = _PlainUnpickler(file).load()
    except (pickle.UnpicklingError, EOFError, ValueError, AttributeError, IndexError, UnicodeDecodeError) as error:
        raise ValueError(f"source {path} is not a pickled list of plain mappings ({error})") from error
    if not isinstance(found, list):
        raise ValueError(f"source {path} holds a {type(found).__name__}; expected a list of mappings")
    yield from (row if isinstance(row, dict) else None for row in found)


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".csv": _csv_rows,
    ".json": _json_rows,
    ".jsonl": _json_lines,
    ".parquet": _parquet_rows,
    ".pkl": _pickled_rows,
}
