"""Was it really frozen? Proof, or breach, for any two checkpoints, also from other tools.

    python -m train.verify --start SFT_CHECKPOINT --end RL_CHECKPOINT --frozen mid
    python -m train.verify --start outputs/pocket/sft/final --end outputs/pocket/arms/freeze-mid-seed0/final \\
        --frozen mid
    python -m train.verify --start CHECKPOINT --end CONVERTED --identical
    python -m train.verify --start SFT_CHECKPOINT --end RUN/final --elements RUN/elements.json

Every tensor of the named blocks is compared by sha256 in the start's stored dtype. If the vocabulary was resized, all
other tensors are compared. If the end is a PEFT adapter on the start, its names and factors show which blocks it can
change; a block without an update, or with zero ones alone, is proved, and nothing has to be merged.

Exit status 0: all are identical; 1: a breach, that is, at least one changed (the first ten are printed, `--report`
lists all) or cannot be compared, or nothing moved that was free to train; 2: an argument is wrong or a checkpoint
cannot be read.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path

from models.adapters.merged import MergedCheckpoint
from models.adapters.opening import check_model, open_model
from models.adapters.reading import Adapter, is_adapter, read_adapter
from models.blocks import CUTS_ARGUMENT, PARTITION_ARGUMENT, check_expression
from models.checkpoint import Checkpoint
from models.completeness import check_complete
from models.layout import layout_of
from models.loading import local_checkpoint
from tracking.command import parse_arguments, run_command
from tracking.product import check_output_file, write_text
from train.freezing.elements import ElementMask, find_element_breaches, format_breaches, read_mask
from train.freezing.freeze import (
    FreezeArguments,
    FreezePlan,
    TensorChange,
    broken_tensors,
    compare_tensors,
    freeze_all,
    never_moved,
    plan_freeze,
    summarise_changes,
)
from train.freezing.reach import format_reach, reach_of
from train.freezing.resized import Comparable, comparable

EXIT_BREACH = 1
NUM_NAMED = 10
"""Number of tensors printed; the report lists all."""


@dataclass(frozen=True, kw_only=True)
class VerifyArguments:
    """The two checkpoints, and the blocks that must be identical in both."""

    start: str = field(
        metadata={"help": "checkpoint that training started from: folder or hub id", "check": check_model}
    )
    end: str = field(
        metadata={
            "help": "checkpoint that training ended with, or a PEFT adapter: folder or hub id",
            "check": check_model,
        }
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
    elements: str | None = field(
        default=None,
        metadata={
            "help": "elements.json of a run with train_elements: the elements that it froze must be identical; alone "
            "or with --frozen"
        },
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
    report: str | None = field(
        default=None, metadata={"help": "JSON file to write the result per tensor to", "check": check_output_file}
    )

    def __post_init__(self) -> None:
        if self.identical and self.elements:
            raise ValueError("--identical and --elements are both given; --identical is about every element already")
        if bool(self.frozen or self.elements) == self.identical:
            found = "both are given" if self.identical else "neither is given"
            raise ValueError(
                f"{found} of --frozen and --identical; expected --frozen BLOCK … or --identical, or --elements FILE"
            )

    @property
    def named(self) -> str:
        """What must be identical, as it is printed."""
        return " ".join(self.frozen) or ("the model" if self.identical else "no block")


def main(argv: list[str] | None = None) -> None:
    (arguments,) = parse_arguments(argv, VerifyArguments, description=__doc__, check_inputs=True)
    start = open_model(arguments.start)
    layout = layout_of(start.directory)
    freeze = FreezeArguments(freeze=arguments.frozen, partition=arguments.partition, cuts=arguments.cuts)
    whole = freeze_all(layout, freeze) if arguments.identical else plan_freeze(layout, freeze, leave_some=False)
    adapter = local_checkpoint(arguments.end)
    mask = read_mask(Path(arguments.elements)) if arguments.elements else None
    if mask is not None and is_adapter(adapter):
        raise ValueError(f"{arguments.end} is an adapter, which has no mask of elements; leave out --elements")
    if is_adapter(adapter) and not isinstance(start, MergedCheckpoint):
        _verify_adapter(arguments, start, whole, read_adapter(adapter, start))
        return
    end = open_model(arguments.end)
    compared = comparable(start, end, whole)
    check_complete(start, layout)
    check_complete(end, layout_of(end.directory))
    changes = compare_tensors(start, end, compared.plan)
    broken = broken_tensors(changes)
    elements = find_element_breaches(start, end, mask) if mask is not None else {}
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
            "elements": mask.as_row() if mask is not None else None,
            "element_breaches": elements,
            "not_compared": dict(compared.left_out),
            "tensors": [asdict(change) for change in changes],
        }
        write_text(Path(arguments.report), json.dumps(report, indent=1) + "\n")
        print(f"report: {arguments.report}")
    held = mask is None or _judge_elements(mask, elements)
    if arguments.frozen or arguments.identical:
        _judge(arguments, compared, changes, broken)
    elif not arguments.allow_unchanged and len(never_moved(changes)) == len(changes):
        print("WARNING: nothing moved: the end is the start again; --allow-unchanged true accepts it")
        raise SystemExit(EXIT_BREACH)
    if not held:
        raise SystemExit(EXIT_BREACH)


def _judge_elements(mask: ElementMask, breaches: Mapping[str, int]) -> bool:
    """Prints the verdict on frozen elements and returns True if all are identical."""
    for line in islice(format_breaches(breaches), NUM_NAMED):
        print(f"breach: {line}")
    num_frozen = sum(mask.sizes.values()) - sum(mask.counts.values())
    if breaches:
        print(f"BREACH: {sum(breaches.values()):,} of {num_frozen:,} elements that should be frozen changed")
        return False
    print(f"proof: all {num_frozen:,} elements that the mask freezes are bit-identical")
    return True


def _verify_adapter(arguments: VerifyArguments, start: Checkpoint, plan: FreezePlan, adapter: Adapter) -> None:
    """Prints what an adapter on the start can change, and the verdict; raises SystemExit if it is not a proof."""
    check_complete(start, plan.layout)
    if adapter.base_name and Path(adapter.base_name).is_dir() and not Path(adapter.base_name).samefile(start.directory):
        print(
            f"note: {adapter.directory} names another base, {adapter.base_name}; the verdict is about its names alone"
        )
    reached = reach_of(adapter, start, plan)
    breaches = [one for one in reached if one.frozen and one.can_change]
    print(f"partition: {plan.partition}", *format_reach(reached, plan), sep="\n")
    if arguments.report:
        report = {
            "start": arguments.start,
            "end": arguments.end,
            "adapter_sha256": adapter.sha256(),
            "frozen": arguments.frozen,
            "identical": arguments.identical,
            "breaches": [one.name for one in breaches],
            "tensors": [asdict(one) for one in reached],
        }
        write_text(Path(arguments.report), json.dumps(report, indent=1) + "\n")
        print(f"report: {arguments.report}")
    for one in breaches[:NUM_NAMED]:
        print(f"breach: {one.name}: {one.described}")
    if breaches:
        print(f"BREACH: the adapter changes {len(breaches)} of {len(plan.frozen)} tensors that should be frozen")
    else:
        print(
            f"proof: all {len(plan.frozen)} tensors of {arguments.named} stay bit-identical when the adapter is "
            "merged: it has no update for them, or a zero one"
        )
    nothing_moves = bool(plan.trainable) and not any(one.can_change for one in reached)
    if nothing_moves:
        print(
            f"WARNING: nothing moves. All {len(adapter.updates)} updates of the adapter are zero, as they are before "
            "training. Was the wrong folder named? --allow-unchanged true accepts it"
        )
    if breaches or (nothing_moves and not arguments.allow_unchanged):
        raise SystemExit(EXIT_BREACH)


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
