"""What were the weights after a kept step? A checkpoint whose changed tensors are decoded when they are read.

    trajectory = open_trajectory(Path("outputs/arms/full-seed0"))
    checkpoint = trajectory.at(20)      # a Checkpoint, bit for bit what `final/` would hold after step 20

Every decoded tensor is compared with its recorded sha256 before it is used.
"""

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np

from merge.trajectories.changes import StoredChange, decode
from merge.trajectories.store import INDEX_NAME, TRAJECTORY_DIR, StartRecord, StepRecord, read_changes, read_index
from models.checkpoint import Checkpoint, open_checkpoint, without
from models.loading import local_checkpoint
from models.shards import DTYPES
from models.tying import is_tied
from tracking.progress import progress
from tracking.run import read_run


@dataclass(frozen=True, kw_only=True)
class RestoredCheckpoint(Checkpoint):
    """A run's start with the changed elements of one step. Unchanged tensors are the start's bytes.

    `directory`, `config` and `tensors` are the start's: names, dtypes and shapes are those of `final/`.
    """

    record: StepRecord
    path: Path
    """The step's file."""
    changes: Callable[[str], StoredChange] = field(repr=False)
    """Reads a tensor's stored change by name."""
    _latest: dict[str, memoryview] = field(default_factory=dict, repr=False)
    """The tensor that was decoded last, because readers come back for its next chunk."""
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def data(self, name: str) -> memoryview:
        """Returns a tensor's bytes.

        Raises:
            ValueError: if the step's file is damaged, or the start is another one.
        """
        if name not in self.record.tensors:
            return super().data(name)
        with self._lock:
            if name not in self._latest:
                self._latest.clear()
                self._latest[name] = self._decode(name)
            return self._latest[name]

    def _decode(self, name: str) -> memoryview:
        size = DTYPES[self.tensors[name].dtype][1]
        before = np.frombuffer(super().data(name), f"<u{size}")
        try:
            after = decode(before, self.changes(name))
        except ValueError as error:
            raise ValueError(f"{self.path}: {name!r}: {error}; the file is damaged") from error
        super().release(name)
        if hashlib.sha256(after.data).hexdigest() != self.record.tensors[name].sha256:
            raise ValueError(
                f"{self.path}: {name!r} with the start {self.directory} does not restore the recorded bytes (sha256); "
                "the file is damaged, or the start has changed since the run"
            )
        return after.view(np.uint8).data

    def release(self, name: str, first_byte: int = 0, last_byte: int | None = None) -> None:
        """Releases a tensor's memory; a decoded one only as a whole."""
        if name not in self.record.tensors:
            super().release(name, first_byte, last_byte)
        elif last_byte is None:
            with self._lock:
                self._latest.pop(name, None)

    def fingerprint(self) -> str:
        """Returns a fingerprint of the start's and of the step's sha256s."""
        parts = [super().fingerprint(), *(own.sha256 for own in self.record.tensors.values())]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """The kept steps of one run, and its start."""

    directory: Path
    """The run's."""
    start: Checkpoint
    identity: StartRecord
    steps: tuple[StepRecord, ...]
    """In ascending order."""

    @property
    def numbers(self) -> list[int]:
        return [record.step for record in self.steps]

    def at(self, step: int) -> RestoredCheckpoint:
        """Returns the weights after a step.

        Raises:
            ValueError: if the step was not kept, or its file is missing or truncated.
        """
        record = next((record for record in self.steps if record.step == step), None)
        if record is None:
            kept = ", ".join(map(str, self.numbers)) or "none"
            raise ValueError(f"{self.directory} has not kept step {step}; kept are {kept}")
        path = self.directory / TRAJECTORY_DIR / record.file
        own = {one.name: getattr(self.start, one.name) for one in fields(Checkpoint)}
        return RestoredCheckpoint(**own, record=record, path=path, changes=read_changes(path, record))

    def check_start(self) -> None:
        """Compares the start whole, tensor by tensor and file by file, with the one that the run began from.

        Raises:
            ValueError: naming what differs.
        """
        names = list(self.start.tensors)
        for name in progress(names, label=f"hashing {self.start.directory}", unit="tensor"):
            if self.start.sha256(name) != self.identity.tensors[name]["sha256"]:
                raise ValueError(f"{self.start.directory}: {name!r} has changed since the run{ADVICE}")
        for name, digest in self.identity.files.items():
            path = self.start.directory / name
            if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
                raise ValueError(f"{path} {'has changed' if path.is_file() else 'is lost'} since the run{ADVICE}")


ADVICE = "; expected the checkpoint that the run began from, name it with --start"


def open_trajectory(directory: Path, start: str | None = None) -> Trajectory:
    """Opens the trajectory of a run.

    Args:
        directory: the run's output directory.
        start: folder or hub id of the checkpoint that the run began from; by default what the run's settings name.

    Raises:
        ValueError: if there is no trajectory or it is damaged, or the start is missing or another one.
    """
    path = directory / TRAJECTORY_DIR / INDEX_NAME
    identity, steps = read_index(path)
    if not steps:
        raise ValueError(f"{path} has no step yet; the run has not reached its first kept step")
    name = start or str(read_run(directory)["settings"].get("start"))
    opened = open_checkpoint(local_checkpoint(name))
    found = {tensor: {"dtype": stored.dtype, "shape": list(stored.shape)} for tensor, stored in opened.tensors.items()}
    expected = {
        tensor: {"dtype": own["dtype"], "shape": list(own["shape"])} for tensor, own in identity.tensors.items()
    }
    if found != expected or opened.fingerprint() != identity.fingerprint:
        raise ValueError(f"{opened.directory} is not the start of the run {directory}, by its fingerprint{ADVICE}")
    return Trajectory(
        directory=directory,
        start=without(opened, _tied_heads(opened)),
        identity=identity,
        steps=tuple(sorted(steps, key=lambda record: record.step)),
    )


def _tied_heads(checkpoint: Checkpoint) -> set[str]:
    """Returns a stored head that the model ties to its embeddings: training changes only the embeddings."""
    if not is_tied(checkpoint.config):
        return set()
    return {name for name in checkpoint.tensors if checkpoint.family.place(name)[0] == "head"}
