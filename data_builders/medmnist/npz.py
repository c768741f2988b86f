"""Reads the arrays of an `.npz` file as streams: one picture after another, without loading an array.

`numpy.load` reads a whole member of the archive: 15 GB for 100,000 RGB pictures of 224 pixels. Each member is a zipped
`.npy` file (NumPy's `lib.format`), stored or deflated, whose header has dtype and shape; the pictures follow in order.
Here the header is checked, then blocks of pictures are inflated one at a time. Pickled arrays are refused.
"""

import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from jaxtyping import UInt8
from numpy.lib import format as npy

BLOCK_BYTES = 2**20
"""Pictures are inflated in blocks of about this size."""
UNREADABLE = (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, NotImplementedError, RuntimeError)
"""What `zipfile` and NumPy raise for damaged, encrypted or unusually compressed members."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """An array in an archive."""

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __len__(self) -> int:
        return self.shape[0]


def list_members(path: Path) -> list[str]:
    """Returns the names of the arrays in an archive.

    Raises:
        ValueError: if it is not a complete zip archive.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return sorted(name.removesuffix(".npy") for name in archive.namelist())
    except UNREADABLE as error:
        raise _unreadable(path, error) from error


def open_member(path: Path, name: str) -> Member:
    """Reads the header of an array, and compares its size with the archive's record.

    Raises:
        ValueError: if it is not a plain array in C order, or not all of it is there.
    """
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as stream:
            shape, fortran_order, dtype = _read_header(stream)
            num_bytes = archive.getinfo(f"{name}.npy").file_size - stream.tell()
    except UNREADABLE as error:
        raise _unreadable(path, error, name) from error
    if dtype.hasobject:
        raise ValueError(f"{path}: {name} holds pickled objects; expected an array of numbers")
    if fortran_order and len(shape) > 1:
        raise ValueError(f"{path}: {name} is in Fortran order; expected C order, as numpy.savez writes arrays")
    expected = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if num_bytes != expected or not shape:
        raise ValueError(f"{path}: {name} has {num_bytes} bytes; its header, with shape {shape}, says {expected}")
    return Member(path=path, name=name, shape=shape, dtype=dtype)


def read_array(member: Member) -> np.ndarray:
    """Returns a whole array, such as the labels."""
    return np.concatenate(list(iter_blocks(member, block_bytes=2**24)) or [np.empty(member.shape, member.dtype)])


def iter_blocks(member: Member, *, block_bytes: int = BLOCK_BYTES) -> Iterator[UInt8[np.ndarray, "block ..."]]:
    """Yields an array in blocks along its first axis.

    Args:
        member: the array.
        block_bytes: size of a block; at least one element of the first axis.

    Raises:
        ValueError: if the archive is damaged.
    """
    shape = member.shape[1:]
    row_bytes = int(np.prod(shape, dtype=np.int64)) * member.dtype.itemsize
    rows_a_block = max(1, block_bytes // max(1, row_bytes))
    try:
        with zipfile.ZipFile(member.path) as archive, archive.open(f"{member.name}.npy") as stream:
            _read_header(stream)
            for start in range(0, len(member), rows_a_block):
                num_rows = min(rows_a_block, len(member) - start)
                data = stream.read(num_rows * row_bytes)
                if len(data) < num_rows * row_bytes:
                    raise EOFError(f"ends within row {start + len(data) // max(1, row_bytes)}")
                yield np.frombuffer(data, member.dtype).reshape(num_rows, *shape)
            stream.read(1)  # at the end of a member its checksum is compared
    except UNREADABLE as error:
        raise _unreadable(member.path, error, member.name) from error


def _read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = npy.read_magic(stream)
    return npy.read_array_header_1_0(stream) if version == (1, 0) else npy.read_array_header_2_0(stream)


def _unreadable(path: Path, error: Exception, name: str | None = None) -> ValueError:
    reason = " ".join(str(error).split()) or type(error).__name__
    where = f"{path}: {name} is" if name else f"{path} is"
    return ValueError(f"{where} not readable as an .npz file ({reason}); download it again")
