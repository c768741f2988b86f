"""Was it really frozen? Proof, or breach, for any two checkpoints, also from other tools.

    python -m train.verify --start SFT_CHECKPOINT --end RL_CHECKPOINT --frozen mid
    python -m train.verify --start outputs/pocket/sft/final --end outputs/pocket/arms/freeze-mid-seed0/final \\
        --frozen mid
    python -m train.verify --start CHECKPOINT --end CONVERTED --identical

Every tensor of the named blocks is compared by sha256 in the start's stored dtype. If the vocabulary was resized, all
other tensors are compared. Exit status 0: all are identical; 1: a breach, that is, at least one changed (the first ten
are printed, `--report` lists all) or cannot be compared, or nothing moved that was free to train; 2: an argument is
wrong or a checkpoint cannot be read.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from models.blocks import CUTS_ARGUMENT, PARTITION_ARGUMENT, check_expression
from models.checkpoint import open_checkpoint
from models.completeness import check_complete
from models.layout import layout_of
from models.loading import check_checkpoint, local_checkpoint
from tracking.command import parse_arguments, run_command
from tracking.product import write_text
from train.freezing.freeze import (
    FreezeArguments,
    TensorChange,
    broken_tensors,
    compare_tensors,
    freeze_all,
    never_moved,
    plan_freeze,
    summarise_changes,
)
from train.freezing.resized import Comparable, comparable

EXIT_BREACH = 1
NUM_NAMED = 10
"""Number of tensors printed; the report lists all."""


@dataclass(frozen=True, kw_only=True)
class VerifyArguments:
    """The two checkpoints, and the blocks that must be identical in both."""

    start: str = field(
        metadata={"help": "checkpoint that training started from: folder or hub id", "check": check_checkpoint}
    )
    end: str = field(
        metadata={"help": "checkpoint that training ended with: folder or hub id", "check": check_checkpoint}
    )
    frozen: list[str] = field(
        default_factory=list,
        metadata={
            "help": "block expressions that must be identical, such as mid or late.attn vision (list: train.grpo "
            "--help)",
            "check": check_expression,
        },
    )
    identical: bool = field(
        default=False, metadata={"help": "every tensor must be identical: is a conversion lossless? Not with --frozen"}
    )
    allow_unchanged: bool = field(
        default=False, metadata={"help": "accept that nothing changed outside the frozen blocks (otherwise a failure)"}
    )
    partition: str = field(
        default="thirds",
        metadata=PARTITION_ARGUMENT,
    )
    cuts: list[int] = field(
        default_factory=list,
        metadata=CUTS_ARGUMENT,
    )
    report: str | None = field(default=None, metadata={"help": "JSON file to write the result per tensor to"})

    def __post_init__(self) -> None:
        if bool(self.frozen) == self.identical:
            found = "both are given" if self.identical else "neither is given"
            raise ValueError(f"{found} of --frozen and --identical; expected --frozen BLOCK … or --identical")

    @property
    def named(self) -> str:
        """What must be identical, as it is printed."""
        return " ".join(self.frozen) if self.frozen else "the model"


def main(argv: list[str] | None = None) -> None:
    (arguments,) = parse_arguments(argv, VerifyArguments, description=__doc__, check_inputs=True)
    start = open_checkpoint(local_checkpoint(arguments.start))
    end = open_checkpoint(local_checkpoint(arguments.end))
    layout = layout_of(start.directory)
    freeze = FreezeArguments(freeze=arguments.frozen, partition=arguments.partition, cuts=arguments.cuts)
    whole = freeze_all(layout, freeze) if arguments.identical else plan_freeze(layout, freeze, for_training=False)
    compared = comparable(start, end, whole)
    check_complete(start, layout)
    check_complete(end, layout_of(end.directory))
    changes = compare_tensors(start, end, compared.plan)
    broken = broken_tensors(changes)
    print(f"partition: {compared.plan.partition}")
    for row in summarise_changes(changes):
        proof = f"{row['num_frozen_identical']} of {row['num_frozen']} frozen identical" if row["num_frozen"] else ""
        line = (
            f"{row['block']:<10} {row['num_tensors']:>5} tensors  {row['changed_frac']:>8.3%} elements changed  {proof}"
        )
        print(line.rstrip())
    for name, why in compared.left_out.items():
        print(f"not compared: {name}: {why}")
    if arguments.report:
        report = {
            "start": arguments.start,
            "end": arguments.end,
            "frozen": arguments.frozen,
            "identical": arguments.identical,
            "breaches": broken,
            "not_compared": dict(compared.left_out),
            "tensors": [asdict(change) for change in changes],
        }
        write_text(Path(arguments.report), json.dumps(report, indent=1) + "\n")
        print(f"report: {arguments.report}")
    _judge(arguments, compared, changes, broken)


def _judge(
    arguments: VerifyArguments, compared: Comparable, changes: Sequence[TensorChange], broken: Sequence[str]
) -> None:
    """Prints the verdict; raises SystemExit if it is not a proof."""
    trainable = compared.plan.trainable
    still = never_moved(changes)
    nothing_moved = bool(trainable) and len(still) == len(trainable) and not compared.moved
    if still and not nothing_moved:
        print(f"note: {len(still)} tensors that were free to change are identical, the first is {still[0]}")
    for name in broken[:NUM_NAMED]:
        print(f"breach: {name}")
    if broken:
        print(f"BREACH: {len(broken)} of {len(compared.plan.frozen)} tensors that should be frozen changed")
    elif compared.unproved:
        print(
            f"NOT PROVED: {', '.join(compared.unproved)} should be identical and cannot be compared as a whole; the "
            f"other {len(compared.plan.frozen)} tensors of {arguments.named} are bit-identical"
        )
    else:
        print(f"proof: all {len(compared.plan.frozen)} tensors of {arguments.named} are bit-identical")
    if nothing_moved:
        print(
            f"WARNING: nothing moved. All {len(trainable)} tensors that were free to train are bit-identical too, so "
            "the end is the start again. Was an adapter merged into nothing (PEFT only warns of missing adapter keys), "
            "or the wrong folder named? --allow-unchanged true accepts it; --identical true asks for it"
        )
    if broken or compared.unproved or (nothing_moved and not arguments.allow_unchanged):
        raise SystemExit(EXIT_BREACH)


if __name__ == "__main__":
    run_command(main)
