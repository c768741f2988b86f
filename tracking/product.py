"""Writes products atomically: under `.partial-NAME` in the target's folder, renamed when complete.

A reader never finds an incomplete checkpoint, table or page under its final name: a killed writer leaves only a
`.partial-…`, which the next writer of the same product removes, or continues if it knows which parts are complete.
"""

import errno
import os
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

NUM_FLUSHED_AT_ONCE = 16
"""Files synced together: the journal commits many at once; 18,000 take 2.4 s, against 75 s one by one."""


def partial_path(path: Path) -> Path:
    """Returns the temporary path of a product."""
    return path.parent / f".partial-{path.name}"


@contextmanager
def partial_directory(path: Path, *, keep: bool = False) -> Iterator[Path]:
    """Yields an empty folder that becomes `path` when the block ends without an error.

    Args:
        path: the product's final path.
        keep: keep an earlier writer's files, and do not remove them if the block fails; the caller knows which are
        complete.
    """
    if path.exists():
        raise ValueError(f"{path} exists already; choose another output directory or remove it")
    partial = partial_path(path)
    if partial.exists() and not keep:
        shutil.rmtree(partial)
    partial.mkdir(parents=True, exist_ok=keep)
    try:
        yield partial
    except Exception:
        if not keep:
            shutil.rmtree(partial)
        raise
    files = [f"{folder}/{name}" for folder, _, names in os.walk(partial) for name in names]
    with ThreadPoolExecutor(NUM_FLUSHED_AT_ONCE) as threads:
        list(threads.map(_flush_all, (files[number::NUM_FLUSHED_AT_ONCE] for number in range(NUM_FLUSHED_AT_ONCE))))
    partial.rename(path)


@contextmanager
def partial_file(path: Path) -> Iterator[Path]:
    """Yields a path to write that replaces `path` when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(path)
    try:
        yield partial
    except Exception:
        partial.unlink(missing_ok=True)
        raise
    _flush_to_disk(partial)
    partial.replace(path)


def check_output_file(name: str) -> None:
    """Refuses a path at which `partial_file` could not write; the `check` of arguments that name an output file.

    Raises:
        ValueError: with what is there instead.
    """
    path = Path(name)
    try:
        if path.is_dir():
            raise ValueError(f"{name!r} is a folder; expected the path of the file to write")
        if path.exists() and not path.is_file():
            raise ValueError(f"{name} is no regular file; expected the path of the file to write")
        nearest = next(place for place in path.absolute().parents if os.path.lexists(place))
        if not nearest.is_dir():
            raise ValueError(f"{name} cannot be written: {nearest} is not a folder; name another path")
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise ValueError(f"{name} cannot be written: no permission to write in {nearest}; name another path")
        partial_path(path).exists()  # the longest name that is needed
    except OSError as error:
        reason = "the name is too long" if error.errno == errno.ENAMETOOLONG else error.strerror
        raise ValueError(f"{name} cannot be written: {reason}; name another path") from error


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically."""
    with partial_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def _flush_all(paths: Iterable[str]) -> None:
    for path in paths:
        _flush_to_disk(path)


def _flush_to_disk(path: Path | str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
