"""When in training does what change? Weight changes of a run's kept steps, per matrix, layer and block.

    python -m analyze.trajectory outputs/arms/full-seed0 outputs/arms/freeze-mid-seed0 --output-dir outputs/trajectory
    python -m analyze.trajectory full@0=outputs/arms/full-seed0 --base BASE --output-dir outputs/trajectory
    python -m analyze.trajectory --start SFT --checkpoints full@0:20=CHECKPOINT full@0:40=CHECKPOINT \\
        --output-dir outputs/trajectory

A RUN is the output directory of train.grpo or train.sft with keep_trajectory; its steps are restored in memory, one
tensor at a time. Measured per step: norm of the change, share of changed elements, cosine to the final change, rank-1
share, share within the weights' own leading singular directions (arXiv 2511.08567), and with --base the sign conflicts
with SFT's change (arXiv 2605.00610). Per place: share of the trajectory along one direction, its linearity in steps
(arXiv 2605.21468), and the step at which half of the final change was reached.

    matrices.csv, layers.csv, blocks.csv    a row per place and step
    lines.csv                               a row per place
    trajectory.html                         the page to read; figures/
"""

from dataclasses import dataclass, field
from pathlib import Path

from analyze.trajectory.figures import draw_all
from analyze.trajectory.measure import measure_tensor
from analyze.trajectory.page import render
from analyze.trajectory.plan import TrajectoryPlan, check_entry, make_trajectory_plan
from analyze.trajectory.summary import sentences
from analyze.trajectory.tables import make_tables
from models.adapters.opening import check_model
from models.blocks import CUTS_ARGUMENT, PARTITION_ARGUMENT
from tracking.command import parse_arguments
from tracking.product import write_text
from tracking.progress import weighted_progress
from tracking.records import RecordLog, read_records
from tracking.run import OVERWRITE_ARGUMENT, open_run
from tracking.tables import write_table

COMMAND = "analyze.trajectory"
PAGE_FILE = "trajectory.html"
RECORDS_FILE = "records.jsonl"


@dataclass(frozen=True, kw_only=True)
class TrajectoryArguments:
    """The runs, and what their changes are compared with."""

    runs: list[str] = field(
        default_factory=list,
        metadata={
            "help": "output directories of runs with keep_trajectory: RUN, NAME=RUN or NAME@SEED=RUN",
            "positional": True,
            "metavar": "RUN",
        },
    )
    output_dir: str = field(metadata={"help": "where tables, figures, page and run.json are written"})
    checkpoints: list[str] = field(
        default_factory=list,
        metadata={
            "help": "kept steps as ordinary checkpoints: NAME:STEP=CHECKPOINT or NAME@SEED:STEP=CHECKPOINT",
            "check": check_entry,
        },
    )
    start: str | None = field(
        default=None,
        metadata={
            "help": "the checkpoint that the runs began from: required by --checkpoints; of runs, if it has moved",
            "check": check_model,
        },
    )
    base: str | None = field(
        default=None,
        metadata={"help": "the start of SFT; compares with SFT's change, start - base", "check": check_model},
    )
    subspace_rank: int = field(
        default=16, metadata={"help": "number of the weights' own leading singular directions; 0: not compared"}
    )
    partition: str = field(default="thirds", metadata=PARTITION_ARGUMENT)
    cuts: list[int] = field(default_factory=list, metadata=CUTS_ARGUMENT)
    overwrite: bool = field(default=False, metadata=OVERWRITE_ARGUMENT)

    def __post_init__(self) -> None:
        if self.subspace_rank < 0:
            raise ValueError(f"subspace_rank is {self.subspace_rank}; expected a number of directions, or 0 for none")
        if not self.runs and not self.checkpoints:
            raise ValueError(
                "no trajectory is given; expected RUN …, or --start with --checkpoints NAME:STEP=CHECKPOINT …"
            )


def measure(plan: TrajectoryPlan, log: RecordLog, *, rank: int) -> None:
    """Appends the record of every run's every tensor that has none."""
    pending = [
        (series, parameter)
        for series in plan.series
        for parameter in plan.parameters
        if f"{series.label}/{parameter.name}" not in log
    ]
    sizes = [parameter.num_elements * len(series.steps) for series, parameter in pending]
    for series, parameter in weighted_progress(pending, sizes, label="measuring changes"):
        log.append(measure_tensor(series, plan.base, parameter, rank=rank))


def write_trajectory(plan: TrajectoryPlan, output_dir: Path, *, rank: int, overwrite: bool = False) -> list[str]:
    """Writes tables, figures and page; returns the lines to print."""
    settings = {
        "series": {
            each.label: {
                "start": each.start.fingerprint(),
                "steps": {str(step): end.fingerprint() for step, end in zip(each.steps, each.ends, strict=True)},
            }
            for each in plan.series
        },
        "base": plan.base.fingerprint() if plan.base else None,
        "subspace_rank": rank,
        "partition": str(plan.partition),
    }
    with open_run(output_dir, command=COMMAND, settings=settings, overwrite=overwrite) as run:
        if run.finished:
            return sentences(make_tables(plan, read_records(output_dir / RECORDS_FILE)), rank=rank)
        with RecordLog(output_dir / RECORDS_FILE) as log:
            measure(plan, log, rank=rank)
            tables = make_tables(plan, list(log))
        for name, table in tables.items():
            write_table(output_dir / f"{name}.csv", table)
        draw_all(tables, plan.partition, output_dir / "figures")
        write_text(output_dir / PAGE_FILE, render(tables, output_dir / "figures", rank=rank))
    return sentences(tables, rank=rank)


def main(argv: list[str] | None = None) -> None:
    (arguments,) = parse_arguments(argv, TrajectoryArguments, description=__doc__, check_inputs=True)
    plan = make_trajectory_plan(
        arguments.runs,
        arguments.checkpoints,
        start=arguments.start,
        base=arguments.base,
        partition=arguments.partition,
        cuts=arguments.cuts,
    )
    output_dir = Path(arguments.output_dir)
    lines = write_trajectory(plan, output_dir, rank=arguments.subspace_rank, overwrite=arguments.overwrite)
    print(*lines, sep="\n")
    print(f"tables: {output_dir / 'lines.csv'}, to read: {output_dir / PAGE_FILE}")
