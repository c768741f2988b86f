"""How large is the change, and where? Weight deltas between checkpoints, per tensor, layer, block and region.

    python -m analyze.deltas START END --output-dir outputs/deltas
    python -m analyze.deltas --base BASE --sft SFT --rl RL --output-dir outputs/deltas
    python -m analyze.deltas --sft SFT --rl full@0=RL_A freeze-mid@0=RL_B --output-dir outputs/deltas

Three checkpoints make two phases, `sft` (sft - base) and `rl` (rl - sft); any two make one. `--rl NAME@SEED=CHECKPOINT`
names arms. An end may be a PEFT adapter (LoRA) on its phase's start: its change s·B·A is computed from the factors, and
what merging it leaves of it is shown beside. What is measured (`--measures`, all of it by default):

- energy: ‖Δ‖ (Frobenius), relative to ‖W_start‖, and rms; a layer's energy is the root of the sum of its tensors'
  squares, so layers add up to the whole (paper, section on weight updates); alone it is as fast as summing the files;
- floor: the share of changed elements, by how many ulps they moved, what rounding to the stored dtype alone would
  give, and a verdict per tensor (`floor.py`);
- spectra: every singular value of every matrix, ranks, norms and decay (`spectra.py`; paper, Eq. 3);
- null: the same for the same changes with signs and places shuffled;
- geometry: cosine, common elements and angles between the leading subspaces of two phases' deltas.

Stored values are exact in fp64, where they are subtracted and summed; spectra are those of the difference in fp32. A
tensor that is bit-identical counts as exactly zero. A killed run continues with the next tensor. Known limit: on two
cores the spectra of a 7B model take about half an hour per phase, and the null as much again.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from analyze.deltas.change import Comparison, measure_many
from analyze.deltas.figures import DeltaTables, draw_all
from analyze.deltas.floor import ULP_LABELS
from analyze.deltas.plan import DeltaPlan, plan_phases
from analyze.deltas.records import SpectralOptions, batches, cost, is_matrix, matrix_shape, measure_spectra
from analyze.deltas.summary import summary
from analyze.deltas.tables import (
    LABELS,
    PLACE,
    arm_table,
    change_table,
    decay_table,
    matrix_table,
    pair_table,
    spectra_table,
    summarise,
    ulps_table,
)
from models.adapters.opening import check_model
from models.blocks import CUTS_ARGUMENT, PARTITION_ARGUMENT
from tracking.command import check_all, check_least, did_you_mean, parse_arguments
from tracking.product import partial_file
from tracking.progress import weighted_progress
from tracking.records import Record, RecordLog
from tracking.run import OVERWRITE_ARGUMENT, open_run
from tracking.tables import write_table

MEASURES = ("energy", "floor", "spectra", "null", "geometry")
MIN_ROWS_FOR_THREADS = 512
"""On the shorter side of a matrix: below, threads wait for each other more than they work (three times slower)."""


def check_named(text: str) -> None:
    """Refuses `CHECKPOINT` or `NAME=CHECKPOINT` whose checkpoint is plainly not there."""
    name, equals, checkpoint = text.partition("=")
    if not equals:
        check_model(text)
    elif name and checkpoint:  # plan_phases says what is wrong with the rest
        check_model(checkpoint)


@dataclass(frozen=True, kw_only=True)
class DeltaArguments:
    """The checkpoints, and what is measured between them."""

    checkpoints: list[str] = field(
        default_factory=list,
        metadata={
            "help": "two checkpoints, START and END; short for --sft START --rl END",
            "positional": True,
            "metavar": "START END",
            "check": check_model,
        },
    )
    output_dir: str = field(metadata={"help": "where the tables and figures are written"})
    sft: str | None = field(
        default=None, metadata={"help": "checkpoint at the start of RL: folder or hub id", "check": check_model}
    )
    rl: list[str] = field(
        default_factory=list,
        metadata={
            "help": "one or more checkpoints after RL: CHECKPOINT, NAME=CHECKPOINT or NAME@SEED=CHECKPOINT",
            "check": check_named,
        },
    )
    base: str | None = field(
        default=None,
        metadata={
            "help": "checkpoint at the start of SFT: folder or hub id; adds the phase sft - base",
            "check": check_model,
        },
    )
    measures: list[str] = field(
        default_factory=lambda: list(MEASURES), metadata={"help": f"what to measure, any of {', '.join(MEASURES)}"}
    )
    top_k: int | None = field(
        default=None,
        metadata={
            "help": "compute only the N leading singular values, by a randomised method with an error estimate; "
            "by default all, exactly; geometry is always exact"
        },
    )
    subspace_rank: int = field(default=16, metadata={"help": "dimension of the leading subspaces that are compared"})
    partition: str = field(
        default="thirds",
        metadata=PARTITION_ARGUMENT,
    )
    cuts: list[int] = field(
        default_factory=list,
        metadata=CUTS_ARGUMENT,
    )
    seed: int = field(default=0, metadata={"help": "seed of the shuffled null"})
    device: str = field(default="cpu", metadata={"help": "device of the spectra: cpu, cuda or cuda:1"})
    num_threads: int = field(default=0, metadata={"help": "CPU threads; 0: one per core"})
    overwrite: bool = field(default=False, metadata=OVERWRITE_ARGUMENT)

    def __post_init__(self) -> None:
        check_all(
            self._check_measures,
            partial(check_least, self, top_k=1, subspace_rank=1, num_threads=0),
            self._check_checkpoints,
        )

    def _check_measures(self) -> None:
        for name in self.measures:
            if name is None:
                raise ValueError('measures holds an empty value; in YAML the measure is written in quotes: "null"')
            if name not in MEASURES:
                raise ValueError(f"measure {name!r} is unknown{did_you_mean(name, MEASURES)} ({', '.join(MEASURES)})")
        if "null" in self.measures and "spectra" not in self.measures:
            raise ValueError("measure 'null' is the spectrum of the shuffled change; expected 'spectra' beside it")

    def _check_checkpoints(self) -> None:
        if self.checkpoints and (self.sft or self.rl or self.base):
            raise ValueError("START END is short for --sft START --rl END; give it, or --sft, --rl and --base")
        if self.checkpoints and len(self.checkpoints) != 2:
            raise ValueError(
                f"{len(self.checkpoints)} checkpoints without a name: {' '.join(self.checkpoints)}; expected two, "
                "START END, or --sft, --rl and --base"
            )
        if not self.checkpoints and not self.sft:
            raise ValueError("no checkpoint is given; expected START END, or --sft with --rl, --base or both")
        if self.sft and not self.rl and not self.base:
            raise ValueError("only --sft is given; expected --rl, --base or both to compare it with")

    @property
    def start(self) -> str:
        """The start of RL."""
        start = self.checkpoints[0] if self.checkpoints else self.sft
        assert start is not None
        return start

    @property
    def ends(self) -> list[str]:
        """The ends of RL, as `--rl` has them."""
        return self.checkpoints[1:] or self.rl

    @property
    def threads(self) -> int:
        """How many threads the CPU's work gets."""
        return self.num_threads or len(os.sched_getaffinity(0))


def measure_tensors(plan: DeltaPlan, arguments: DeltaArguments, log: RecordLog) -> None:
    """Appends the record of every tensor that has none: the sums of all phases, and of all pairs of them."""
    pending = [name for name in plan.layout.parameters if f"change/{name}" not in log]
    comparison = Comparison(
        checkpoints=plan.checkpoints,
        phases=[(phase.start, phase.end) for phase in plan.phases],
        pairs=plan.pairs if "geometry" in arguments.measures else [],
        floor="floor" in arguments.measures,
        counts=bool({"floor", "geometry"} & set(arguments.measures)),
        device=arguments.device,
    )
    results = measure_many(comparison, pending, num_threads=arguments.threads)
    sizes = [plan.layout.parameters[name].num_elements for name in pending]
    for change in weighted_progress(results, sizes, label="energy"):
        log.append(
            {
                "key": f"change/{change.name}",
                "tensor": change.name,
                "phases": [
                    {name: value for name, value in asdict(phase).items() if value is not None}
                    for phase in change.phases
                ],
                "pairs": [asdict(pair) for pair in change.pairs],
            }
        )


def measure_matrices(plan: DeltaPlan, arguments: DeltaArguments, log: RecordLog) -> None:
    """Appends the spectral record of every matrix that has none."""
    import torch

    options = SpectralOptions(
        top_k=arguments.top_k,
        with_null="null" in arguments.measures,
        subspace_rank=arguments.subspace_rank if "geometry" in arguments.measures else None,
        seed=arguments.seed,
        device=arguments.device,
    )
    phases = [(plan.checkpoints[phase.start], plan.checkpoints[phase.end]) for phase in plan.phases]
    matrices = [parameter for parameter in plan.layout if is_matrix(parameter)]
    pending = [parameter for parameter in matrices if f"spectra/{parameter.name}" not in log]
    groups = list(batches(pending, arguments.device))
    for group in weighted_progress(groups, [cost(group) for group in groups], label="spectra"):
        torch.set_num_threads(arguments.threads if min(matrix_shape(group[0])) >= MIN_ROWS_FOR_THREADS else 1)
        log.append(*measure_spectra(group, phases, plan.pairs, options))


def check_device(device: str) -> None:
    """Refuses a device that this machine has not."""
    if device == "cpu":
        return
    import torch

    valid = ["cpu"]
    if torch.cuda.is_available():
        valid += ["cuda", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    if device not in valid:
        raise ValueError(f"device {device!r} is not available; expected {' or '.join(valid)}")


def change_rows(plan: DeltaPlan, log: Iterable[Record]) -> list[Record]:
    """Returns a row per phase and tensor from the records, in the order of phases."""
    records = {record["tensor"]: record for record in log if record["key"].startswith("change/")}
    rows = []
    for number, phase in enumerate(plan.phases):
        for parameter in plan.layout:
            shape = matrix_shape(parameter) if is_matrix(parameter) else (None, None)
            rows.append(
                phase.labels
                | plan.place(parameter)
                | dict(zip(("num_rows", "num_columns"), shape, strict=True))
                | records[parameter.name]["phases"][number]
            )
    return rows


def spectrum_rows(plan: DeltaPlan, log: Iterable[Record]) -> list[Record]:
    """Returns a row per phase and matrix from the records, in the order of phases."""
    records = {record["tensor"]: record for record in log if record["key"].startswith("spectra/")}
    return [
        phase.labels | plan.place(parameter) | records[parameter.name]["phases"][number]
        for number, phase in enumerate(plan.phases)
        for parameter in plan.layout
        if parameter.name in records
    ]


def pair_rows(plan: DeltaPlan, log: Iterable[Record]) -> list[Record]:
    """Returns a row per pair of phases and tensor: cosine, common elements and, of matrices, angles."""
    by_key = {record["key"]: record for record in log}
    rows = []
    for number, (first, second) in enumerate(plan.pairs):
        one, other = plan.phases[first], plan.phases[second]
        labels = {"phase_a": one.name, "seed_a": one.seed, "phase_b": other.name, "seed_b": other.seed}
        for parameter in plan.layout:
            spectra = by_key.get(f"spectra/{parameter.name}")
            rows.append(
                labels
                | plan.place(parameter)
                | by_key[f"change/{parameter.name}"]["pairs"][number]
                | (spectra["pairs"][number] if spectra else {})
            )
    return rows


def write_tables(plan: DeltaPlan, measures: Sequence[str], log: Sequence[Record], directory: Path) -> DeltaTables:
    """Writes every table that the measures allow."""
    changes = change_rows(plan, log)
    spectra = spectrum_rows(plan, log)
    table = change_table(changes)
    blocks = summarise(table, [*LABELS, "block"])
    tables = DeltaTables(
        matrices=matrix_table(table, spectra),
        layers=summarise(table, [*LABELS, *PLACE]),
        decay=decay_table(spectra) if spectra else None,
        geometry=pair_table(pair_rows(plan, log)) if "geometry" in measures and plan.pairs else None,
    )
    write_table(directory / "matrices.csv", tables.matrices)
    write_table(directory / "layers.csv", tables.layers)
    write_table(directory / "blocks.csv", blocks)
    write_table(directory / "regions.csv", summarise(table, [*LABELS, "region"]))
    write_table(directory / "arms.csv", arm_table(blocks))
    if "floor" in measures:
        write_table(directory / "ulps.csv", ulps_table(changes, ULP_LABELS))
    if tables.decay is not None:
        write_table(directory / "decay.csv", tables.decay)
        with partial_file(directory / "spectra.parquet") as partial:
            spectra_table(spectra).to_parquet(partial, index=False)
    if tables.geometry is not None:
        write_table(directory / "geometry.csv", tables.geometry)
    return tables


def main(argv: list[str] | None = None) -> None:
    (arguments,) = parse_arguments(argv, DeltaArguments, description=__doc__, check_inputs=True)
    check_device(arguments.device)
    plan = plan_phases(
        arguments.start, arguments.ends, arguments.base, partition=arguments.partition, cuts=arguments.cuts
    )
    for note in plan.notes:
        print(f"note: {note}")
    output_dir = Path(arguments.output_dir)
    settings = {
        "checkpoints": {
            str(phase): [plan.checkpoints[number].fingerprint() for number in (phase.start, phase.end)]
            for phase in plan.phases
        },
        "cuts": list(plan.partition.cuts),
        "measures": [name for name in MEASURES if name in arguments.measures],
        **{name: getattr(arguments, name) for name in ("top_k", "subspace_rank", "seed")},
    }
    with open_run(output_dir, command="analyze.deltas", settings=settings, overwrite=arguments.overwrite) as run:
        if not run.finished:
            with RecordLog(output_dir / "records.jsonl") as log:
                measure_tensors(plan, arguments, log)
                if "geometry" in arguments.measures and not plan.pairs:
                    print("geometry compares two phases, here is one: left out")
                if "spectra" in arguments.measures or ("geometry" in arguments.measures and plan.pairs):
                    measure_matrices(plan, arguments, log)
                tables = write_tables(plan, arguments.measures, list(log), output_dir)
            draw_all(tables, output_dir / "figures")
    print(*summary(output_dir), *plan.notes, f"deltas: {output_dir / 'layers.csv'}", sep="\n")
