"""What is in one safetensors file? Reads and writes headers without torch; independent of model families.

The format (https://github.com/huggingface/safetensors): eight bytes, the header's length as a little-endian integer;
the header, a JSON object from name to `dtype`, `shape` and `data_offsets`, and `__metadata__` from string to string;
the tensors' bytes, without gaps, in the order of their offsets.
"""

import json
import math
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_HEADER_BYTES = 100_000_000
"""Limit of the reference implementation."""
MAX_DIMENSIONS, MAX_COUNT = 64, 2**63 - 1
"""Limit of NumPy and torch."""
COMPARED_BYTES = 2**17
"""Chunk size of a comparison: two chunks fit into the CPU cache."""
METADATA_KEY = "__metadata__"
METADATA = {"format": "pt"}
"""Metadata that Transformers writes."""

DTYPES = {
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
}
"""Dtype in a safetensors header -> dtype in torch, bytes per element."""
FLOATING = ("F64", "F32", "F16", "BF16")
"""Dtypes of a model's weights, unless they are quantised."""

Entry = tuple[str, str, tuple[int, ...]]
"""Name on disk, dtype as safetensors spells it, shape."""


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """Location of one tensor on disk."""

    name: str
    """The canonical name; when only a header has been read, the name on disk."""
    name_on_disk: str
    file: Path
    dtype: str
    """As safetensors spells it, such as `BF16`."""
    shape: tuple[int, ...]
    offset: int
    """Offset of the first byte in the file."""
    num_bytes: int


@dataclass(frozen=True, kw_only=True)
class Header:
    """The header of one file."""

    metadata: dict[str, str]
    tensors: tuple[StoredTensor, ...]
    """In the order of their offsets."""


def read_header(path: Path) -> Header:
    """Reads a file's header and checks that its tensors cover the file exactly, without gaps or overlaps.

    Raises:
        ValueError: naming the file, and the tensor where there is one.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        if len(prefix) < 8:
            raise ValueError(f"{path}: {size} bytes are too few for a safetensors file; it is truncated")
        (header_bytes,) = struct.unpack("<Q", prefix)
        if header_bytes > min(size - 8, MAX_HEADER_BYTES):
            raise ValueError(
                f"{path}: the header claims {header_bytes} bytes of a file of {size}; "
                "the file is truncated or not a safetensors file"
            )
        header = parse_json_object(file.read(header_bytes), f"{path}: the header")
    metadata = header.pop(METADATA_KEY, {})
    if not isinstance(metadata, dict) or not all(type(value) is str for value in metadata.values()):
        raise ValueError(f"{path}: {METADATA_KEY} is {_short(metadata)}; expected an object from string to string")
    for name, entry in header.items():
        if not _is_entry(entry):
            raise ValueError(
                f"{path}: tensor {name!r} has the header entry {_short(entry)}; expected a dtype, a shape and two "
                "data_offsets; the file is damaged"
            )
    start, position = 8 + header_bytes, 0
    tensors = []
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        dtype, shape = entry["dtype"], tuple(entry["shape"])
        first, last = entry["data_offsets"]
        if dtype not in DTYPES:
            raise ValueError(
                f"{path}: tensor {name!r} has the dtype {dtype}; supported are {', '.join(DTYPES)} "
                "(quantised weights are not read: name the checkpoint they were made from)"
            )
        expected = math.prod(shape) * DTYPES[dtype][1]
        if first != position or last - first != expected:
            raise ValueError(
                f"{path}: tensor {name!r} claims bytes {first} to {last}; "
                f"expected {position} to {position + expected} for {dtype} {list(shape)}"
            )
        position = last
        tensors.append(
            StoredTensor(
                name=name,
                name_on_disk=name,
                file=path,
                dtype=dtype,
                shape=shape,
                offset=start + first,
                num_bytes=last - first,
            )
        )
    if start + position != size:
        raise ValueError(
            f"{path}: has {size} bytes, but its header describes {start + position}; the file is truncated or damaged"
        )
    return Header(metadata=metadata, tensors=tuple(tensors))


def parse_json_object(encoded: bytes, what: str) -> dict[str, Any]:
    """Parses a JSON object without duplicate names; Python's json silently keeps the last of two.

    Raises:
        ValueError: beginning with `what`.
    """
    doubled: list[str] = []

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        parsed = dict(pairs)
        if len(parsed) < len(pairs):
            doubled.extend(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        return parsed

    try:
        value = json.loads(encoded.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what} is not readable as JSON ({error}); the file is damaged") from error
    if not isinstance(value, dict):
        raise ValueError(f"{what} is a {type(value).__name__}; expected a JSON object; the file is damaged")
    if doubled:
        raise ValueError(f"{what} names {doubled[0]!r} twice; it is unclear which of the two is valid")
    return value


def _is_entry(entry: Any) -> bool:
    def are_counts(values: Any) -> bool:
        return (
            isinstance(values, list)
            and len(values) <= MAX_DIMENSIONS
            and all(type(value) is int and 0 <= value <= MAX_COUNT for value in values)
        )

    return (
        isinstance(entry, dict)
        and isinstance(entry.get("dtype"), str)
        and entry["dtype"].isidentifier()
        and are_counts(entry.get("shape"))
        and are_counts(entry.get("data_offsets"))
        and len(entry["data_offsets"]) == 2
        and math.prod(entry["shape"]) <= MAX_COUNT
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"


def num_bytes(entry: Entry) -> int:
    """Returns a tensor's size on disk in bytes."""
    _, dtype, shape = entry
    return math.prod(shape) * DTYPES[dtype][1]


def same_bytes(one: memoryview, other: memoryview) -> bool:
    """Compares chunk by chunk as bytes: ten times faster than comparing the views themselves."""
    return len(one) == len(other) and all(
        one[start : start + COMPARED_BYTES].tobytes() == other[start : start + COMPARED_BYTES].tobytes()
        for start in range(0, len(one), COMPARED_BYTES)
    )


def encode_header(entries: Iterable[Entry], metadata: Mapping[str, str] = METADATA) -> bytes:
    """Returns everything before the tensors' bytes, which must follow in the order of the entries."""
    header: dict[str, Any] = {METADATA_KEY: dict(metadata)} if metadata else {}
    offset = 0
    for entry in entries:
        name, dtype, shape = entry
        assert name not in header, name
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + num_bytes(entry)]}
        offset += num_bytes(entry)
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    return struct.pack("<Q", len(encoded)) + encoded


def write_safetensors(path: Path, entries: Sequence[Entry], data: Callable[[str], bytes | memoryview]) -> None:
    """Writes one safetensors file, one tensor at a time.

    Args:
        path: the file.
        entries: (name on disk, dtype, shape), in file order.
        data: returns a tensor's bytes by its name on disk; called once per tensor, in order.
    """
    with path.open("wb") as file:
        file.write(encode_header(entries))
        for entry in entries:
            content = data(entry[0])
            assert len(content) == num_bytes(entry), f"{entry}: {len(content)} bytes"
            file.write(content)
