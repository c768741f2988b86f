"""Copies bytes from donors into a shard and hashes them on the way, with little memory.

Source bytes are read into a small ring of reused buffers. A second thread writes each buffer, a third hashes it, tensor
by tensor (system calls and hashlib release the GIL), so the hashed bytes are the written ones. A fourth thread flushes
written pages to disk during the copy and drops them from the page cache. The final sync then has little left to do, and
the page cache, whose growth costs more time than the copy itself, remains available for the donors.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

BUFFER_BYTES = 8 * 2**20
"""Measured from and to one disk of 2 GB/s, on two cores: 1.2 GB/s; 0.65 without dropping pages; 0.5 with 2 MiB."""
NUM_BUFFERS = 4
SYNC_BYTES = 64 * 2**20
"""Bytes written between two flushes."""


@dataclass(frozen=True)
class ByteRange:
    """A byte range of a donor's file."""

    file: Path
    offset: int
    num_bytes: int


Source = ByteRange | Iterable[bytes | memoryview]
"""Source of a tensor's bytes: a range of a donor's file, or computed chunks."""


def write_shard(
    path: Path, header: bytes, sources: Iterable[Source], *, advance: Callable[[int], object] = lambda _: None
) -> list[str]:
    """Writes one weights file and syncs it to disk before returning.

    Args:
        path: the file.
        header: everything before the tensors' bytes.
        sources: one per tensor, in order.
        advance: called with the number of bytes after each piece.

    Returns:
        The sha256 of each tensor's bytes, in order.

    Raises:
        ValueError: if a donor's file is shorter than its header says.
    """
    hashes: list[hashlib._Hash] = []
    with ExitStack() as stack:
        target = stack.enter_context(path.open("wb", buffering=0))
        writing = stack.enter_context(ThreadPoolExecutor(1))
        hashing = stack.enter_context(ThreadPoolExecutor(1))
        syncing = stack.enter_context(ThreadPoolExecutor(1))
        sync: Future[None] | None = None
        buffers = Buffers(stack)
        unsynced = 0
        _write(target.fileno(), memoryview(header))
        for source in sources:
            digest = hashlib.sha256()
            hashes.append(digest)
            for piece in buffers.read(source) if isinstance(source, ByteRange) else source:
                written = writing.submit(_write, target.fileno(), memoryview(piece))
                buffers.hold(written, hashing.submit(digest.update, piece))
                advance(len(piece))
                unsynced += len(piece)
                if unsynced >= SYNC_BYTES and (sync is None or sync.done()):
                    if sync is not None:
                        sync.result()  # the system reports a failed write only once
                    sync = syncing.submit(_write_back, target.fileno())
                    unsynced = 0
        buffers.drain()
        if sync is not None:
            sync.result()
        os.fsync(target.fileno())
    return [digest.hexdigest() for digest in hashes]


class Buffers:
    """A ring of buffers; a buffer is reused once its content has been written and hashed."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._files: dict[Path, int] = {}
        self._buffers: list[memoryview] = []
        self._held: list[tuple[Future[None], ...]] = []

    def hold(self, *uses: Future[None]) -> None:
        """Registers the work on the latest piece, and waits for the piece whose buffer is reused next."""
        self._held.append(uses)
        if len(self._held) >= NUM_BUFFERS:
            self._release()

    def drain(self) -> None:
        """Waits for all pieces."""
        while self._held:
            self._release()

    def _release(self) -> None:
        for use in self._held.pop(0):
            use.result()

    def read(self, source: ByteRange) -> Iterator[memoryview]:
        """Yields a byte range in pieces; a piece stays valid until `hold` is called for the third piece after it."""
        position, end = source.offset, source.offset + source.num_bytes
        while position < end:
            piece = self._next()[: min(BUFFER_BYTES, end - position)]
            got = os.preadv(self._open(source.file), [piece], position)
            if not got:
                raise ValueError(
                    f"{source.file}: ends at byte {position}, before a tensor's end at {end}; "
                    "it has changed since it was opened"
                )
            yield piece[:got]
            position += got

    def _next(self) -> memoryview:
        if len(self._buffers) < NUM_BUFFERS:
            self._buffers.append(memoryview(bytearray(BUFFER_BYTES)))
        else:
            self._buffers.append(self._buffers.pop(0))
        return self._buffers[-1]

    def _open(self, file: Path) -> int:
        if file not in self._files:
            descriptor = os.open(file, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)  # larger read-ahead: a third less time
            self._stack.callback(os.close, descriptor)
            self._files[file] = descriptor
        return self._files[file]


def _write_back(descriptor: int) -> None:
    os.fdatasync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)  # pages written since the last flush stay cached


def _write(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
