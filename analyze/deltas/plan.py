"""Which checkpoints are compared with which? The phases of a comparison, checked before anything is measured."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from models.adapters.changes import is_adapted
from models.adapters.merged import MergedCheckpoint
from models.adapters.opening import merge_adapter_of, open_model, other_base
from models.adapters.reading import LowRank, is_adapter
from models.blocks import Partition, block_names, make_partition
from models.checkpoint import Checkpoint, carried_tensors, check_same_tensors, without
from models.completeness import check_against_config, check_complete
from models.layout import Layout, Parameter, layout_of
from models.loading import local_checkpoint

SFT_PHASE, RL_PHASE = "sft", "rl"


@dataclass(frozen=True)
class Phase:
    """One difference, end - start, under a name and, for an arm, a seed."""

    name: str
    seed: str
    start: int
    """Its checkpoint's number among those that are open."""
    end: int

    @property
    def labels(self) -> dict[str, str]:
        return {"phase": self.name, "seed": self.seed}

    def __str__(self) -> str:
        return f"{self.name}@{self.seed}" if self.seed else self.name


@dataclass(frozen=True, kw_only=True)
class DeltaPlan:
    """What is compared with what."""

    checkpoints: list[Checkpoint]
    phases: list[Phase]
    layout: Layout
    partition: Partition
    notes: tuple[str, ...] = ()
    """Notes for the user: about adapters, and what the comparison leaves out."""

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Phases whose directions are compared: SFT's with each of RL's, and the first of RL's with the others."""
        sft = [number for number, phase in enumerate(self.phases) if phase.end == 0]
        rl = [number for number in range(len(self.phases)) if number not in sft]
        return [*((first, second) for first in sft for second in rl), *((rl[0], second) for second in rl[1:])]

    def place(self, parameter: Parameter) -> dict[str, Any]:
        """Where a table files a tensor."""
        return {
            "block": block_names(parameter, self.partition),
            "region": parameter.region,
            "layer": parameter.index,
            "tensor": parameter.name,
        }


def plan_phases(start: str, ends: Sequence[str], base: str | None, *, partition: str, cuts: Sequence[int]) -> DeltaPlan:
    """Opens the checkpoints, checks that they fit each other and their configuration, and pairs them up.

    An adapter at the end of a phase is taken to be on the checkpoint at the phase's start, whatever its configuration
    names. Only where that start is an adapter itself, the configurations name both bases.

    Args:
        start: checkpoint at the start of RL.
        ends: checkpoints after RL, as CHECKPOINT (one alone), NAME=CHECKPOINT or NAME@SEED=CHECKPOINT.
        base: checkpoint at the start of SFT; adds the phase sft - base.
        partition: name of the partition into blocks.
        cuts: of the partition, in place of its name.

    Raises:
        ValueError: if a name is missing or repeated, or a checkpoint does not fit the others.
    """
    before = open_model(base) if base else None
    checkpoints = [_open_end(start, before)]
    phases = []
    if before is not None:
        checkpoints.append(before)
        phases.append(Phase(SFT_PHASE, "", 1, 0))
    for entry in ends:
        label, separator, checkpoint = entry.partition("=")
        if not separator and len(ends) == 1:
            label, checkpoint = RL_PHASE, entry
        name, _, seed = label.partition("@")
        if not checkpoint or not name:
            raise ValueError(
                f"--rl {entry!r} is no NAME=CHECKPOINT, such as full@0=outputs/arms/full-seed0/final; "
                "one checkpoint alone needs no name"
            )
        phases.append(Phase(name, seed, 0, len(checkpoints)))
        checkpoints.append(_open_end(checkpoint, checkpoints[0]))
    names = [str(phase) for phase in phases]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{name!r} is named twice; expected each phase or arm once with each seed")
    lost = _lost(checkpoints)
    checkpoints = [without(opened, lost) for opened in checkpoints]
    layout = layout_of(checkpoints[0].directory)
    layout = replace(layout, parameters={name: own for name, own in layout.parameters.items() if name not in lost})
    check_complete(checkpoints[0], layout)
    for opened in checkpoints[1:]:
        check_against_config(opened)
        check_same_tensors(checkpoints[0], opened)
        check_complete(opened, layout)
    layout = measurable(layout, checkpoints)
    blocks = make_partition(layout.num_layers, partition=partition, cuts=cuts)
    note = f"not compared: {len(lost)} tensors that not all checkpoints have, the first is {min(lost, default='')}"
    notes = (*(note for phase in phases for note in _notes(phase, checkpoints)), *((note,) if lost else ()))
    return DeltaPlan(checkpoints=checkpoints, phases=phases, layout=layout, partition=blocks, notes=notes)


def _open_end(name: str, start: Checkpoint | None) -> Checkpoint:
    """Opens the end of a phase; an adapter is merged into the phase's start, unless that is an adapter too."""
    directory = local_checkpoint(name)
    if start is None or isinstance(start, MergedCheckpoint) or not is_adapter(directory):
        return open_model(name)
    return merge_adapter_of(directory, start)


def _notes(phase: Phase, checkpoints: Sequence[Checkpoint]) -> Iterator[str]:
    """Yields what a reader must know about a phase that an adapter makes."""
    start, end = checkpoints[phase.start], checkpoints[phase.end]
    if not isinstance(end, MergedCheckpoint):
        return
    if warning := other_base(end):
        yield f"{phase}: {warning}"
    if not is_adapted(start, end):
        yield f"{phase}: {end.adapter.directory} is an adapter on another base, so its merged weights are compared"
        return
    rescaled = [
        update.name
        for update in end.adapter.updates.values()
        if isinstance(update, LowRank) and update.magnitude is not None
    ]
    if rescaled:
        yield (
            f"{phase}: DoRA rescales the rows of {len(rescaled)} weights, so their change is not of low rank; it is "
            "that of the merged weights, rounded"
        )
    else:
        yield (
            f"{phase}: an adapter: its change s·B·A is exact, and its null is left out, because no shuffled matrix is "
            "of low rank; the columns merged_… say what merging leaves of it"
        )


def _lost(checkpoints: Sequence[Checkpoint]) -> set[str]:
    """Returns the tensors that Transformers does not load, and so does not save, where some checkpoint lacks them."""
    held = [set(carried_tensors(opened)) for opened in checkpoints]
    return held[0].union(*held) - held[0].intersection(*held)


def measurable(layout: Layout, checkpoints: Sequence[Checkpoint]) -> Layout:
    """Leaves out infinite buffers that are the same everywhere: a clip bound without a limit has no size to compare."""
    kept = {
        parameter.name: parameter
        for parameter in layout
        if not (parameter.buffer and _is_one_infinity(parameter.name, checkpoints))
    }
    return replace(layout, parameters=kept)


def _is_one_infinity(name: str, checkpoints: Sequence[Checkpoint]) -> bool:
    first, *others = checkpoints
    return bool(first.tensor(name).isinf().all()) and all(
        first.tensors[name].dtype == other.tensors[name].dtype and first.data(name) == other.data(name)
        for other in others
    )
