"""How large is the change, and where? Weight deltas between checkpoints, per tensor, layer and block.

    python -m analyze.deltas --sft SFT --rl full@0=RL_A freeze-mid@0=RL_B --output-dir outputs/deltas

Energy is the Frobenius norm of a difference (paper, section on weight updates); a layer's is the root of the sum of
its tensors' squares. Tensors are read in their stored dtype, subtracted in fp32 and summed in fp64, one at a time, so
any size of checkpoint fits in the memory of its largest tensor. A tensor that is bit-identical counts as exactly zero.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from models.blocks import Partition, block_names, make_partition
from models.checkpoint import Checkpoint, check_same_tensors, open_checkpoint
from models.layout import Layout, layout_of
from models.loading import local_checkpoint
from tracking.command import parse_arguments, run_command
from tracking.progress import progress
from tracking.records import Record, RecordLog
from tracking.run import open_run
from tracking.tables import write_table

if TYPE_CHECKING:
    import pandas as pd

SFT_PHASE = "sft"


@dataclass(frozen=True, kw_only=True)
class DeltaArguments:
    """The checkpoints between which changes are measured."""

    sft: str = field(metadata={"help": "the start of RL: folder or hub id"})
    rl: list[str] = field(metadata={"help": "NAME=CHECKPOINT or NAME@SEED=CHECKPOINT, one or several"})
    output_dir: str = field(metadata={"help": "where matrices.csv, layers.csv and blocks.csv are written"})
    base: str | None = field(default=None, metadata={"help": "the start of SFT; adds the phase sft - base"})
    partition: str = field(default="thirds", metadata={"help": "thirds or paper"})
    cuts: list[int] = field(default_factory=list, metadata={"help": "two layer numbers instead, such as 8 20"})
    overwrite: bool = field(default=False, metadata={"help": "start over"})


@dataclass(frozen=True)
class Phase:
    """One difference: end - start, under a name and, for an arm, a seed."""

    name: str
    seed: str
    start: Checkpoint
    end: Checkpoint


def plan_phases(arguments: DeltaArguments) -> list[Phase]:
    """Opens the checkpoints and pairs them up."""
    sft = open_checkpoint(local_checkpoint(arguments.sft))
    phases = []
    if arguments.base:
        phases.append(Phase(SFT_PHASE, "", open_checkpoint(local_checkpoint(arguments.base)), sft))
    for entry in arguments.rl:
        label, separator, checkpoint = entry.partition("=")
        name, _, seed = label.partition("@")
        if not separator or not name:
            raise ValueError(f"--rl {entry!r} is no NAME=CHECKPOINT, such as full@0=outputs/arms/full-seed0/final")
        phases.append(Phase(name, seed, sft, open_checkpoint(local_checkpoint(checkpoint))))
    labels = [(phase.name, phase.seed) for phase in phases]
    for name, seed in labels:
        if labels.count((name, seed)) > 1:
            raise ValueError(f"--rl names {name!r} with seed {seed!r} twice; expected each once")
    for phase in phases:
        check_same_tensors(phase.start, phase.end)
    return phases


def measure_tensor(phase: Phase, name: str) -> dict[str, float]:
    """Returns the sums of squares of one tensor's change and of its start, and how many elements changed."""
    import torch

    start, end = phase.start, phase.end
    before = start.tensor(name)
    identical = start.tensors[name].dtype == end.tensors[name].dtype and start.data(name) == end.data(name)
    start_squares = float(before.float().double().square().sum())
    if identical:
        return {"delta_squares": 0.0, "start_squares": start_squares, "num_changed": 0}
    delta = end.tensor(name).float() - before.float()
    return {
        "delta_squares": float(delta.double().square().sum()),
        "start_squares": start_squares,
        "num_changed": int(torch.count_nonzero(delta)),
    }


def measure_all(phases: list[Phase], layout: Layout, partition: Partition, log: RecordLog) -> None:
    """Appends one record per phase and tensor, skipping those that are there."""
    for phase in phases:
        for parameter in progress(list(layout), label=f"{phase.name} {phase.seed}".strip(), unit="tensor"):
            key = f"{phase.name}@{phase.seed}/{parameter.name}"
            if key in log:
                continue
            record: Record = {
                "key": key,
                "phase": phase.name,
                "seed": phase.seed,
                "tensor": parameter.name,
                "block": block_names(parameter, partition),
                "region": parameter.region,
                "layer": parameter.index,
                "num_elements": parameter.num_elements,
                **measure_tensor(phase, parameter.name),
            }
            log.append(record)


def summarise(records: list[Record], keys: list[str]) -> "pd.DataFrame":
    """Returns energy, relative energy, rms and changed share, summed over the tensors of each group."""
    import pandas as pd

    table = pd.DataFrame(records)
    sums = ["delta_squares", "start_squares", "num_changed", "num_elements"]
    grouped = table.groupby(keys, sort=False, dropna=False)[sums].sum().reset_index()
    result = grouped[keys].copy()
    result["num_elements"] = grouped["num_elements"]
    result["energy"] = grouped["delta_squares"].map(math.sqrt)
    result["start_norm"] = grouped["start_squares"].map(math.sqrt)
    result["relative_energy"] = (result["energy"] / result["start_norm"]).where(result["start_norm"] > 0)
    result["rms"] = (grouped["delta_squares"] / grouped["num_elements"]).map(math.sqrt)
    result["changed_frac"] = grouped["num_changed"] / grouped["num_elements"]
    return result


def main(argv: list[str] | None = None) -> None:
    (arguments,) = parse_arguments(argv, DeltaArguments, description=__doc__)
    phases = plan_phases(arguments)
    layout = layout_of(phases[0].start.directory)
    partition = make_partition(layout.num_layers, partition=arguments.partition, cuts=arguments.cuts)
    output_dir = Path(arguments.output_dir)
    settings = {
        "checkpoints": {
            f"{phase.name}@{phase.seed}": [phase.start.fingerprint(), phase.end.fingerprint()] for phase in phases
        },
        "cuts": list(partition.cuts),
    }
    with open_run(output_dir, command="analyze.deltas", settings=settings, overwrite=arguments.overwrite) as run:
        if not run.finished:
            with RecordLog(output_dir / "records.jsonl") as log:
                measure_all(phases, layout, partition, log)
                records = list(log)
            write_table(output_dir / "matrices.csv", summarise(records, ["phase", "seed", "block", "tensor"]))
            write_table(output_dir / "layers.csv", summarise(records, ["phase", "seed", "block", "region", "layer"]))
            write_table(output_dir / "blocks.csv", summarise(records, ["phase", "seed", "block"]))
    print(f"deltas: {output_dir / 'layers.csv'}")


if __name__ == "__main__":
    run_command(main)
