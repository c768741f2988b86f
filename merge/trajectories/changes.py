"""How is the change of one tensor stored exactly, in few bytes? As changed elements against the start.

    change = encode(before, after)         # None if no element differs
    after = decode(before, change)         # the same bits

Elements are compared and subtracted as integers of their width, modulo 2^width, so any bits are restored, also those of
NaN and of negative zero. A small step of a floating-point number is a small integer. Two streams are stored:

- **values**: the differences of the changed elements, signs moved into the lowest bit, one plane per byte. The planes
  of high bytes are almost zero.
- **places**: nothing if all elements changed; a bitmap if more than one of `MAX_GAP` changed; else the number of
  unchanged elements before each changed one, one plane per byte.

Both are compressed with zlib, run lengths and Huffman codes only: several times faster than a search for repeated
strings, which changes of weights do not have.
"""

import math
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt

ALL, BITMAP = "all", "bitmap"
GAPS: dict[str, np.dtype[Any]] = {
    "gaps8": np.dtype("<u1"),
    "gaps16": np.dtype("<u2"),
    "gaps32": np.dtype("<u4"),
    "gaps64": np.dtype("<u8"),
}
"""Coding of the places -> type of a gap."""
MAX_GAP = 16
"""Mean distance of changed elements up to which a bitmap takes fewer bytes than gaps."""
LEVEL = 1
MEMORY_LEVEL = 9
MOST_ADDED, STREAM_BYTES = 1e-3, 16
"""What zlib adds to bytes that it cannot compress, at most: a share of them, for the heads of blocks, and a frame."""


@dataclass(frozen=True, kw_only=True)
class StoredChange:
    """The changed elements of one tensor, compressed."""

    num_changed: int
    coding: str
    """Of the places: `all`, `bitmap` or one of `GAPS`."""
    places: bytes | memoryview
    values: bytes | memoryview


def encode(before: UInt[np.ndarray, " n"], after: UInt[np.ndarray, " n"]) -> StoredChange | None:
    """Returns the changed elements of a tensor, or None if there are none.

    Args:
        before: the start's elements as unsigned integers of their width.
        after: those to store.
    """
    assert before.dtype == after.dtype and before.shape == after.shape, (before.dtype, after.dtype)
    differences = after - before
    changed = differences != 0
    num_changed = int(np.count_nonzero(changed))
    if not num_changed:
        return None
    if num_changed == len(before):
        coding, places = ALL, b""
    elif num_changed * MAX_GAP > len(before):
        coding, places = BITMAP, _compress(np.packbits(changed))
        differences = differences[changed]
    else:
        indices = np.flatnonzero(changed)
        gaps = np.diff(indices, prepend=-1) - 1
        coding, width = next((name, width) for name, width in GAPS.items() if gaps.max() <= np.iinfo(width).max)
        places = _compress(_planes(gaps.astype(width)))
        differences = differences[indices]
    return StoredChange(
        num_changed=num_changed, coding=coding, places=places, values=_compress(_planes(_fold(differences)))
    )


def most_bytes(num_elements: int, width: int) -> int:
    """Returns the most bytes that the streams of one tensor take: all values, and a bitmap with one element unchanged.

    Gaps of at most 8 bytes are stored only where a sixteenth of the elements changed, so they take less.

    Args:
        num_elements: of the tensor.
        width: bytes per element.
    """
    return math.ceil(num_elements * (width + 1 / 8) * (1 + MOST_ADDED)) + 2 * STREAM_BYTES


def decode(before: UInt[np.ndarray, " n"], change: StoredChange) -> UInt[np.ndarray, " n"]:
    """Returns a tensor's elements after a change, as unsigned integers of their width.

    Raises:
        ValueError: if the streams are damaged or do not fit the tensor.
    """
    values = _unfold(_merged(_decompress(change.values), before.dtype, change.num_changed))
    if change.coding == ALL:
        if change.num_changed != len(before):
            raise ValueError(f"{change.num_changed} changed elements of a tensor of {len(before)}; expected all")
        values += before
        return values
    after = before.copy()
    after[_indices(change, len(before))] += values
    return after


def _indices(change: StoredChange, num_elements: int) -> np.ndarray:
    """Returns the changed elements' indices, in ascending order."""
    content = _decompress(change.places)
    if change.coding == BITMAP:
        if len(content) != -(-num_elements // 8):
            raise ValueError(f"a bitmap of {len(content)} bytes for {num_elements} elements")
        found = np.flatnonzero(np.unpackbits(np.frombuffer(content, np.uint8), count=num_elements))
    elif change.coding in GAPS:
        found = np.cumsum(_merged(content, GAPS[change.coding], change.num_changed).astype(np.int64) + 1) - 1
    else:
        raise ValueError(f"places are coded as {change.coding!r}; expected {', '.join((ALL, BITMAP, *GAPS))}")
    if len(found) != change.num_changed or (len(found) and not 0 <= found[-1] < num_elements):
        raise ValueError(f"{len(found)} places for {change.num_changed} changed elements of {num_elements}")
    return found


def _fold(differences: np.ndarray) -> np.ndarray:
    """Moves the sign into the lowest bit: 0, -1, 1, -2, … become 0, 1, 2, 3, …"""
    signed = differences.view(differences.dtype.str.replace("u", "i"))
    folded: np.ndarray = (signed << 1) ^ (signed >> (8 * signed.itemsize - 1))
    return folded.view(differences.dtype)


def _unfold(folded: np.ndarray) -> np.ndarray:
    values: np.ndarray = (folded >> 1) ^ (0 - (folded & 1))
    return values


def _planes(values: np.ndarray) -> np.ndarray:
    """Returns the bytes of integers, all lowest bytes first."""
    return np.ascontiguousarray(values.view(np.uint8).reshape(-1, values.itemsize).T)


def _merged(content: bytes, dtype: np.dtype, num_values: int) -> np.ndarray:
    """Returns integers from their planes of bytes."""
    if len(content) != num_values * dtype.itemsize:
        raise ValueError(f"{len(content)} bytes for {num_values} values of {dtype.itemsize} bytes")
    planes = np.frombuffer(content, np.uint8).reshape(dtype.itemsize, num_values)
    return np.ascontiguousarray(planes.T).view(dtype).reshape(num_values)


def _compress(content: np.ndarray) -> bytes:
    packer = zlib.compressobj(LEVEL, zlib.DEFLATED, zlib.MAX_WBITS, MEMORY_LEVEL, zlib.Z_RLE)
    return packer.compress(content.reshape(-1).data) + packer.flush()


def _decompress(content: bytes | memoryview) -> bytes:
    if not len(content):
        return b""
    try:
        return zlib.decompress(content)
    except zlib.error as error:
        raise ValueError(f"compressed bytes are damaged ({error})") from error
