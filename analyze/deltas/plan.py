"""Which checkpoints are compared with which? The phases of a comparison, checked before anything is measured."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from models.blocks import Partition, block_names, make_partition
from models.checkpoint import Checkpoint, check_same_tensors, open_checkpoint
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

    Args:
        start: checkpoint at the start of RL.
        ends: checkpoints after RL, as CHECKPOINT (one alone), NAME=CHECKPOINT or NAME@SEED=CHECKPOINT.
        base: checkpoint at the start of SFT; adds the phase sft - base.
        partition: name of the partition into blocks.
        cuts: of the partition, in place of its name.

    Raises:
        ValueError: if a name is missing or repeated, or a checkpoint does not fit the others.
    """
    checkpoints = [open_checkpoint(local_checkpoint(start))]
    phases = []
    if base:
        checkpoints.append(open_checkpoint(local_checkpoint(base)))
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
        checkpoints.append(open_checkpoint(local_checkpoint(checkpoint)))
    names = [str(phase) for phase in phases]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{name!r} is named twice; expected each phase or arm once with each seed")
    layout = layout_of(checkpoints[0].directory)
    check_complete(checkpoints[0], layout)
    for opened in checkpoints[1:]:
        check_against_config(opened)
        check_same_tensors(checkpoints[0], opened)
        check_complete(opened, layout)
    layout = _measurable(layout, checkpoints)
    blocks = make_partition(layout.num_layers, partition=partition, cuts=cuts)
    return DeltaPlan(checkpoints=checkpoints, phases=phases, layout=layout, partition=blocks)


def _measurable(layout: Layout, checkpoints: Sequence[Checkpoint]) -> Layout:
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
