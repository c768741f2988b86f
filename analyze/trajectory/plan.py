"""Which checkpoints form a trajectory? Runs with kept steps, or named checkpoints, opened and checked."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merge.trajectories.restored import open_trajectory
from models.adapters.opening import open_model
from models.blocks import Partition, block_names, make_partition
from models.checkpoint import Checkpoint, check_same_tensors
from models.layout import Layout, Parameter, layout_of

FEWEST_STEPS = 2
NOTHING_GIVEN = "no trajectory is given; expected RUN …, or --start with --checkpoints NAME:STEP=CHECKPOINT …"
_STEP = re.compile(r"(?P<name>[^@:=]+)(?:@(?P<seed>[^@:=]+))?:(?P<step>\d+)=(?P<checkpoint>.+)")
_RUN = re.compile(r"(?P<name>[^@=/]+)(?:@(?P<seed>[^@=/]+))?=(?P<run>.+)")
_ARM = re.compile(r"(?P<name>.+)-seed(?P<seed>\d+)")


@dataclass(frozen=True, kw_only=True)
class Series:
    """The kept steps of one run."""

    name: str
    seed: str
    start: Checkpoint
    steps: tuple[int, ...]
    """Ascending."""
    ends: tuple[Checkpoint, ...]

    @property
    def label(self) -> str:
        return f"{self.name}@{self.seed}" if self.seed else self.name


@dataclass(frozen=True, kw_only=True)
class TrajectoryPlan:
    """What is measured."""

    series: list[Series]
    base: Checkpoint | None
    """The start of SFT, whose change is start - base."""
    layout: Layout
    partition: Partition

    @property
    def parameters(self) -> list[Parameter]:
        """The parameters of the model; buffers and tensors that no model loads train in no run."""
        return [parameter for parameter in self.layout if not parameter.buffer and not parameter.carried]

    def place(self, name: str) -> dict[str, Any]:
        """Where the tables file a tensor."""
        parameter = self.layout.parameters[name]
        return {
            "block": block_names(parameter, self.partition),
            "region": parameter.region,
            "layer": parameter.index,
            "tensor": name,
        }


def check_entry(text: str) -> None:
    """Refuses a named step that has not the form NAME@SEED:STEP=CHECKPOINT.

    Raises:
        ValueError: with the form.
    """
    if _STEP.fullmatch(text) is None:
        raise ValueError(
            f"--checkpoints {text!r} is no NAME:STEP=CHECKPOINT or NAME@SEED:STEP=CHECKPOINT, such as "
            "full@0:20=outputs/arms/full-seed0/checkpoints/checkpoint-20"
        )


def make_trajectory_plan(
    runs: Sequence[str],
    checkpoints: Sequence[str],
    *,
    start: str | None,
    base: str | None,
    partition: str,
    cuts: Sequence[int],
) -> TrajectoryPlan:
    """Opens everything that is measured.

    Args:
        runs: output directories of runs with keep_trajectory, as RUN, NAME=RUN or NAME@SEED=RUN.
        checkpoints: steps, as NAME:STEP=CHECKPOINT or NAME@SEED:STEP=CHECKPOINT.
        start: the checkpoint that the runs began from; required by `checkpoints`.
        base: the start of SFT.
        partition: name of the partition into blocks.
        cuts: of the partition, in place of its name.

    Raises:
        ValueError: if nothing is named, a name is repeated, or a checkpoint does not fit its start.
    """
    series = [_open_run(entry, start) for entry in runs] + _open_checkpoints(checkpoints, start)
    if not series:
        raise ValueError(NOTHING_GIVEN)
    labels = [each.label for each in series]
    for label in labels:
        if labels.count(label) > 1:
            raise ValueError(f"{label!r} is named twice; expected NAME@SEED=RUN with another name or seed")
    first = series[0].start
    for each in series:
        if len(each.steps) < FEWEST_STEPS:
            raise ValueError(f"{each.label} has one step, {each.steps[0]}; a trajectory needs at least {FEWEST_STEPS}")
        check_same_tensors(first, each.start, carried=False)
    opened = open_model(base) if base else None
    if opened is not None:
        check_same_tensors(first, opened, carried=False)
    layout = layout_of(first.directory)
    return TrajectoryPlan(
        series=series,
        base=opened,
        layout=layout,
        partition=make_partition(layout.num_layers, partition=partition, cuts=cuts),
    )


def _open_run(entry: str, start: str | None) -> Series:
    match = None if Path(entry).is_dir() else _RUN.fullmatch(entry)
    directory = Path(match["run"] if match else entry)
    if match:
        name, seed = match["name"], match["seed"] or ""
    else:
        arm = _ARM.fullmatch(directory.resolve().name)
        name, seed = (arm["name"], arm["seed"]) if arm else (directory.resolve().name, "")
    trajectory = open_trajectory(directory, start)
    ends = tuple(trajectory.at(step) for step in trajectory.numbers)
    return Series(name=name, seed=seed, start=trajectory.start, steps=tuple(trajectory.numbers), ends=ends)


def _open_checkpoints(entries: Sequence[str], start: str | None) -> list[Series]:
    if not entries:
        return []
    if start is None:
        raise ValueError("--checkpoints requires --start, the checkpoint that the run began from")
    before = open_model(start)
    found: dict[tuple[str, str], dict[int, Checkpoint]] = {}
    for entry in entries:
        check_entry(entry)
        match = _STEP.fullmatch(entry)
        assert match is not None
        steps = found.setdefault((match["name"], match["seed"] or ""), {})
        step = int(match["step"])
        if step in steps or not step:
            raise ValueError(f"--checkpoints {entry!r}: step {step} is {'named twice' if step else 'the start'}")
        steps[step] = open_model(match["checkpoint"])
        check_same_tensors(before, steps[step], carried=False)
    return [
        Series(name=name, seed=seed, start=before, steps=tuple(steps), ends=tuple(steps.values()))
        for (name, seed), unordered in found.items()
        for steps in [dict(sorted(unordered.items()))]
    ]
