"""How do several processes share a command's units of work? Each takes a share, and records are merged by key.

    accelerate launch --num_processes 8 -m analyze.swap …

A command started normally is a single process. Process r of n takes every n-th of the unfinished units and appends to
`records-r.jsonl`; when all are done, the main process merges these files into `records.jsonl` in the order of the
units. Records of an earlier attempt count as done, whatever its number of processes was.

    with open_shared_run(directory, command="analyze.swap", settings=settings) as run:
        with SharedLog(directory, keys) as log:
            for key in log.pending:
                log.append({"key": key, …})
            records = log.merge()
"""

import atexit
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from tracking.processes import is_distributed, on_main_process, wait_for_all
from tracking.product import write_text
from tracking.records import Record, RecordLog, encode_records, read_finished
from tracking.run import Run, open_run

RECORDS_FILE = "records.jsonl"


def join_processes() -> None:
    """Initialises the process group of a launch; does nothing for a single process."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not is_distributed():
        from accelerate import PartialState

        # At interpreter exit the group's threads may outlive objects they use and abort the process (seen with gloo).
        atexit.register(PartialState().destroy_process_group)


@contextmanager
def open_shared_run(
    directory: Path, *, command: str, settings: Mapping[str, Any], overwrite: bool = False
) -> Iterator[Run]:
    """Opens a run directory in the main process, which holds its lock; the others get its state or its error.

    Arguments and errors: as for `tracking.run.open_run`.
    """
    join_processes()

    def enter() -> Run:
        return stack.enter_context(open_run(directory, command=command, settings=settings, overwrite=overwrite))

    with ExitStack() as stack:
        yield on_main_process(enter)


class SharedLog:
    """The records of a command in a directory, written by all of its processes."""

    def __init__(self, directory: Path, keys: Sequence[str]) -> None:
        """Opens the log.

        Args:
            directory: the command's output directory.
            keys: keys of all units of work, in the order of the merged records; the same in every process.
        """
        self._directory = directory
        self._keys = list(keys)
        self._rank = int(os.environ.get("RANK", "0"))
        self._num_processes = int(os.environ.get("WORLD_SIZE", "1"))
        self._done: dict[str, Record] = {}

    def __enter__(self) -> "SharedLog":
        on_main_process(lambda: None)  # barrier: the directory exists, and no process writes yet
        known = set(self._keys)
        for path in (self._directory / RECORDS_FILE, *sorted(self._directory.glob("records-*.jsonl"))):
            self._done |= {record["key"]: record for record in read_finished(path) if record["key"] in known}
        wait_for_all()
        self._own = RecordLog(self._directory / f"records-{self._rank}.jsonl")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._own.__exit__(kind, error, trace)

    @property
    def pending(self) -> list[str]:
        """The keys assigned to this process."""
        todo = [key for key in self._keys if key not in self._done]
        return todo[self._rank :: self._num_processes]

    def pending_groups(self, groups: Sequence[Sequence[str]]) -> list[int]:
        """Returns the indices of the groups assigned to this process: those with an unfinished key.

        Answers may depend in their last digits on the rest of the batch, so a batch is always redone completely.
        """
        todo = [number for number, keys in enumerate(groups) if any(key not in self._done for key in keys)]
        return todo[self._rank :: self._num_processes]

    def append(self, *records: Record) -> None:
        """Writes records of this process's units; existing records of an earlier attempt are kept."""
        self._own.append(*[record for record in records if record["key"] not in self._done])

    def merge(self) -> list[Record]:
        """Waits for all processes, writes `records.jsonl` and returns its records, in every process.

        Raises:
            RuntimeError: if a unit has no record.
        """
        wait_for_all()
        shards = sorted(self._directory.glob("records-*.jsonl"))
        found = dict(self._done)
        for path in shards:
            found |= {record["key"]: record for record in read_finished(path)}
        missing = [key for key in self._keys if key not in found]
        if missing:
            raise RuntimeError(f"{self._directory}: no record of {missing[0]!r} ({len(missing)} such); run it again")
        records = [found[key] for key in self._keys]
        wait_for_all()

        def write() -> None:
            write_text(self._directory / RECORDS_FILE, encode_records(records))
            for path in shards:
                path.unlink()

        on_main_process(write)
        return records
