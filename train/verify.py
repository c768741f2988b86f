"""Was it really frozen? Proof, or breach, for any two checkpoints, also from other tools.

    python -m train.verify --start SFT_CHECKPOINT --end RL_CHECKPOINT --frozen mid
    python -m train.verify --start outputs/pocket/sft/final --end outputs/pocket/arms/freeze-mid-seed0/final \\
        --frozen mid

Every tensor of the named blocks is compared by sha256 in the start's stored dtype. Exit status 0: all are identical;
1: a breach, that is, at least one changed (the first ten are printed, `--report` lists all); 2: an argument is wrong or
a checkpoint cannot be read.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from models.blocks import CUTS_ARGUMENT, PARTITION_ARGUMENT, check_expression
from models.checkpoint import check_same_tensors, open_checkpoint
from models.completeness import check_complete
from models.layout import layout_of
from models.loading import check_checkpoint, local_checkpoint
from tracking.command import parse_arguments, run_command
from tracking.product import write_text
from train.freezing.freeze import (
    FreezeArguments,
    broken_tensors,
    compare_tensors,
    never_moved,
    plan_freeze,
    summarise_changes,
)

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
        metadata={
            "help": "block expressions that must be identical, such as mid or late.attn vision (list: train.grpo "
            "--help)",
            "check": check_expression,
        }
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


def main(argv: list[str] | None = None) -> None:
    (arguments,) = parse_arguments(argv, VerifyArguments, description=__doc__, check_inputs=True)
    start = open_checkpoint(local_checkpoint(arguments.start))
    end = open_checkpoint(local_checkpoint(arguments.end))
    check_same_tensors(start, end)
    layout = layout_of(start.directory)
    for checkpoint in (start, end):
        check_complete(checkpoint, layout)
    freeze = FreezeArguments(freeze=arguments.frozen, partition=arguments.partition, cuts=arguments.cuts)
    plan = plan_freeze(layout, freeze)
    changes = compare_tensors(start, end, plan)
    broken = broken_tensors(changes)
    print(f"partition: {plan.partition}")
    for row in summarise_changes(changes):
        proof = f"{row['num_frozen_identical']} of {row['num_frozen']} frozen identical" if row["num_frozen"] else ""
        line = (
            f"{row['block']:<10} {row['num_tensors']:>5} tensors  {row['changed_frac']:>8.3%} elements changed  {proof}"
        )
        print(line.rstrip())
    if still := never_moved(changes):
        print(f"note: {len(still)} tensors that were free to change are identical, the first is {still[0]}")
    if arguments.report:
        report = {
            "start": arguments.start,
            "end": arguments.end,
            "frozen": arguments.frozen,
            "breaches": broken,
            "tensors": [asdict(change) for change in changes],
        }
        write_text(Path(arguments.report), json.dumps(report, indent=1) + "\n")
        print(f"report: {arguments.report}")
    if broken:
        for name in broken[:NUM_NAMED]:
            print(f"breach: {name}")
        print(f"BREACH: {len(broken)} of {len(plan.frozen)} tensors that should be frozen changed")
        raise SystemExit(EXIT_BREACH)
    print(f"proof: all {len(plan.frozen)} tensors of {' '.join(arguments.frozen)} are bit-identical")


if __name__ == "__main__":
    run_command(main)
