"""Which elements of a tensor train? A mask per tensor, from the elements that changed between two checkpoints.

RL changes a subnetwork: most elements of a model are bit-identical before and after (arXiv 2505.11711). Three masks
ask whether these elements matter:

    changed START END       the elements that differ between two checkpoints train
    unchanged START END     their complement
    random:SEED START END   as many elements of each tensor, drawn at random: the control

The two checkpoints are read tensor by tensor. The run's folder has the mask, one bit per element:

    OUTPUT/elements.json           what was asked for, the number of trained elements per tensor, a sha256
    OUTPUT/elements.safetensors    the bits of tensors that train in part (least significant bit first)

A tensor without a trained element is frozen like any other. One whose elements all train needs no mask.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from models.checkpoint import Checkpoint, cast_bytes, check_same_tensors, open_checkpoint
from models.loading import local_checkpoint
from models.shards import DTYPES, read_header, write_safetensors
from tracking.product import write_text
from tracking.progress import weighted_progress
from train.freezing.element_words import parse_elements
from train.freezing.freeze import FreezePlan, differing

MASK_FILE, BITS_FILE = "elements.json", "elements.safetensors"
CHUNK = 1 << 20
"""Elements drawn at a time; a multiple of 8."""
Bits = np.ndarray[Any, np.dtype[np.uint8]]
Bools = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True, kw_only=True)
class ElementMask:
    """The elements that train, of every tensor that the mask is about."""

    request: tuple[str, ...]
    counts: Mapping[str, int]
    """Tensor -> number of trained elements."""
    sizes: Mapping[str, int]
    """Tensor -> number of elements."""
    other_start: bool
    """True if the run starts from another checkpoint than the pair."""
    bits: Mapping[str, Bits] = field(repr=False)
    """Tensor that trains in part -> one bit per element, least significant first."""

    @property
    def sha256(self) -> str:
        """The sha256 of all names, counts and bits."""
        digest = hashlib.sha256()
        for name, count in sorted(self.counts.items()):
            digest.update(f"{name} {count} {self.sizes[name]}\n".encode())
            if name in self.bits:
                digest.update(self.bits[name].tobytes())
        return digest.hexdigest()

    def frozen(self, name: str) -> Bools:
        """Returns which elements of a tensor stay as they are, flat."""
        if name in self.bits:
            trained = np.unpackbits(self.bits[name], count=self.sizes[name], bitorder="little")
            frozen: Bools = trained == 0
            return frozen
        return np.full(self.sizes[name], self.counts[name] == 0)

    def as_row(self) -> dict[str, Any]:
        """Returns what reports say about the mask."""
        trained = [name for name, count in self.counts.items() if count]
        return {
            "train_elements": list(self.request),
            "sha256": self.sha256,
            "num_trained_elements": sum(self.counts.values()),
            "num_elements_in_optimizer": sum(self.sizes[name] for name in trained),
            "num_tensors": len(trained),
            "num_tensors_without": len(self.counts) - len(trained),
            "pair_has_another_start": self.other_start,
        }


def build_mask(words: Sequence[str], start: Checkpoint, plan: FreezePlan) -> ElementMask:
    """Compares the two checkpoints of a request, tensor by tensor, in the stored dtype of the first.

    Args:
        words: the request.
        start: the checkpoint that the run starts from.
        plan: the blocks that the run freezes; only tensors that train get a mask.

    Raises:
        ValueError: if the checkpoints differ in a tensor's name or shape, or no element would train.
    """
    request = parse_elements(words)
    before, after = (open_checkpoint(local_checkpoint(name)) for name in (request.start, request.end))
    for other in (before, after):
        check_same_tensors(start, other, carried=False)
    sizes = {name: plan.layout.parameters[name].num_elements for name in plan.trainable}
    counts, bits = {}, {}
    for name in weighted_progress(list(sizes), list(sizes.values()), label="comparing elements"):
        trained = _differing(before, after, name)
        if request.kind == "unchanged":
            trained = ~trained
        counts[name] = int(np.count_nonzero(trained))
        if 0 < counts[name] < sizes[name]:
            bits[name] = np.packbits(trained, bitorder="little")
            if request.kind == "random":
                bits[name] = _draw(name, counts[name], sizes[name], request.seed or 0)
        before.release(name)
        after.release(name)
    if not any(counts.values()):
        what = "all of them differ" if request.kind == "unchanged" else "none differs"
        raise ValueError(
            f"train_elements {' '.join(words)} leaves no element to train: of the {sum(sizes.values()):,} elements in "
            f"what is not frozen, {what} between the two checkpoints"
        )
    other_start = before.fingerprint() != start.fingerprint()
    return ElementMask(request=tuple(words), counts=counts, sizes=sizes, other_start=other_start, bits=bits)


def _differing(before: Checkpoint, after: Checkpoint, name: str) -> Bools:
    dtype = before.tensors[name].dtype
    return differing(before.data(name), cast_bytes(after, name, dtype), dtype)


def _draw(name: str, count: int, size: int, seed: int) -> Bits:
    """Draws elements without replacement: how many fall into each chunk, then which of it."""
    own = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    random = np.random.default_rng([seed, own])
    parts, left = [], count
    for first in range(0, size, CHUNK):
        length = min(CHUNK, size - first)
        rest = size - first - length
        here = int(random.hypergeometric(length, rest, left)) if rest else left
        chosen = np.zeros(length, bool)
        chosen[random.choice(length, here, replace=False, shuffle=False)] = True
        parts.append(np.packbits(chosen, bitorder="little"))
        left -= here
    return np.concatenate(parts)


def masked_plan(plan: FreezePlan, mask: ElementMask) -> FreezePlan:
    """Freezes the tensors without a trained element, and notes what trains and what the optimizer keeps."""
    row = mask.as_row()
    still = {name for name, count in mask.counts.items() if not count}
    frozen = still.union(plan.frozen)
    notes = [
        f"train_elements {' '.join(mask.request)}: {row['num_trained_elements']:,} of "
        f"{sum(mask.sizes.values()):,} elements train, in {row['num_tensors']} tensors; {len(still)} tensors without "
        "one are frozen",
        f"the optimizer's moments have {row['num_elements_in_optimizer']:,} elements each: those of whole tensors",
    ]
    if mask.other_start:
        notes.append("the pair of train_elements starts from another checkpoint than this run")
    return replace(
        plan,
        frozen=tuple(name for name in plan.layout.parameters if name in frozen),
        trainable=tuple(name for name in plan.trainable if name not in still),
        notes=(*plan.notes, *notes),
    )


def write_mask(directory: Path, mask: ElementMask) -> None:
    """Writes a mask's two files, the description last."""
    partial = directory / f".partial-{BITS_FILE}"
    write_safetensors(partial, [(name, "U8", bits.shape) for name, bits in mask.bits.items()],
                      lambda name: mask.bits[name].tobytes())  # fmt: skip
    partial.rename(directory / BITS_FILE)
    described = {**mask.as_row(), "counts": dict(mask.counts), "sizes": dict(mask.sizes)}
    write_text(directory / MASK_FILE, json.dumps(described, indent=1) + "\n")


def read_mask(path: Path) -> ElementMask:
    """Reads a mask from the `elements.json` of a run.

    Raises:
        ValueError: if a file is missing or damaged.
    """
    try:
        row = json.loads(path.read_text(encoding="utf-8"))
        stored = {one.name: one for one in read_header(path.with_name(BITS_FILE)).tensors}
        with path.with_name(BITS_FILE).open("rb") as file:
            mask = ElementMask(
                request=tuple(row["train_elements"]),
                counts=row["counts"],
                sizes=row["sizes"],
                other_start=row["pair_has_another_start"],
                bits={name: _read_bits(file, one) for name, one in stored.items()},
            )
    except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} and {BITS_FILE} beside it cannot be read as the mask of a run ({error})") from None
    if mask.sha256 != row["sha256"]:
        raise ValueError(f"{path}: the mask has the sha256 {mask.sha256}, expected {row['sha256']}; it is damaged")
    return mask


def _read_bits(file: Any, stored: Any) -> Bits:
    file.seek(stored.offset)
    return np.frombuffer(file.read(stored.num_bytes), np.uint8)


def find_element_breaches(start: Checkpoint, saved: Checkpoint, mask: ElementMask) -> dict[str, int]:
    """Returns tensor -> number of frozen elements that differ bitwise, for tensors where any does.

    The wider of the two stored dtypes is rounded to the narrower one.
    """
    breaches = {}
    sizes = [mask.sizes[name] for name in mask.counts]
    unknown = sorted(set(mask.counts) - set(start.tensors))
    if unknown:
        raise ValueError(
            f"the mask is about {unknown[0]!r}, which {start.directory} lacks; expected its own checkpoint"
        )
    for name in weighted_progress(list(mask.counts), sizes, label="comparing frozen elements"):
        if mask.counts[name] == mask.sizes[name]:
            continue
        if name not in saved.tensors or saved.tensors[name].shape != start.tensors[name].shape:
            breaches[name] = mask.sizes[name] - mask.counts[name]
            continue
        dtype = min((one.tensors[name].dtype for one in (start, saved)), key=lambda dtype: DTYPES[dtype][1])
        one, other = (cast_bytes(own, name, dtype) for own in (start, saved))
        num_changed = int(np.count_nonzero(differing(one, other, dtype) & mask.frozen(name)))
        if num_changed:
            breaches[name] = num_changed
    return breaches


def format_breaches(breaches: Mapping[str, int]) -> Iterator[str]:
    """Yields a line per tensor whose frozen elements changed."""
    for name, count in breaches.items():
        yield f"{name} ({count:,} frozen elements changed)"
