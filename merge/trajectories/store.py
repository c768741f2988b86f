"""Which files does a trajectory consist of? One per kept step, and an index that proves each of them.

RUN/trajectory/trajectory.json          the start: dtype, shape and sha256 of every tensor, sha256 of its other files;
                                        per kept step: file, and per changed tensor the sha256 of what it restores
RUN/trajectory/step-K.safetensors       per changed tensor NAME the streams NAME:places and NAME:values (`changes.py`)

Every step is stored against the start, so it is restored without the others. Tensors that no step changed take nothing.
Names are canonical and dtypes are the start's: what is stored is what `final/` would hold after that step. The files
contain no times and no paths; a continued run writes the same bytes as an undisturbed one.

Files are written tensor by tensor; several are encoded at once, one per core. A safetensors header stands before the
tensors, so its room is reserved for all tensors that may change and filled in at the end.
"""

import hashlib
import json
import os
import struct
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from merge.recipes.companions import companion_names
from merge.trajectories.changes import StoredChange, encode
from models.checkpoint import Checkpoint
from models.shards import DTYPES, encode_header, parse_json_object, read_header
from tracking.product import partial_path, write_text

TRAJECTORY_DIR = "trajectory"
INDEX_NAME = "trajectory.json"
FORMAT_VERSION = 1
METADATA = {"format": "frankenstein-trajectory", "version": str(FORMAT_VERSION)}
PLACES, VALUES = "places", "values"
LARGEST = 10**15
"""Bytes of the largest stream for which room is reserved in a header."""


@dataclass(frozen=True, kw_only=True)
class TensorRecord:
    """What a step stores of one changed tensor."""

    sha256: str
    """Of the restored bytes."""
    num_changed: int
    coding: str


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """One kept step."""

    step: int
    file: str
    num_bytes: int
    num_changed: int
    changed_bytes: int
    """Changed elements times their size: what storing their values uncompressed, without places, would take."""
    tensors: Mapping[str, TensorRecord] = field(repr=False)
    """The changed tensors, by canonical name; all others are the start's."""


@dataclass(frozen=True, kw_only=True)
class StartRecord:
    """The identity of the checkpoint that a trajectory is stored against."""

    fingerprint: str
    tensors: Mapping[str, Mapping[str, Any]] = field(repr=False)
    """Canonical name -> dtype, shape, sha256."""
    files: Mapping[str, str] = field(repr=False)
    """The files beside the weights that belong to the model -> sha256."""


class TrajectoryWriter:
    """Writes the kept steps of one run; for its main process."""

    def __init__(self, directory: Path, start: Checkpoint, *, known: Mapping[str, str], resume_step: int) -> None:
        """Begins a trajectory, or continues one: later steps of an earlier attempt are removed.

        Args:
            directory: the run's.
            start: the run's start checkpoint.
            known: sha256 of some of its tensors, which are not computed again.
            resume_step: the last step that is not trained again.
        """
        self._folder = directory / TRAJECTORY_DIR
        self._start = start
        self._steps: list[StepRecord] = []
        path = self._folder / INDEX_NAME
        if path.is_file() and resume_step:
            self._identity, earlier = read_index(path)
            self._steps = [record for record in earlier if record.step <= resume_step]
        else:
            self._identity = identify(start, known)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._write_index()
        kept = {INDEX_NAME, *(record.file for record in self._steps)}
        for leftover in [entry for entry in self._folder.iterdir() if entry.name not in kept]:
            leftover.unlink()

    def open_step(self, step: int, names: Iterable[str]) -> "StepWriter":
        """Begins a step's file.

        Args:
            step: the optimizer step after which the weights are kept.
            names: the tensors that may have changed.
        """
        return StepWriter(self._folder / f"step-{step}.safetensors", step, self._start, list(names))

    def close_step(self, writer: "StepWriter") -> StepRecord:
        """Completes a step's file and adds it to the index."""
        record = writer.close()
        self._steps = [*self._steps, record]
        self._write_index()
        return record

    def _write_index(self) -> None:
        content = {
            "format_version": FORMAT_VERSION,
            "start": asdict(self._identity),
            "steps": [asdict(record) for record in self._steps],
        }
        write_text(self._folder / INDEX_NAME, json.dumps(content, separators=(",", ":")) + "\n")


class StepWriter:
    """Writes the file of one step, one tensor at a time."""

    def __init__(self, path: Path, step: int, start: Checkpoint, names: Sequence[str]) -> None:
        self._path, self._step, self._start = path, step, start
        self._file: BinaryIO = partial_path(path).open("wb")
        longest = [(f"{name}:{kind}", "U8", (LARGEST,)) for name in names for kind in (PLACES, VALUES)]
        self._room = len(encode_header(longest, METADATA))
        self._file.write(bytes(self._room))
        self._entries: list[tuple[str, str, tuple[int, ...]]] = []
        self._tensors: dict[str, TensorRecord] = {}
        self._changed_bytes = 0
        self._num_threads = len(os.sched_getaffinity(0))
        self._pool = ThreadPoolExecutor(self._num_threads)
        self._running: deque[tuple[str, Future[tuple[StoredChange, str] | None]]] = deque()

    def add(self, name: str, content: bytes | memoryview) -> None:
        """Stores the change of a tensor, if there is one.

        Args:
            name: canonical.
            content: the tensor's bytes in the start's dtype; not to be changed before the step is closed.
        """
        self._running.append((name, self._pool.submit(self._encode, name, content)))
        if len(self._running) > self._num_threads:
            self._write_next()

    def _encode(self, name: str, content: bytes | memoryview) -> tuple[StoredChange, str] | None:
        """Returns a tensor's change and the sha256 of its bytes, or None if nothing changed."""
        before = np.frombuffer(self._start.data(name), f"<u{self._size(name)}")
        change = encode(before, np.frombuffer(content, before.dtype))
        self._start.release(name)
        return None if change is None else (change, hashlib.sha256(content).hexdigest())

    def _size(self, name: str) -> int:
        return DTYPES[self._start.tensors[name].dtype][1]

    def _write_next(self) -> None:
        name, running = self._running.popleft()
        found = running.result()
        if found is None:
            return
        change, sha256 = found
        for kind, stream in ((PLACES, change.places), (VALUES, change.values)):
            self._entries.append((f"{name}:{kind}", "U8", (len(stream),)))
            self._file.write(stream)
        self._tensors[name] = TensorRecord(sha256=sha256, num_changed=change.num_changed, coding=change.coding)
        self._changed_bytes += change.num_changed * self._size(name)

    def close(self) -> StepRecord:
        """Writes the header and gives the file its name."""
        while self._running:
            self._write_next()
        self._pool.shutdown()
        header = encode_header(self._entries, METADATA)[8:].rstrip(b" ")
        self._file.seek(0)
        self._file.write(struct.pack("<Q", self._room - 8) + header.ljust(self._room - 8))
        num_bytes = self._file.seek(0, os.SEEK_END)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        partial_path(self._path).replace(self._path)
        return StepRecord(
            step=self._step,
            file=self._path.name,
            num_bytes=num_bytes,
            num_changed=sum(tensor.num_changed for tensor in self._tensors.values()),
            changed_bytes=self._changed_bytes,
            tensors=self._tensors,
        )


def identify(start: Checkpoint, known: Mapping[str, str]) -> StartRecord:
    """Returns the identity of a start checkpoint; reads it whole, except for the tensors whose sha256 is known."""
    return StartRecord(
        fingerprint=start.fingerprint(),
        tensors={
            name: {
                "dtype": stored.dtype,
                "shape": list(stored.shape),
                "sha256": known.get(name) or start.sha256(name),
            }
            for name, stored in start.tensors.items()
        },
        files={
            name: hashlib.sha256((start.directory / name).read_bytes()).hexdigest()
            for name in companion_names(start.directory)
        },
    )


def read_index(path: Path) -> tuple[StartRecord, list[StepRecord]]:
    """Reads `trajectory.json`.

    Raises:
        ValueError: if it is missing, damaged or of another version.
    """
    if not path.is_file():
        raise ValueError(
            f"{path} does not exist; expected the output directory of a run of train.grpo or train.sft with "
            "keep_trajectory"
        )
    content = parse_json_object(path.read_bytes(), str(path))
    version = content.get("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(f"{path} has the format version {version!r}; expected {FORMAT_VERSION}")
    try:
        start = StartRecord(**content["start"])
        steps = [
            StepRecord(**{**entry, "tensors": {name: TensorRecord(**own) for name, own in entry["tensors"].items()}})
            for entry in content["steps"]
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}: {error}); it is no longer usable") from error
    return start, steps


def read_changes(path: Path, record: StepRecord) -> Callable[[str], StoredChange]:
    """Returns a function that reads a tensor's stored change by its canonical name.

    Raises:
        ValueError: if the file is missing, truncated or lacks a tensor.
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist, although {INDEX_NAME} names it; the step is lost")
    stored = {entry.name: entry for entry in read_header(path).tensors}
    lacking = [name for name in record.tensors if not {f"{name}:{PLACES}", f"{name}:{VALUES}"} <= stored.keys()]
    if lacking:
        raise ValueError(f"{path}: lacks {lacking[0]!r}, which {INDEX_NAME} names ({len(lacking)} such)")

    def stream(name: str) -> bytes:
        entry = stored[name]
        with path.open("rb") as file:
            return os.pread(file.fileno(), entry.num_bytes, entry.offset)

    def change(name: str) -> StoredChange:
        own = record.tensors[name]
        return StoredChange(
            num_changed=own.num_changed,
            coding=own.coding,
            places=stream(f"{name}:{PLACES}"),
            values=stream(f"{name}:{VALUES}"),
        )

    return change
