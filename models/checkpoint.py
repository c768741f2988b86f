"""What stands in a checkpoint's files? The one reader and writer of safetensors checkpoints, exact to the bit.

Headers are read without tensors; a tensor's bytes are a view of a memory map, in the dtype they are stored in. Names
are mapped to one canonical spelling and the spelling on disk is remembered. Pickle files are refused: a model's weights
are safetensors only.

The file format (https://github.com/huggingface/safetensors): eight bytes, the header's length as a little-endian
integer; the header, a JSON object from name to `dtype`, `shape` and `data_offsets`; the tensors' bytes.
"""

import hashlib
import json
import math
import mmap
import shutil
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.families import Family, family_of
from models.layout import CONFIG_FILE, Layout, layout_from_shapes

if TYPE_CHECKING:
    import torch

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
COMPANION_SUFFIXES = (".json", ".jinja", ".txt", ".model")
"""Files of a checkpoint that are not weights: configuration, tokenizer, processor, chat template, index."""
MAX_HEADER_BYTES = 100_000_000
"""The limit of the reference implementation."""

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
"""Name in a safetensors header -> name in torch, bytes an element."""


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """Where one tensor stands on disk."""

    name: str
    """The canonical name."""
    name_on_disk: str
    file: Path
    dtype: str
    """As safetensors spells it, such as `BF16`."""
    shape: tuple[int, ...]
    offset: int
    """Of the first byte, in the file."""
    num_bytes: int


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """An opened checkpoint folder; no tensor is read until it is asked for."""

    directory: Path
    family: Family
    config: dict[str, Any]
    tensors: dict[str, StoredTensor] = field(repr=False)
    """By canonical name, in the order of the files."""
    _maps: dict[Path, mmap.mmap] = field(default_factory=dict, repr=False)

    def data(self, name: str) -> memoryview:
        """Returns a tensor's bytes as they stand on disk, without a copy."""
        stored = self.tensors[name]
        if stored.file not in self._maps:
            with stored.file.open("rb") as file:
                self._maps[stored.file] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return memoryview(self._maps[stored.file])[stored.offset : stored.offset + stored.num_bytes]

    def tensor(self, name: str) -> "torch.Tensor":
        """Returns a tensor in its stored dtype and shape, as a copy."""
        import torch

        stored = self.tensors[name]
        dtype = getattr(torch, DTYPES[stored.dtype][0])
        if not stored.num_bytes:
            return torch.empty(stored.shape, dtype=dtype)
        return torch.frombuffer(bytearray(self.data(name)), dtype=dtype).reshape(stored.shape)

    def sha256(self, name: str) -> str:
        """Returns the sha256 of a tensor's stored bytes."""
        return hashlib.sha256(self.data(name)).hexdigest()

    def fingerprint(self) -> str:
        """Tells a retrained checkpoint from an untouched one without reading all of it.

        A sha256 over every tensor's name, dtype, shape and three samples of 4 KiB: enough to notice that a command's
        input has been replaced, no proof of equality.
        """
        digest = hashlib.sha256()
        for name, stored in sorted(self.tensors.items()):
            digest.update(f"{name} {stored.dtype} {stored.shape}\n".encode())
            data = self.data(name)
            for start in (0, len(data) // 2, max(0, len(data) - 4096)):
                digest.update(data[start : start + 4096])
        return digest.hexdigest()


def open_checkpoint(directory: Path) -> Checkpoint:
    """Opens a checkpoint folder and checks that its files are whole and agree.

    Raises:
        ValueError: naming the file, and the tensor where there is one: for a missing folder, configuration or shard, a
            truncated file, an overlapping or misplaced tensor, an unknown dtype, a tensor that stands twice, an index
            that disagrees with its files, or pickled weights.
    """
    if not directory.is_dir():
        raise ValueError(
            f"checkpoint {directory} does not exist; expected a folder with {CONFIG_FILE} and safetensors files"
        )
    config_path = directory / CONFIG_FILE
    if not config_path.is_file():
        raise ValueError(f"{config_path} does not exist; expected the model's configuration beside its weights")
    config = _read_json(config_path)
    if "model_type" not in config:
        raise ValueError(f"{config_path} names no model_type; expected the configuration of a Transformers model")
    family = family_of(config["model_type"])
    tensors: dict[str, StoredTensor] = {}
    indexed = _read_index(directory)
    for path in _weight_files(directory, indexed, family):
        for name_on_disk, stored in _read_header(path, family):
            if indexed is not None and indexed.get(name_on_disk) != path.name:
                raise ValueError(
                    f"{path}: holds {name_on_disk!r}, which {INDEX_FILE} places in {indexed.get(name_on_disk)}"
                )
            if stored.name in tensors:
                raise ValueError(
                    f"{path}: tensor {stored.name!r} stands twice, also in {tensors[stored.name].file.name}"
                )
            tensors[stored.name] = stored
    on_disk = {stored.name_on_disk for stored in tensors.values()}
    lacking = sorted(set(indexed or ()) - on_disk)
    if lacking:
        raise ValueError(
            f"{directory / INDEX_FILE}: names {lacking[0]!r}, which stands in no file ({len(lacking)} such)"
        )
    return Checkpoint(directory=directory, family=family, config=config, tensors=tensors)


def stored_layout(checkpoint: Checkpoint) -> Layout:
    """Returns the layout of the tensors that stand in a checkpoint's files, a tied head's duplicate left out.

    Unlike `layout_of` it builds no model and needs no torch, and sees only what the files hold.
    """
    config = checkpoint.config
    tied = config.get("tie_word_embeddings", config.get("text_config", {}).get("tie_word_embeddings"))
    if type(tied) is not bool:  # older files leave it to the class's default; a model without a head of its own is tied
        tied = not any(checkpoint.family.place(name)[0] == "head" for name in checkpoint.tensors)
    shapes = {
        name: stored.shape
        for name, stored in checkpoint.tensors.items()
        if not (tied and is_tied_duplicate(checkpoint, name))
    }
    return layout_from_shapes(checkpoint.family, shapes, tied=tied)


def write_safetensors(
    path: Path, entries: Sequence[tuple[str, str, tuple[int, ...]]], data: Callable[[str], bytes | memoryview]
) -> None:
    """Writes one safetensors file, a tensor at a time.

    Args:
        path: the file.
        entries: (name on disk, dtype, shape) in the order they are to stand.
        data: returns a tensor's bytes by its name on disk; asked once for each, in order.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, dtype, shape in entries:
        num_bytes = math.prod(shape) * DTYPES[dtype][1]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + num_bytes]}
        offset += num_bytes
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)))
        file.write(encoded)
        for name, dtype, shape in entries:
            content = data(name)
            assert len(content) == math.prod(shape) * DTYPES[dtype][1], (
                f"{name}: {len(content)} bytes for {dtype} {shape}"
            )
            file.write(content)


def write_like(directory: Path, *, start: Checkpoint, weights: Checkpoint) -> None:
    """Writes `weights` as the start checkpoint is written: its dtypes, spellings and shards, its other files copied.

    Raises:
        ValueError: where the two do not hold the same tensors.
    """
    check_same_tensors(start, weights)
    shards: dict[str, list[StoredTensor]] = {}
    for stored in start.tensors.values():
        shards.setdefault(stored.file.name, []).append(stored)
    for file_name, tensors in shards.items():
        canonical = {stored.name_on_disk: stored for stored in tensors}

        def data(name_on_disk: str, canonical: dict[str, StoredTensor] = canonical) -> bytes | memoryview:
            stored = canonical[name_on_disk]
            # A tied head that only the start stores is written from the embedding matrix it duplicates.
            source = stored.name if stored.name in weights.tensors else _embedding(weights)
            assert source is not None
            return cast_bytes(weights, source, stored.dtype)

        entries = [(stored.name_on_disk, stored.dtype, stored.shape) for stored in tensors]
        write_safetensors(directory / file_name, entries, data)
    for file in sorted(start.directory.iterdir()):
        if file.is_file() and file.suffix in COMPANION_SUFFIXES:
            shutil.copyfile(file, directory / file.name)


def check_same_tensors(start: Checkpoint, other: Checkpoint) -> None:
    """Refuses two checkpoints whose tensors differ in name or shape; a tied duplicate of equal bytes is allowed."""
    missing = _unmatched(start, other)
    if missing:
        raise ValueError(f"{other.directory}: lacks {missing[0]!r}, which {start.directory} has ({len(missing)} such)")
    extra = _unmatched(other, start)
    if extra:
        raise ValueError(f"{other.directory}: has {extra[0]!r}, which {start.directory} has not ({len(extra)} such)")
    for name, stored in start.tensors.items():
        if name in other.tensors and other.tensors[name].shape != stored.shape:
            raise ValueError(
                f"{other.directory}: {name!r} has the shape {list(other.tensors[name].shape)}; "
                f"expected {list(stored.shape)} as in {start.directory}"
            )


def _unmatched(one: Checkpoint, other: Checkpoint) -> list[str]:
    """Returns the tensors that only the first has, tied duplicates aside."""
    return [name for name in sorted(set(one.tensors) - set(other.tensors)) if not is_tied_duplicate(one, name)]


def is_tied_duplicate(checkpoint: Checkpoint, name: str) -> bool:
    """True for a stored head whose bytes are the embedding matrix's (ZeRO-1 and ZeRO-2 write one)."""
    embed = _embedding(checkpoint)
    is_head = checkpoint.family.place(name)[0] == "head"
    return is_head and embed is not None and checkpoint.data(name) == checkpoint.data(embed)


def _embedding(checkpoint: Checkpoint) -> str | None:
    return next((name for name in checkpoint.tensors if checkpoint.family.place(name)[0] == "embed"), None)


def cast_bytes(checkpoint: Checkpoint, name: str, dtype: str) -> bytes | memoryview:
    """Returns a tensor's bytes in the named dtype: as stored where it has it, else rounded once (to nearest even)."""
    if checkpoint.tensors[name].dtype == dtype:
        return checkpoint.data(name)
    import torch

    target = checkpoint.tensor(name).to(getattr(torch, DTYPES[dtype][0]))
    return target.contiguous().view(torch.uint8).numpy().tobytes()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not readable as JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__}; expected a JSON object")
    return value


def _read_index(directory: Path) -> dict[str, str] | None:
    path = directory / INDEX_FILE
    if not path.is_file():
        return None
    weight_map = _read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(type(f) is str for f in weight_map.values()):
        raise ValueError(f"{path}: holds no weight_map; expected a file name for every tensor")
    if (directory / WEIGHTS_FILE).is_file() and WEIGHTS_FILE not in weight_map.values():
        raise ValueError(
            f"{directory} holds both {WEIGHTS_FILE} and {INDEX_FILE}; Transformers loads the first and passes over the "
            "second: remove the stale one"
        )
    return weight_map


def _weight_files(directory: Path, indexed: dict[str, str] | None, family: Family) -> list[Path]:
    names = sorted(set(indexed.values())) if indexed is not None else [WEIGHTS_FILE]
    for name in names:
        path = directory / name
        if path.is_file():
            continue
        if indexed is not None:
            raise ValueError(f"{directory / INDEX_FILE} names {name}, which does not exist")
        pickled = sorted(file.name for file in directory.glob("*.bin"))
        if pickled:
            raise ValueError(
                f"{directory} holds pickled weights ({pickled[0]}), which can run code; convert them once, where you "
                f"trust them: {family.auto_class}.from_pretrained(...).save_pretrained(...)"
            )
        raise ValueError(f"{path} does not exist; expected {WEIGHTS_FILE} or shards with {INDEX_FILE}")
    return [directory / name for name in names]


def _is_entry(entry: Any) -> bool:
    def are_counts(values: Any) -> bool:
        return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)

    return (
        isinstance(entry, dict)
        and isinstance(entry.get("dtype"), str)
        and are_counts(entry.get("shape"))
        and are_counts(entry.get("data_offsets"))
        and len(entry["data_offsets"]) == 2
    )


def _read_header(path: Path, family: Family) -> Iterator[tuple[str, StoredTensor]]:
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        if len(prefix) < 8:
            raise ValueError(f"{path}: {size} bytes are too few for a safetensors file; it is truncated")
        (header_bytes,) = struct.unpack("<Q", prefix)
        if header_bytes > min(size - 8, MAX_HEADER_BYTES):
            raise ValueError(
                f"{path}: the header claims {header_bytes} bytes of a file of {size}; "
                "the file is truncated or no safetensors file"
            )
        try:
            header = json.loads(file.read(header_bytes))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: the header is not readable as JSON ({error}); the file is damaged") from error
    if not isinstance(header, dict):
        raise ValueError(
            f"{path}: the header is a {type(header).__name__}; expected a JSON object; the file is damaged"
        )
    header.pop("__metadata__", None)
    for name_on_disk, entry in header.items():
        if not _is_entry(entry):
            raise ValueError(
                f"{path}: tensor {name_on_disk!r} has the header entry {entry!r}; expected a dtype, a shape and two "
                "data_offsets; the file is damaged"
            )
    start = 8 + header_bytes
    position = 0
    for name_on_disk, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        dtype, shape = entry["dtype"], tuple(entry["shape"])
        first, last = entry["data_offsets"]
        if dtype not in DTYPES:
            raise ValueError(
                f"{path}: tensor {name_on_disk!r} has the dtype {dtype}; supported are {', '.join(DTYPES)}"
            )
        expected = math.prod(shape) * DTYPES[dtype][1]
        if first != position or last - first != expected:
            raise ValueError(
                f"{path}: tensor {name_on_disk!r} claims bytes {first} to {last}; "
                f"expected {position} to {position + expected} for {dtype} {list(shape)}"
            )
        position = last
        yield (
            name_on_disk,
            StoredTensor(
                name=family.canonical(name_on_disk),
                name_on_disk=name_on_disk,
                file=path,
                dtype=dtype,
                shape=shape,
                offset=start + first,
                num_bytes=last - first,
            ),
        )
    if start + position != size:
        raise ValueError(
            f"{path}: has {size} bytes, its header describes {start + position}; the file is truncated or damaged"
        )
