"""How do bytes get from donors into a shard, hashed on the way, in little memory?

Source bytes are read into a few buffers that are used again and again; each is written and hashed, tensor by tensor, on
a second thread (hashlib lets other threads run), so what is hashed is what was written. A third thread has the system
write back what stands in its cache while copying goes on, so that the final sync finds little left.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

BUFFER_BYTES = 2 * 2**20
NUM_BUFFERS = 4
SYNC_BYTES = 32 * 2**20
"""Written between two requests to write back."""


@dataclass(frozen=True)
class ByteRange:
    """Bytes of a donor's file."""

    file: Path
    offset: int
    num_bytes: int


Source = ByteRange | Iterable[bytes | memoryview]
"""Where a tensor's bytes come from: a donor's file, or chunks that are computed."""


def write_shard(
    path: Path, header: bytes, sources: Iterable[Source], *, advance: Callable[[int], object] = lambda _: None
) -> list[str]:
    """Writes one weights file and has it on the disk when it returns.

    Args:
        path: the file.
        header: what stands before the tensors' bytes.
        sources: one for each tensor, in order.
        advance: told the number of bytes after each piece.

    Returns:
        The sha256 of each tensor's bytes, in order.

    Raises:
        ValueError: where a donor's file ends before the bytes that its header promised.
    """
    hashes: list[hashlib._Hash] = []
    with ExitStack() as stack:
        target = stack.enter_context(path.open("wb", buffering=0))
        hashing = stack.enter_context(ThreadPoolExecutor(1))
        syncing = stack.enter_context(ThreadPoolExecutor(1))
        pending: list[Future[None]] = []
        buffers = Buffers(stack)
        unsynced = 0
        _write(target.fileno(), memoryview(header))
        for source in sources:
            digest = hashlib.sha256()
            hashes.append(digest)
            for piece in buffers.read(source) if isinstance(source, ByteRange) else source:
                buffers.hold(hashing.submit(digest.update, piece))
                _write(target.fileno(), memoryview(piece))
                advance(len(piece))
                unsynced += len(piece)
                if unsynced >= SYNC_BYTES and all(sync.done() for sync in pending):
                    pending = [syncing.submit(os.fdatasync, target.fileno())]
                    unsynced = 0
        hashing.shutdown()
        syncing.shutdown()
        for done in pending:
            done.result()
        os.fsync(target.fileno())
    return [digest.hexdigest() for digest in hashes]


class Buffers:
    """A ring of buffers; one is filled again once what was made of it is hashed."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._files: dict[Path, int] = {}
        self._buffers: list[memoryview] = []
        self._hashed: list[Future[None]] = []

    def hold(self, hashed: Future[None]) -> None:
        """Notes the hashing of the latest piece, and waits for the piece whose place in the ring is used next."""
        self._hashed.append(hashed)
        if len(self._hashed) >= NUM_BUFFERS:
            self._hashed.pop(0).result()

    def read(self, source: ByteRange) -> Iterator[memoryview]:
        """Yields a byte range in pieces; each stays as it is until `hold` has been called for the last but three."""
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
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)  # read ahead further: a third less time
            self._stack.callback(os.close, descriptor)
            self._files[file] = descriptor
        return self._files[file]


def _write(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
