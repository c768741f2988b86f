"""Where on the picture does a model look, and at which token do two models part? Maps, and log-probabilities.

    python -m analyze.look sft=outputs/pocket/eval/sft full@0=outputs/pocket/eval/full-seed0 \
        --output-dir outputs/pocket/look

Models, prompts and replies are those of evaluations (`eval.run`). Every model reads the same replies: by default those
of the first and of the last model. Prompts on which one model is right and another wrong come first.

- **Maps**: the attention of the reply's tokens to every cell of the picture, mean over heads, per layer and block, for
  the whole reply, its thoughts, its answer, and single tokens (`analyze/look/maps.py`). No [T, T] matrix is stored.
- **Controls**: how much of it is on the picture's border and on sinks, cells that every token attends to
  (`analyze/look/tables.py`); `--drop-sinks` leaves them out of the drawing.
- **Log-probabilities** of the same tokens under every model: where do they part?
- **Swap** (`--swap NAME=DIR --pairs FOLDER`): pairs that `analyze.swap` swapped, the layer up to which each model's
  answer moves, and its replies to both pictures.

    pictures.csv, tokens.csv, skipped.csv   the tables
    look.html                               the page: choose layers or a token, compare the models
    records.jsonl                           every map; a killed run continues

Attention shows where values are read from, not what they cause: `analyze.swap` tests that.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from analyze.look.page import render
from analyze.look.plan import RECORDS_FILE, Plan, parse_heads, read_plan
from analyze.look.records import read_reading
from analyze.look.run import read_all, skipped
from analyze.look.swapped import read_swaps
from analyze.look.tables import picture_table, summary, token_table
from analyze.probes.inputs import SKIPPED_COLUMNS, check_loading
from data_builders.pairs.files import check_pairs
from data_builders.sources.files import file_sha256
from eval.statistics.pairing import ENTRIES_ARGUMENT, parse_entry
from models.blocks import CUTS_ARGUMENT, PARTITION_ARGUMENT, make_partition
from tracking.command import check_least, parse_arguments
from tracking.product import write_text
from tracking.run import OVERWRITE_ARGUMENT, open_run
from tracking.tables import read_table, write_table

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True)
class LookArguments:
    """The evaluations, and what is shown of them."""

    models: list[str] = field(metadata=ENTRIES_ARGUMENT)
    output_dir: str = field(metadata={"help": "where tables, page, records and run.json are written"})
    limit: int = field(
        default=100, metadata={"help": "maximum number of prompts; those on which models disagree first"}
    )
    authors: list[str] = field(
        default_factory=list,
        metadata={"help": "models whose replies are read by all; by default the first and the last"},
    )
    max_tokens: int = field(
        default=16, metadata={"help": "tokens of a reply whose maps are kept one by one: the answer's last ones"}
    )
    drop_sinks: bool = field(
        default=False, metadata={"help": "leave cells that every token attends to out of the drawn maps"}
    )
    rollout: bool = field(
        default=False,
        metadata={"help": "also compute attention rollout through all layers; takes a second pass per reply"},
    )
    heads: bool = field(default=False, metadata={"help": "also keep the map of every head in records.jsonl"})
    show_heads: list[str] = field(
        default_factory=list,
        metadata={"help": "heads whose maps the page shows, as LAYER.HEAD, such as 3.0; with --heads"},
    )
    swap: list[str] = field(
        default_factory=list,
        metadata={
            "help": "output directories of analyze.swap (mode from) as NAME=DIR, NAME being one of the models",
            "check": parse_entry,
        },
    )
    pairs: list[str] = field(
        default_factory=list,
        metadata={"help": "folders of the pairs that were swapped; with --swap", "check": check_pairs},
    )
    dtype: str = field(default="auto", metadata={"help": "auto, float32, bfloat16 or float16"})
    partition: str = field(default="thirds", metadata=PARTITION_ARGUMENT)
    cuts: list[int] = field(default_factory=list, metadata=CUTS_ARGUMENT)
    tasks: list[str] = field(
        default_factory=list,
        metadata={"help": "current location of prompt sets that were moved after eval.run, named as its --tasks"},
    )
    overwrite: bool = field(default=False, metadata=OVERWRITE_ARGUMENT)

    def __post_init__(self) -> None:
        check_least(self, limit=1, max_tokens=1)
        check_loading(dtype=self.dtype)
        if self.show_heads and not self.heads:
            raise ValueError("--show-heads needs the maps of the heads; add --heads")
        if self.pairs and not self.swap:
            raise ValueError("--pairs has no effect without --swap; name the output directories of analyze.swap")


def write_look(arguments: LookArguments, plan: Plan) -> list[str]:
    """Runs what has not been run, and writes tables and page; returns the lines to print."""
    heads = parse_heads(arguments.show_heads, plan)
    swaps = read_swaps(arguments.swap, arguments.pairs, plan.readers)
    output_dir = Path(arguments.output_dir)
    models = [reader.label for reader in plan.readers]
    partition = make_partition(plan.layout.num_layers, partition=arguments.partition, cuts=arguments.cuts)
    kept = (
        "limit",
        "authors",
        "max_tokens",
        "drop_sinks",
        "rollout",
        "heads",
        "show_heads",
        "dtype",
        "partition",
        "cuts",
    )
    settings = {
        "models": {reader.label: reader.run["settings"]["model_fingerprint"] for reader in plan.readers},
        "evaluations": {reader.label: reader.run["settings"]["tasks"] for reader in plan.readers},
        **{name: getattr(arguments, name) for name in kept},
        "swaps": {
            entry.label: file_sha256(entry.directory / RECORDS_FILE) for entry in map(parse_entry, arguments.swap)
        },
    }
    with open_run(output_dir, command="analyze.look", settings=settings, overwrite=arguments.overwrite) as run:
        if run.finished:
            return summary(read_table(output_dir / "pictures.csv"), read_table(output_dir / "tokens.csv"), models)
        reasons: dict[str, str] = {}
        records = read_all(
            plan, output_dir, partition, max_tokens=arguments.max_tokens, rollout=arguments.rollout,
            heads=arguments.heads, dtype=arguments.dtype, on_skip=reasons.__setitem__,
        )  # fmt: skip
        readings = {record["key"]: read_reading(record) for record in records}
        pictures = picture_table(plan.looks, readings, partition)
        tokens = token_table(plan.looks, readings)
        write_table(output_dir / "pictures.csv", pictures)
        write_table(output_dir / "tokens.csv", tokens)
        write_table(output_dir / "skipped.csv", _table(skipped(plan.looks, reasons)))
        lines = summary(pictures, tokens, models)
        page = render(
            plan.looks, readings, tokens, models=models, partition=partition, lines=lines,
            drop_sinks=arguments.drop_sinks, heads=heads, swaps=swaps[: arguments.limit],
        )  # fmt: skip
        write_text(output_dir / "look.html", page)
    return lines


def _table(rows: list[dict[str, str]]) -> "pd.DataFrame":
    import pandas as pd

    return pd.DataFrame(rows, columns=SKIPPED_COLUMNS)


def main(argv: list[str] | None = None) -> None:
    (arguments,) = parse_arguments(argv, LookArguments, description=__doc__, check_inputs=True)
    entries = [parse_entry(text) for text in arguments.models]
    plan = read_plan(
        entries, tasks=arguments.tasks, authors=arguments.authors, limit=arguments.limit, rollout=arguments.rollout
    )
    lines = write_look(arguments, plan)
    print(*lines, sep="\n")
    print(f"prompts: {plan.num_prompts}, of which the models disagree on {plan.num_flipped}")
    print(f"to read: {Path(arguments.output_dir) / 'look.html'}")
