"""What is in a checkpoint's files? The reader and writer of safetensors checkpoints, bit-exact.

Headers are read without tensors; a tensor's bytes are a view of a memory map, in the stored dtype. Names are mapped to
one canonical spelling; the spelling on disk is kept too. Pickle files are rejected: weights are safetensors only.
Single safetensors files are read by `models/shards.py`.
"""

import hashlib
import mmap
import os
import re
import shutil
import warnings
from collections import Counter
from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.families import Family, family_of
from models.foreign import ADAPTER_CONFIG_FILE, CONFIG_FILE, SHARD, explain_folder
from models.layout import Layout, is_carried, layout_from_shapes, read_model_config
from models.shards import (
    DTYPES,
    FLOATING,
    StoredTensor,
    parse_json_object,
    read_header,
    same_bytes,
    write_safetensors,
)
from models.tying import is_tied

if TYPE_CHECKING:
    import torch

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
COMPANION_SUFFIXES = (".json", ".jinja", ".txt", ".model")
"""Files of a checkpoint that are not weights: configuration, tokenizer, processor, chat template, index."""
FILE_NAME = re.compile(r"[^/\\\x00-\x1f]+\.safetensors")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """An opened checkpoint folder; tensors are read on demand."""

    directory: Path
    family: Family
    config: dict[str, Any]
    tensors: dict[str, StoredTensor] = field(repr=False)
    """Keyed by canonical name, in file order."""
    _maps: dict[Path, mmap.mmap] = field(default_factory=dict, repr=False)

    def data(self, name: str) -> memoryview:
        """Returns a tensor's bytes as stored on disk, without a copy."""
        stored = self.tensors[name]
        return memoryview(self._map(stored))[stored.offset : stored.offset + stored.num_bytes]

    def tensor(self, name: str) -> "torch.Tensor":
        """Returns a tensor in its stored dtype and shape, as a copy."""
        import torch

        stored = self.tensors[name]
        dtype = getattr(torch, DTYPES[stored.dtype][0])
        if not stored.num_bytes:
            return torch.empty(stored.shape, dtype=dtype)
        content = bytearray(self.data(name))
        self.release(name)
        return torch.frombuffer(content, dtype=dtype).reshape(stored.shape)

    def view(self, name: str) -> "torch.Tensor":
        """Returns a flat view of a tensor in its stored dtype. Read-only: writing to it crashes the process."""
        import torch

        stored = self.tensors[name]
        dtype = getattr(torch, DTYPES[stored.dtype][0])
        if not stored.num_bytes:
            return torch.empty(0, dtype=dtype)
        warnings.filterwarnings("ignore", message="The given buffer is not writable", category=UserWarning)
        return torch.frombuffer(self.data(name), dtype=dtype)

    def release(self, name: str, first_byte: int = 0, last_byte: int | None = None) -> None:
        """Releases the memory taken by reading a tensor or some of its bytes; `data` and `view` stay valid.

        Pages read through a memory map count as memory of the process until they are released; otherwise a pass over a
        checkpoint would appear to use as much memory as the checkpoint's size.
        """
        stored = self.tensors[name]
        last_byte = stored.num_bytes if last_byte is None else last_byte
        first = (stored.offset + first_byte) // mmap.PAGESIZE * mmap.PAGESIZE
        self._map(stored).madvise(mmap.MADV_DONTNEED, first, stored.offset + last_byte - first)

    def _map(self, stored: StoredTensor) -> mmap.mmap:
        if stored.file not in self._maps:
            with stored.file.open("rb") as file:
                self._maps[stored.file] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return self._maps[stored.file]

    def sha256(self, name: str) -> str:
        """Returns the sha256 of a tensor's stored bytes."""
        digest = hashlib.sha256(self.data(name)).hexdigest()
        self.release(name)
        return digest

    def fingerprint(self) -> str:
        """Returns a fingerprint that tells a retrained checkpoint from an unchanged one without reading all of it.

        A sha256 over every tensor's name, dtype, shape and three samples of 4 KiB: enough to notice that a command's
        input has been replaced, but not a proof of equality.
        """
        digest = hashlib.sha256()
        with ExitStack() as stack:
            opened: dict[Path, int] = {}
            for name, stored in sorted(self.tensors.items()):
                if stored.file not in opened:
                    opened[stored.file] = stack.enter_context(stored.file.open("rb", buffering=0)).fileno()
                    # A memory map would read 128 KiB around each sample: ten times slower from a cold disk.
                    os.posix_fadvise(opened[stored.file], 0, 0, os.POSIX_FADV_RANDOM)
                digest.update(f"{name} {stored.dtype} {stored.shape}\n".encode())
                for start in (0, stored.num_bytes // 2, max(0, stored.num_bytes - 4096)):
                    size = min(4096, stored.num_bytes - start)
                    digest.update(os.pread(opened[stored.file], size, stored.offset + start))
        return digest.hexdigest()


def open_checkpoint(directory: Path) -> Checkpoint:
    """Opens a checkpoint folder and checks that its files are complete and consistent.

    Raises:
        ValueError: naming the file, and the tensor where there is one: for a missing folder, configuration or shard, a
            truncated file, an overlapping or misplaced tensor, an unknown dtype, dtypes that the family does not mix, a
            tensor that appears twice or fits nowhere, an inconsistent index, and for pickled, quantised or adapter
            weights.
    """
    if not directory.is_dir():
        raise ValueError(
            f"checkpoint {directory} does not exist; expected a folder with {CONFIG_FILE} and safetensors files"
        )
    config = read_model_config(directory)
    family = family_of(config["model_type"])
    indexed = _read_index(directory)
    paths = _weight_files(directory, indexed)
    if (directory / ADAPTER_CONFIG_FILE).is_file():
        raise ValueError(
            f"{directory} holds a full model and an adapter ({ADAPTER_CONFIG_FILE}), which Transformers would apply; "
            "move the adapter to a folder of its own, or merge it"
        )
    tensors: dict[str, StoredTensor] = {}
    for path in paths:
        for found in read_header(path).tensors:
            stored = replace(found, name=_canonical(found, family))
            if indexed is not None and indexed.get(stored.name_on_disk) != path.name:
                place = indexed.get(stored.name_on_disk)
                says = f"which {INDEX_FILE} {f'places in {place}' if place else 'does not name'}"
                raise ValueError(f"{path}: holds {stored.name_on_disk!r}, {says}")
            if stored.name in tensors:
                raise ValueError(
                    f"{path}: tensor {stored.name!r} appears twice, also in {tensors[stored.name].file.name}"
                )
            tensors[stored.name] = stored
    on_disk = {stored.name_on_disk for stored in tensors.values()}
    lacking = sorted(set(indexed or ()) - on_disk)
    if lacking:
        raise ValueError(f"{directory / INDEX_FILE}: names {lacking[0]!r}, which is in no file ({len(lacking)} such)")
    if not tensors:
        raise ValueError(f"{paths[0]}: contains no tensors; it was saved without its weights")
    checkpoint = Checkpoint(directory=directory, family=family, config=config, tensors=tensors)
    _check_dtypes(checkpoint)
    return checkpoint


def _canonical(found: StoredTensor, family: Family) -> str:
    """Returns a stored tensor's canonical name; raises if the family has no place for it."""
    name = family.canonical(found.name_on_disk)
    try:
        family.place(name)
    except ValueError as error:
        raise ValueError(f"{found.file}: {error}{_explain_prefix(found.name_on_disk, family)}") from error
    return name


def _explain_prefix(name: str, family: Family) -> str:
    """Explains a name that would fit without a wrapper's prefix."""
    parts = name.split(".")
    for first in range(1, len(parts) - 1):
        inner = ".".join(parts[first:])
        try:
            family.place(family.canonical(inner))
        except ValueError:
            continue
        return f"; without the prefix {name.removesuffix(inner)!r} it would: save the model itself, not its wrapper"
    return ""


def usual_dtype(checkpoint: Checkpoint) -> str:
    """Returns the dtype of most floating tensors, without those that the family keeps in fp32."""
    stored = list(checkpoint.tensors.values())
    floating = [one for one in stored if one.dtype in FLOATING and not checkpoint.family.keeps_float32(one.name)]
    return Counter(one.dtype for one in floating or stored).most_common(1)[0][0]


def kept_float32(checkpoint: Checkpoint) -> list[str]:
    """Returns the tensors in fp32 that stand among others of another dtype because the family keeps them so."""
    usual = usual_dtype(checkpoint)
    return [
        name
        for name, stored in checkpoint.tensors.items()
        if stored.dtype == "F32" != usual and checkpoint.family.keeps_float32(name)
    ]


def _check_dtypes(checkpoint: Checkpoint) -> None:
    """Rejects mixed floating dtypes other than the family's: Transformers 5.23 would round all tensors to one."""
    kept = set(kept_float32(checkpoint))
    floating = [stored for name, stored in checkpoint.tensors.items() if stored.dtype in FLOATING and name not in kept]
    counts = Counter(stored.dtype for stored in floating)
    if len(counts) < 2:
        return
    usual, number = counts.most_common(1)[0]
    odd = next(stored for stored in floating if stored.dtype != usual)
    widest = DTYPES[max(counts, key=lambda dtype: (DTYPES[dtype][1], dtype))][0]
    widest = "float32" if set(counts) == {"BF16", "F16"} else widest
    may = f" (of a {checkpoint.family.model_type}, only {' and '.join(checkpoint.family.float32)} may be F32)"
    raise ValueError(
        f"{odd.file}: tensor {odd.name_on_disk!r} is {odd.dtype}, {number} of {len(floating)} tensors are {usual}"
        f"{may if checkpoint.family.float32 else ''}; Transformers loads all in the dtype that {CONFIG_FILE} names and "
        "silently rounds the others; save the checkpoint in one dtype: "
        f"{checkpoint.family.auto_class}.from_pretrained({str(checkpoint.directory)!r}, dtype={widest!r})"
        ".save_pretrained(…)"
    )


def stored_layout(checkpoint: Checkpoint) -> Layout:
    """Returns the layout of the tensors in a checkpoint's files, without the duplicate of a tied head.

    Unlike `layout_of`, it builds no model, needs no torch, and sees only the tensors in the files.
    """
    tied = is_tied(checkpoint.config)
    shapes = {
        name: stored.shape
        for name, stored in checkpoint.tensors.items()
        if not (tied and is_tied_duplicate(checkpoint, name))
    }
    return layout_from_shapes(checkpoint.family, shapes, tied=tied, config=checkpoint.config)


def write_like(directory: Path, *, start: Checkpoint, weights: Checkpoint) -> None:
    """Writes `weights` in the start checkpoint's format: its dtypes, spellings and shards; its other files are copied.

    Tensors that no model has in memory (`Family.carried`) are the start's, if `weights` lacks them.

    Raises:
        ValueError: if the two do not contain the same tensors.
    """
    check_same_tensors(start, weights, carried=False)
    carried = {name for name in carried_tensors(start) if name not in weights.tensors}
    shards: dict[str, list[StoredTensor]] = {}
    for stored in start.tensors.values():
        shards.setdefault(stored.file.name, []).append(stored)
    for file_name, tensors in shards.items():
        canonical = {stored.name_on_disk: stored for stored in tensors}

        def data(name_on_disk: str, canonical: dict[str, StoredTensor] = canonical) -> bytes | memoryview:
            stored = canonical[name_on_disk]
            if stored.name in carried:
                return start.data(stored.name)
            # A tied head that only the start stores is written from the embedding matrix.
            source = stored.name if stored.name in weights.tensors else _embedding(weights)
            assert source is not None
            return cast_bytes(weights, source, stored.dtype)

        entries = [(stored.name_on_disk, stored.dtype, stored.shape) for stored in tensors]
        write_safetensors(directory / file_name, entries, data)
    for file in sorted(start.directory.iterdir()):
        if file.is_file() and file.suffix in COMPANION_SUFFIXES:
            shutil.copyfile(file, directory / file.name)


def carried_tensors(checkpoint: Checkpoint) -> list[str]:
    """Returns the tensors that Transformers does not load, such as Qwen3.5's `mtp`."""
    return [name for name in checkpoint.tensors if is_carried(checkpoint.config, checkpoint.family, name)]


def without(checkpoint: Checkpoint, names: Collection[str]) -> Checkpoint:
    """Returns a checkpoint that lacks some tensors."""
    kept = {name: stored for name, stored in checkpoint.tensors.items() if name not in names}
    return replace(checkpoint, tensors=kept)


def check_same_tensors(start: Checkpoint, other: Checkpoint, *, carried: bool = True) -> None:
    """Rejects two checkpoints whose tensors differ in name or shape; a tied duplicate with equal bytes is allowed.

    Args:
        start: one checkpoint.
        other: another.
        carried: if False, the other may lack tensors that no model has in memory.

    Raises:
        ValueError: naming the tensor and both checkpoints.
    """
    allowed = () if carried else carried_tensors(start)
    missing = [name for name in _unmatched(start, other) if name not in allowed]
    if missing:
        raise ValueError(f"{other.directory}: lacks {missing[0]!r}, which {start.directory} has ({len(missing)} such)")
    extra = _unmatched(other, start)
    if extra:
        raise ValueError(f"{other.directory}: has {extra[0]!r}, which {start.directory} lacks ({len(extra)} such)")
    for name, stored in start.tensors.items():
        if name in other.tensors and other.tensors[name].shape != stored.shape:
            raise ValueError(
                f"{other.directory}: {name!r} has the shape {list(other.tensors[name].shape)}; "
                f"expected {list(stored.shape)} as in {start.directory}"
            )


def _unmatched(one: Checkpoint, other: Checkpoint) -> list[str]:
    """Returns the tensors that only the first has, except tied duplicates."""
    return [name for name in sorted(set(one.tensors) - set(other.tensors)) if not is_tied_duplicate(one, name)]


def is_tied_duplicate(checkpoint: Checkpoint, name: str) -> bool:
    """True for a stored head whose bytes are the embedding matrix's (ZeRO-1 and ZeRO-2 write one)."""
    if checkpoint.family.place(name)[0] != "head":
        return False
    embed = _embedding(checkpoint)
    return embed is not None and same_bytes(checkpoint.data(name), checkpoint.data(embed))


def _embedding(checkpoint: Checkpoint) -> str | None:
    return next((name for name in checkpoint.tensors if checkpoint.family.place(name)[0] == "embed"), None)


def cast_bytes(checkpoint: Checkpoint, name: str, dtype: str) -> bytes | memoryview:
    """Returns a tensor's bytes in the given dtype: as stored if possible, else rounded once to nearest even."""
    if checkpoint.tensors[name].dtype == dtype:
        return checkpoint.data(name)
    import torch

    target = checkpoint.tensor(name).to(getattr(torch, DTYPES[dtype][0]))
    return target.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _read_index(directory: Path) -> dict[str, str] | None:
    path = directory / INDEX_FILE
    if not path.is_file():
        return None
    weight_map = parse_json_object(path.read_bytes(), str(path)).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(type(f) is str for f in weight_map.values()):
        raise ValueError(f"{path}: holds no weight_map; expected a file name for every tensor")
    for name, file in weight_map.items():
        if not FILE_NAME.fullmatch(file):
            raise ValueError(f"{path}: places {name!r} in {file!r}; expected a safetensors file in the same folder")
    return weight_map


def other_than_file(path: Path) -> str | None:
    """Returns what is in the place of a weights file: a link to nothing, or a folder; None if there is nothing."""
    if path.is_symlink() and not path.exists():
        return f"{path} is a link to {path.readlink()}, which does not exist; fetch the checkpoint again"
    return f"{path} is a folder; expected a safetensors file" if path.exists() else None


def _weight_files(directory: Path, indexed: dict[str, str] | None) -> list[Path]:
    """Returns the weights files; raises if one is missing or there are other files that look like weights."""
    names = sorted(set(indexed.values())) if indexed is not None else [WEIGHTS_FILE]
    for name in names:
        path = directory / name
        if path.is_file():
            continue
        if instead := other_than_file(path):
            raise ValueError(instead)
        if indexed is not None:
            raise ValueError(f"{directory / INDEX_FILE} names {name}, which does not exist")
        raise ValueError(
            explain_folder(directory) or f"{path} does not exist; expected {WEIGHTS_FILE} or shards with {INDEX_FILE}"
        )
    if indexed is not None and (directory / WEIGHTS_FILE).is_file() and WEIGHTS_FILE not in names:
        raise ValueError(
            f"{directory} holds both {WEIGHTS_FILE} and {INDEX_FILE}; Transformers loads the first and ignores the "
            "second: remove the stale one"
        )
    stale = sorted(path.name for path in directory.iterdir() if SHARD.fullmatch(path.name) and path.name not in names)
    if stale:
        says = f"{INDEX_FILE} does not name" if indexed is not None else "no index names"
        raise ValueError(
            f"{directory / stale[0]} is a shard that {says} ({len(stale)} such); Transformers ignores it: "
            "remove it, or the file that makes it stale"
        )
    return [directory / name for name in names]
