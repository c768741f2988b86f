"""Which parameters are frozen, and did they stay unchanged? Freezing by block expression, and its proof.

Frozen means bit-identical: each frozen tensor of each saved checkpoint, cast to the start checkpoint's stored dtype,
has the sha256 it had at the start.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool

from models.blocks import (
    ALL_REGIONS,
    BLOCKS,
    CARRIED_REGIONS,
    CUTS_ARGUMENT,
    PARTITION_ARGUMENT,
    Partition,
    block_names,
    check_expression,
    format_layers,
    make_partition,
    resolve,
)
from models.checkpoint import Checkpoint, cast_bytes
from models.layout import Layout, Parameter
from models.shards import DTYPES
from tracking.progress import progress, weighted_progress
from tracking.tables import format_columns
from train.freezing.element_words import parse_elements

if TYPE_CHECKING:
    import torch


ELEMENTS_NOTE = (
    "train_elements: of these parameters only the elements of a mask train; gradients and the optimizer's moments are "
    "kept for whole tensors"
)


@dataclass(frozen=True, kw_only=True)
class FreezeArguments:
    """The frozen blocks and elements. Everything else trains, including regions outside the decoder."""

    freeze: list[str] = field(
        default_factory=list,
        metadata={
            "help": "block expressions to freeze, such as mid or late.attn vision: early, mid, late, llm, llm:4, "
            "llm:0-8, vision, vision:0-7, projector, embed, norm or head; .attn or .mlp narrows decoder layers",
            "check": check_expression,
        },
    )
    train_only: list[str] = field(
        default_factory=list,
        metadata={
            "help": "block expressions of the only parts that train; everything else is frozen, regions too; not "
            "together with --freeze",
            "check": check_expression,
        },
    )
    always_freeze: list[str] = field(
        default_factory=list,
        metadata={
            "help": "block expressions that are frozen in every arm, such as vision projector",
            "check": check_expression,
        },
    )
    train_elements: list[str] = field(
        default_factory=list,
        metadata={
            "help": "of what is not frozen, the only elements that train: changed START END, those that differ between "
            "two checkpoints; unchanged START END, all others; random:SEED START END, as many of each tensor as "
            "differ, drawn at random",
        },
    )
    partition: str = field(
        default="thirds",
        metadata=PARTITION_ARGUMENT,
    )
    cuts: list[int] = field(
        default_factory=list,
        metadata=CUTS_ARGUMENT,
    )

    def __post_init__(self) -> None:
        if self.freeze and self.train_only:
            raise ValueError(
                f"freeze {self.freeze} and train_only {self.train_only} are both given; expected one of them"
            )
        if self.train_elements:
            parse_elements(self.train_elements)


@dataclass(frozen=True)
class FreezePlan:
    """Every parameter of a model, frozen or trainable."""

    layout: Layout
    partition: Partition
    frozen: tuple[str, ...]
    trainable: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def frozen_in_memory(self) -> tuple[str, ...]:
        """The frozen parameters that a model has; the others are only in files (`Family.carried`)."""
        carried = set(self.layout.carried)
        return tuple(name for name in self.frozen if name not in carried)


def plan_freeze(layout: Layout, arguments: FreezeArguments, *, leave_some: bool = True) -> FreezePlan:
    """Resolves the expressions against a model.

    Args:
        layout: the model's parameters.
        arguments: the expressions.
        leave_some: a run follows: something must be left to train, and what no run trains is frozen too.

    Raises:
        ValueError: for an unknown or unmatched expression, and if nothing would be left to train although it must.
    """
    if leave_some:
        _check_idle(layout, arguments)
    partition = make_partition(layout.num_layers, partition=arguments.partition, cuts=arguments.cuts)
    _check_trainable(arguments.train_only)
    always = resolve(arguments.always_freeze, layout, partition)
    if arguments.train_only:
        chosen = resolve(arguments.train_only, layout, partition)
        frozen = (set(layout.parameters) - set(chosen.names)) | set(always.names)
    else:
        chosen = resolve(arguments.freeze, layout, partition)
        frozen = set(chosen.names) | set(always.names)
    if leave_some:
        frozen |= {parameter.name for parameter in layout if never_trains(parameter, layout)}
    trainable = tuple(name for name in layout.parameters if name not in frozen)
    if leave_some and not trainable:
        raise ValueError(
            f"freeze {arguments.freeze}, train_only {arguments.train_only} and always_freeze "
            f"{arguments.always_freeze} leave nothing to train"
        )
    return FreezePlan(
        layout,
        partition,
        tuple(name for name in layout.parameters if name in frozen),
        trainable,
        (
            *chosen.notes,
            *always.notes,
            *_layout_notes(layout),
            *(_fixed_notes(layout) if leave_some else ()),
            *((ELEMENTS_NOTE,) if arguments.train_elements else ()),
        ),
    )


def never_trains(parameter: Parameter, layout: Layout) -> bool:
    """True for buffers, for regions that prompts of text and pictures never reach, and for what no model loads."""
    return parameter.buffer or parameter.carried or parameter.region in layout.family.idle_regions


def _check_idle(layout: Layout, arguments: FreezeArguments) -> None:
    for expression in arguments.train_only:
        region = expression.partition(".")[0]
        if region in layout.family.idle_regions:
            raise ValueError(
                f"train_only names {region!r}, which prompts of text and pictures never reach; expected other blocks"
            )


def _fixed_notes(layout: Layout) -> list[str]:
    """Returns notes on what no run trains."""
    buffers = [parameter.name.rpartition(".")[2] for parameter in layout if parameter.buffer]
    idle = [region for region in layout.family.idle_regions if any(p.region == region for p in layout)]
    notes = [f"{region}: prompts of text and pictures never reach it, so it is frozen" for region in idle]
    if buffers:
        notes.append(
            f"{len(buffers)} buffers ({', '.join(sorted(set(buffers)))}) belong to their blocks and train in no run; "
            "they are compared with what is frozen"
        )
    return notes


def _check_trainable(train_only: Sequence[str]) -> None:
    for expression in train_only:
        if expression in CARRIED_REGIONS:
            raise ValueError(
                f"train_only names {expression!r}, which Transformers does not load: no run can train it, leave it out"
            )


def _layout_notes(layout: Layout) -> list[str]:
    """Returns what a table of blocks does not show: kinds of layers, and tensors that no model loads."""
    notes = []
    if kinds := Counter(kind for kind in layout.layer_kinds if kind):
        rare = min(kinds, key=lambda kind: kinds[kind])
        layers = format_layers(index for index, kind in enumerate(layout.layer_kinds) if kind == rare)
        others = " and ".join(kind for kind in kinds if kind != rare)
        notes.append(f"decoder layers {layers} are {rare}" + (f", all others {others}" if others else ""))
    if layout.carried:
        regions = " and ".join(dict.fromkeys(layout.parameters[name].region for name in layout.carried))
        notes.append(f"{regions}: {len(layout.carried)} tensors that Transformers does not load; they stay as they are")
    return notes


def freeze_all(layout: Layout, arguments: FreezeArguments) -> FreezePlan:
    """Returns the plan in which every parameter is frozen; the arguments give the partition."""
    partition = make_partition(layout.num_layers, partition=arguments.partition, cuts=arguments.cuts)
    return FreezePlan(layout, partition, tuple(layout.parameters), (), ())


def apply_freeze(model: "torch.nn.Module", plan: FreezePlan) -> None:
    """Sets `requires_grad` of every parameter according to the plan."""
    frozen = set(plan.frozen_in_memory)
    names = dict(model.named_parameters())
    missing = {p.name for p in plan.layout if not p.buffer and not p.carried} ^ set(names)
    assert not missing, f"the model and its configuration disagree on {sorted(missing)[:3]}"
    for name, parameter in names.items():
        parameter.requires_grad_(name not in frozen)


@dataclass(frozen=True)
class BlockCount:
    """One line of the freeze table."""

    block: str
    layers: str
    num_tensors: int
    num_trainable_tensors: int
    num_elements: int
    num_trainable_elements: int

    @property
    def state(self) -> str:
        if self.num_trainable_tensors == 0:
            return "frozen"
        return "trains" if self.num_trainable_tensors == self.num_tensors else "trains in part"


def count_blocks(plan: FreezePlan) -> list[BlockCount]:
    """Returns tensors and parameters per block and region, trainable and total; without buffers."""
    trainable = set(plan.trainable)
    parameters: dict[str, list[Parameter]] = {}
    for parameter in plan.layout:
        parameters.setdefault(block_names(parameter, plan.partition), []).append(parameter)
    counts = []
    for block in (*BLOCKS, *ALL_REGIONS):
        unread = set(plan.layout.carried) if block in BLOCKS else set()
        members = [own for own in parameters.get(block, []) if not own.buffer and own.name not in unread]
        if not members:
            continue
        training = [p for p in members if p.name in trainable]
        counts.append(
            BlockCount(
                block,
                format_layers(plan.partition.layers(block)) if block in BLOCKS else "",
                len(members),
                len(training),
                sum(p.num_elements for p in members),
                sum(p.num_elements for p in training),
            )
        )
    return counts


def format_freeze_table(plan: FreezePlan) -> str:
    """Returns the table printed before the first step: block, layers, tensors, parameters, trainable or frozen."""
    rows = [("block", "layers", "tensors", "parameters", "trainable", "")]
    counts = count_blocks(plan)
    for count in counts:
        rows.append(
            (
                count.block,
                count.layers,
                str(count.num_tensors),
                f"{count.num_elements:,}",
                f"{count.num_trainable_elements:,}",
                count.state,
            )
        )
    rows.append(
        (
            "all",
            "",
            str(sum(c.num_tensors for c in counts)),
            f"{sum(c.num_elements for c in counts):,}",
            f"{sum(c.num_trainable_elements for c in counts):,}",
            "",
        )
    )
    return "\n".join([*format_columns(rows, right=(2, 3, 4)), *(f"note: {note}" for note in plan.notes)])


def frozen_digests(start: Checkpoint, names: Iterable[str]) -> dict[str, str]:
    """Returns the sha256 of each named tensor in the start checkpoint."""
    named = list(names)
    return {name: start.sha256(name) for name in progress(named, label="hashing the frozen tensors", unit="tensor")}


def find_breaches(start: Checkpoint, saved: Checkpoint, digests: dict[str, str]) -> list[str]:
    """Returns the frozen tensors of a saved checkpoint that have changed.

    A tensor saved in another dtype is cast to the start's dtype for the comparison.
    """
    return [
        name
        for name, digest in progress(list(digests.items()), label="comparing what is frozen", unit="tensor")
        if name not in saved.tensors
        or saved.tensors[name].shape != start.tensors[name].shape
        or hashlib.sha256(cast_bytes(saved, name, start.tensors[name].dtype)).hexdigest() != digest
    ]


@dataclass(frozen=True)
class TensorChange:
    """The change of one tensor between two checkpoints."""

    name: str
    block: str
    frozen: bool
    sha256_start: str
    sha256_end: str
    num_elements: int
    num_changed: int

    @property
    def changed_frac(self) -> float:
        return self.num_changed / self.num_elements if self.num_elements else 0.0


def differing(before: bytes | memoryview, after: bytes | memoryview, dtype: str) -> Bool[np.ndarray, " elements"]:
    """Returns which elements of a tensor differ bitwise, from its bytes in two checkpoints.

    Args:
        dtype: of both, as safetensors files name it.
    """
    width = f"u{DTYPES[dtype][1]}"
    found: Bool[np.ndarray, " elements"] = np.frombuffer(before, width) != np.frombuffer(after, width)
    return found


def compare_tensors(start: Checkpoint, end: Checkpoint, plan: FreezePlan) -> list[TensorChange]:
    """Yields per tensor its digests and the number of elements that differ bitwise, in the start's dtype."""
    frozen = set(plan.frozen)
    changes = []
    parameters = list(plan.layout)
    sizes = [parameter.num_elements for parameter in parameters]
    for parameter in weighted_progress(parameters, sizes, label=f"comparing {end.directory} with {start.directory}"):
        name = parameter.name
        before = start.data(name)
        after = cast_bytes(end, name, start.tensors[name].dtype)
        num_changed = int(np.count_nonzero(differing(before, after, start.tensors[name].dtype)))
        changes.append(
            TensorChange(
                name,
                block_names(parameter, plan.partition),
                name in frozen,
                hashlib.sha256(before).hexdigest(),
                hashlib.sha256(after).hexdigest(),
                parameter.num_elements,
                num_changed,
            )
        )
    return changes


def summarise_changes(changes: Sequence[TensorChange]) -> list[dict[str, Any]]:
    """Returns per block: tensors, frozen tensors, identical frozen tensors, and the share of changed elements."""
    summary = []
    for block in dict.fromkeys(change.block for change in changes):
        members = [change for change in changes if change.block == block]
        frozen = [change for change in members if change.frozen]
        num_elements = sum(change.num_elements for change in members)
        summary.append(
            {
                "block": block,
                "num_tensors": len(members),
                "num_frozen": len(frozen),
                "num_frozen_identical": sum(change.sha256_start == change.sha256_end for change in frozen),
                "num_elements": num_elements,
                "changed_frac": sum(change.num_changed for change in members) / num_elements,
            }
        )
    order = (*BLOCKS, *ALL_REGIONS)
    return sorted(summary, key=lambda row: order.index(row["block"]))


def broken_tensors(changes: Sequence[TensorChange]) -> list[str]:
    """Returns the frozen tensors whose bits differ."""
    return [change.name for change in changes if change.frozen and change.sha256_start != change.sha256_end]


def never_moved(changes: Sequence[TensorChange]) -> list[str]:
    """Returns the trainable tensors without any changed element."""
    return [change.name for change in changes if not change.frozen and change.num_changed == 0]
