"""What can be compared if two checkpoints differ in their vocabulary or head? Everything else, and the rows both have.

Tokens are added, padding rows are cut, and a head of its own is trained on a tied model. All of these change
`embed` and `head` only.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from models.checkpoint import (
    Checkpoint,
    carried_tensors,
    cast_bytes,
    check_same_tensors,
    is_tied_duplicate,
    without,
)
from models.shards import DTYPES
from train.freezing.freeze import FreezePlan

RESIZED = ("embed", "head")
"""The regions with one row per token."""


@dataclass(frozen=True, kw_only=True)
class Comparable:
    """The part of a plan that both checkpoints have with the same shapes, and what is left out."""

    plan: FreezePlan
    left_out: Mapping[str, str]
    """Tensor -> why it cannot be compared as a whole, and what its common rows show."""
    moved: bool
    """True if one of the tensors left out changed, or may have."""
    unproved: tuple[str, ...]
    """The tensors left out that the plan freezes."""


def comparable(start: Checkpoint, end: Checkpoint, plan: FreezePlan) -> Comparable:
    """Returns what can be compared tensor by tensor.

    Raises:
        ValueError: if the checkpoints differ in the names or shapes of other tensors than the embeddings and the head.
    """

    lost = {*carried_tensors(start)} ^ {*carried_tensors(end)}  # Transformers saves none of these

    def others(checkpoint: Checkpoint) -> Checkpoint:
        resized = {name for name in checkpoint.tensors if _region(checkpoint, name) in RESIZED}
        return without(checkpoint, resized | lost)

    check_same_tensors(others(start), others(end))
    found = {
        name: difference
        for name in sorted({*start.tensors, *end.tensors})
        if (_region(start, name) in RESIZED or name in lost) and (difference := _difference(start, end, name))
    }
    left_out = {name: why for name, (why, _) in found.items()}
    frozen = set(plan.frozen)
    head_counts = plan.layout.tied and any(_region(start, name) == "embed" for name in frozen)
    parameters = {
        name: parameter
        for name, parameter in plan.layout.parameters.items()
        if name not in left_out and name in end.tensors
    }
    reduced = replace(
        plan,
        layout=replace(plan.layout, parameters=parameters),
        frozen=tuple(name for name in plan.frozen if name in parameters),
        trainable=tuple(name for name in plan.trainable if name in parameters),
    )
    unread = {name for name in lost if _region(start, name) == "llm"}  # no layer reads them, in either model
    unproved = [
        name
        for name in left_out
        if (name in frozen and name not in unread) or (head_counts and _region(start, name) == "head")
    ]
    moved = any(moved for _, moved in found.values())
    return Comparable(plan=reduced, left_out=left_out, moved=moved, unproved=tuple(unproved))


def _region(checkpoint: Checkpoint, name: str) -> str:
    return checkpoint.family.place(name)[0]


def _difference(start: Checkpoint, end: Checkpoint, name: str) -> tuple[str, bool] | None:
    """Returns why a tensor cannot be compared as a whole, and whether it changed or may have; None if it can be.

    A tied head that is stored a second time needs no comparison.
    """
    if name not in start.tensors or name not in end.tensors:
        owner = start if name in start.tensors else end
        carried = name in carried_tensors(owner)  # lost, and nothing trained it
        return None if is_tied_duplicate(owner, name) else (f"only {owner.directory} has it", not carried)
    before, after = start.tensors[name].shape, end.tensors[name].shape
    if before == after:
        return None
    shapes = f"{list(before)} in {start.directory}, {list(after)} in {end.directory}"
    if len(before) != 2 or len(after) != 2 or before[1] != after[1]:
        return shapes, True
    rows = min(before[0], after[0])
    changed = _changed_rows(start, end, name, rows)
    return f"{shapes}; of the first {rows} rows, {changed} differ", changed > 0


def _changed_rows(start: Checkpoint, end: Checkpoint, name: str, num_rows: int) -> int:
    """Returns how many of a matrix's first rows differ in bits, in the start's dtype."""
    dtype = start.tensors[name].dtype
    bits = f"u{DTYPES[dtype][1]}"
    before, after = (
        np.frombuffer(cast_bytes(checkpoint, name, dtype), bits).reshape(checkpoint.tensors[name].shape)[:num_rows]
        for checkpoint in (start, end)
    )
    return int(np.count_nonzero((before != after).any(axis=1)))
