"""What does the change of one layer do by itself? Transplants between two checkpoints, without training.

    python -m analyze.transplant --start outputs/pocket/sft/final --ends full@0=outputs/pocket/arms/full-seed0/final \\
        --tasks outputs/pocket/data/data:test --output-dir outputs/transplants

For each unit (every decoder layer, its attention or MLP, blocks, regions: `plan.py`) and each factor alpha, two models
are evaluated: START + alpha (END - START) in this unit alone, and END - alpha (END - START), END without it. No
checkpoint is written: one loaded model is edited in place. What does not depend on the unit, such as the vision tower
and the layers below it, is computed once per batch for all units. Replies are greedy, in the batches of `eval.run`, and
equal to its replies for the written checkpoints.

D/records.jsonl      every reply: END, direction, unit, alpha, task, id, response, verdict
D/transplants.csv    per ability, unit and alpha: accuracy, difference to START or END, share of the gain, intervals
D/scores.csv         accuracy of START and of every END
D/prediction.csv     with --trained: transplants beside the trained arms, and agreement.csv: rank correlations
D/controls.csv       are the replies those of whole passes, and are edited and restored weights exact?
D/transplants.html   the page to read; figures/

The trained arms can be added later: the same command with --trained writes the comparison from the tables that it has.
Several runs of one arm are given as NAME@SEED=CHECKPOINT and pooled; several arms are evaluated side by side. A killed
command continues.

Known limits: only the changes of the given checkpoints are tested, so a layer that could learn more if it trained alone
is underestimated. Greedy replies only. Under accelerate each process reads the prompts of its units by itself.
"""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analyze.layers.plan import NECESSITY, SUFFICIENCY
from analyze.probes.inputs import check_choices, check_loading
from analyze.transplant.controls import check_controls, control_table, weight_rows
from analyze.transplant.figures import draw_all
from analyze.transplant.page import render
from analyze.transplant.pieces import Sweep, make_pieces
from analyze.transplant.plan import DIRECTIONS, START, expand_units
from analyze.transplant.prediction import agreement_table, find_trained, prediction_table, read_trained
from analyze.transplant.summary import summary
from analyze.transplant.tables import score_rows, transplant_table
from eval.replies.answering import make_query_batches
from eval.replies.conditions import make_queries
from eval.replies.decoding import REPETITION_ARGUMENT, check_repetition_window
from eval.replies.engines import EngineOptions
from eval.replies.outcomes import GIVEN
from eval.replies.pictures import MAX_PIXELS_ARGUMENT, MIN_PIXELS_ARGUMENT, answer_spaces, pixel_limits
from eval.replies.prompting import MAX_TOKENS_ARGUMENT, STYLE_ARGUMENT, SYSTEM_ARGUMENT, check_style
from eval.replies.sampling import SamplingArguments
from eval.replies.subject import Subject, open_subject
from eval.statistics.pairing import Entry, parse_entry
from eval.tasks import LIMIT_ARGUMENT, Task, check_task, open_task
from models.adapters.opening import check_model, open_model
from models.blocks import CUTS_ARGUMENT, PARTITION_ARGUMENT, make_partition
from models.checkpoint import Checkpoint, check_same_tensors
from models.layout import layout_of
from models.loading import ATTENTION_ARGUMENT, DTYPE_ARGUMENT, load_processor
from tracking.command import check_all, check_least, is_main_process, parse_arguments
from tracking.processes import on_main_process
from tracking.product import write_text
from tracking.progress import say
from tracking.run import OVERWRITE_ARGUMENT
from tracking.sharding import SharedLog, open_shared_run
from tracking.tables import read_table, write_table

if TYPE_CHECKING:
    import pandas as pd

    from analyze.transplant.plan import Unit
    from models.blocks import Partition
    from tracking.records import Record

COMMAND = "analyze.transplant"
UNITS = ("each", "blocks", "regions")
ALPHAS = (0.5, 1.0, 1.5)


def check_end(text: str) -> None:
    """Refuses what is no NAME=CHECKPOINT, in a moment."""
    check_model(str(_checkpoint_of(text)))


def _checkpoint_of(text: str) -> Path:
    if "=" not in text:
        raise ValueError(f"{text!r} is no NAME=CHECKPOINT or NAME@SEED=CHECKPOINT, such as full@0=outputs/full/final")
    return parse_entry(text).directory


@dataclass(frozen=True, kw_only=True)
class TransplantArguments:
    """The two checkpoints, what is transplanted, and how prompts are asked."""

    start: str = field(
        metadata={
            "help": "START, such as the SFT checkpoint: folder or hub id, or a PEFT adapter",
            "check": check_model,
        }
    )
    ends: list[str] = field(
        metadata={"help": "END checkpoints: NAME=CHECKPOINT, or NAME@SEED=CHECKPOINT for runs of one arm",
                  "check": check_end}
    )  # fmt: skip
    tasks: list[str] = field(
        metadata={"help": "one or more tasks of eval.run: FOLDER:SPLIT, gsm8k:FILE, mathvista, …", "check": check_task}
    )
    output_dir: str = field(metadata={"help": "where records, tables, figures and the page are written"})
    units: list[str] = field(
        default_factory=lambda: list(UNITS),
        metadata={"help": "what is transplanted at a time: each, each.attn, each.mlp, each:3 (windows), blocks, "
                  "regions, or block expressions such as llm:4-7.mlp or early+vision"},
    )  # fmt: skip
    alphas: list[float] = field(
        default_factory=lambda: list(ALPHAS), metadata={"help": "factors of the change; 0 is always evaluated"}
    )
    directions: list[str] = field(
        default_factory=lambda: list(DIRECTIONS),
        metadata={"help": f"{SUFFICIENCY} (START with the change of a unit), {NECESSITY} (END without it), or both"},
    )
    trained: list[str] = field(
        default_factory=list,
        metadata={"help": "folders of analyze.layers, train.necessity or eval.compare, whose trained arms the "
                  "transplants are compared with"},
    )  # fmt: skip
    limit: int | None = field(default=None, metadata=LIMIT_ARGUMENT)
    partition: str = field(default="thirds", metadata=PARTITION_ARGUMENT)
    cuts: list[int] = field(default_factory=list, metadata=CUTS_ARGUMENT)
    prompt_style: str = field(default="plain", metadata=STYLE_ARGUMENT)
    system_prompt: str | None = field(default=None, metadata=SYSTEM_ARGUMENT)
    max_new_tokens: int = field(default=2048, metadata=MAX_TOKENS_ARGUMENT)
    repetition_window: int = field(default=128, metadata=REPETITION_ARGUMENT)
    min_pixels: int | None = field(default=None, metadata=MIN_PIXELS_ARGUMENT)
    max_pixels: int | None = field(default=None, metadata=MAX_PIXELS_ARGUMENT)
    batch_size: int = field(default=16, metadata={"help": "replies generated together; halved if memory runs out"})
    dtype: str = field(default="auto", metadata=DTYPE_ARGUMENT)
    attn_implementation: str = field(default="sdpa", metadata=ATTENTION_ARGUMENT)
    overwrite: bool = field(default=False, metadata=OVERWRITE_ARGUMENT)

    def __post_init__(self) -> None:
        check_all(
            partial(check_style, self.prompt_style),
            partial(check_loading, dtype=self.dtype, attn_implementation=self.attn_implementation),
            partial(check_least, self, max_new_tokens=1, batch_size=1, limit=1, repetition_window=0),
            partial(check_repetition_window, self.repetition_window),
            partial(check_choices, "direction", self.directions, DIRECTIONS),
            self._check_alphas,
            self._check_ends,
        )

    def _check_alphas(self) -> None:
        if not self.alphas or 0 in self.alphas or len(set(self.alphas)) < len(self.alphas):
            raise ValueError(
                f"alphas are {' '.join(f'{alpha:g}' for alpha in self.alphas) or 'empty'}; expected different numbers "
                "other than 0, such as 0.5 1 1.5 (with 0 a model is START or END itself, which is always evaluated)"
            )

    def _check_ends(self) -> None:
        labels = [parse_entry(text).label for text in self.ends]
        for label in labels:
            if label == START or labels.count(label) > 1:
                raise ValueError(f"END {label!r} is a name that is taken already; expected another, such as full@1")


@dataclass(frozen=True, kw_only=True)
class Opened:
    """The opened inputs."""

    subject: Subject
    donors: dict[str, Checkpoint]
    ends: list[Entry]
    tasks: list[Task]
    sweep: Sweep
    partition: "Partition"


def open_inputs(arguments: TransplantArguments) -> Opened:
    """Opens checkpoints and tasks.

    Raises:
        ValueError: if the checkpoints do not belong together, or a unit or task is wrong.
    """
    subject = open_subject(arguments.start)
    start = open_model(arguments.start)
    ends = [parse_entry(text) for text in arguments.ends]
    donors = {START: start, **{end.label: open_model(str(end.directory)) for end in ends}}
    for end in ends:
        check_same_tensors(start, donors[end.label], carried=False)
    layout = layout_of(subject.directory)
    partition = make_partition(layout.num_layers, partition=arguments.partition, cuts=arguments.cuts)
    units: list[Unit] = expand_units(arguments.units, layout, partition)
    tasks = [open_task(name).limited(arguments.limit) for name in arguments.tasks]
    names = [task.name for task in tasks]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two tasks have the name {name!r}; evaluate them into two output directories")
    for folder in arguments.trained:
        find_trained(Path(folder))
    sweep = Sweep(
        ends=tuple(end.label for end in ends),
        units=tuple(units),
        alphas=tuple(arguments.alphas),
        directions=tuple(arguments.directions),
    )
    return Opened(subject=subject, donors=donors, ends=ends, tasks=tasks, sweep=sweep, partition=partition)


def transplant(arguments: TransplantArguments) -> Path:
    """Runs the sweep to its end and returns its output directory.

    Raises:
        ValueError: for a mistake in the arguments, before anything is written.
        RuntimeError: if a control does not hold; the tables that show it are written.
    """
    from analyze.transplant.run import Transplants
    from eval.replies.generation import render_prompt, resolved_settings

    opened = open_inputs(arguments)
    trained = read_trained([Path(folder) for folder in arguments.trained]) if arguments.trained else None
    subject, sweep = opened.subject, opened.sweep
    processor = load_processor(subject.directory)
    options = EngineOptions(
        settings=resolved_settings(subject.directory, processor, arguments.max_new_tokens),
        sampling=SamplingArguments(),
        limits=pixel_limits(processor, min_pixels=arguments.min_pixels, max_pixels=arguments.max_pixels),
        repetition_window=arguments.repetition_window,
        dtype=arguments.dtype,
        attn_implementation=arguments.attn_implementation,
    )
    output_dir = Path(arguments.output_dir)
    settings = _settings(arguments, opened, options)
    with open_shared_run(output_dir, command=COMMAND, settings=settings, overwrite=arguments.overwrite) as run:
        if run.finished:
            if trained is not None:
                on_main_process(lambda: _report(output_dir, opened, trained))
            return output_dir
        queries = [query for task in opened.tasks for query in make_queries(task, lambda _: (GIVEN,), {}, 1)]
        texts = {
            query.key: render_prompt(
                processor, query.prompt, style=arguments.prompt_style, system_prompt=arguments.system_prompt
            )
            for query in queries
        }
        pieces = make_pieces(sweep, make_query_batches(queries, texts, arguments.batch_size))
        say(
            f"{len(sweep.variants):,} models, {len(queries):,} prompts each, replies of at most "
            f"{arguments.max_new_tokens:,} tokens (--max-new-tokens)"
        )
        spaces = answer_spaces(opened.donors[START].family.model_type, options.limits)
        with SharedLog(output_dir, [key for piece in pieces for key in piece.keys]) as log:
            own = [pieces[number] for number in log.pending_groups([piece.keys for piece in pieces])]
            work = Transplants(subject, processor, options, opened.donors, texts, spaces)
            run.note(loaded_dtype=work.engine.dtype, end_paths={end.label: str(end.directory) for end in opened.ends})
            before = work.live.hashes()
            work.answer(own, log, arguments.batch_size, title=f"{arguments.start}: transplants")
            weights = weight_rows(work.live, sweep.ends, before)
            records = log.merge()

        def finish() -> None:
            _write(output_dir, records, weights, opened)
            _report(output_dir, opened, trained)

        on_main_process(finish)
    return output_dir


def _write(output_dir: Path, records: "list[Record]", weights: list[dict[str, Any]], opened: Opened) -> None:
    """Writes the tables that depend on the records alone."""
    tables = {
        "controls": control_table(weights, records),
        "transplants": transplant_table(records, opened.sweep.variants, opened.ends, opened.partition),
        "scores": score_rows(records, opened.ends),
    }
    for name, table in tables.items():
        write_table(output_dir / f"{name}.csv", table)
    check_controls(tables["controls"], output_dir)


def _report(output_dir: Path, opened: Opened, trained: "pd.DataFrame | None") -> None:
    """Writes the comparison with trained arms, the figures and the page from the tables."""
    table, scores, controls = (read_table(output_dir / f"{name}.csv") for name in ("transplants", "scores", "controls"))
    prediction = None if trained is None else prediction_table(table, trained)
    agreement = None if prediction is None else agreement_table(prediction)
    for name, each in (("prediction", prediction), ("agreement", agreement)):
        if each is not None:
            write_table(output_dir / f"{name}.csv", each)
    figures = draw_all(table, scores, prediction, opened.partition, output_dir / "figures")
    page = render(str(opened.subject.name), table, scores, controls, prediction, agreement, figures)
    write_text(output_dir / "transplants.html", page)


def _settings(arguments: TransplantArguments, opened: Opened, options: EngineOptions) -> dict[str, Any]:
    """Returns all settings that affect a record or a table."""
    return {
        "start": arguments.start,
        "start_fingerprint": opened.subject.fingerprint,
        "ends": {end.label: opened.donors[end.label].fingerprint() for end in opened.ends},
        "tasks": {task.name: task.fingerprint for task in opened.tasks},
        "units": [unit.name for unit in opened.sweep.units],
        "partition": str(opened.partition),
        "generation": options.settings,
        **{
            name: getattr(arguments, name)
            for name in (
                "alphas", "directions", "limit", "prompt_style", "system_prompt", "repetition_window",
                "min_pixels", "max_pixels", "batch_size", "dtype", "attn_implementation",
            )
        },
    }  # fmt: skip


def _summary(output_dir: Path) -> list[str]:
    agreement = output_dir / "agreement.csv"
    return summary(read_table(output_dir / "transplants.csv"), read_table(agreement) if agreement.is_file() else None)


def main(argv: list[str] | None = None) -> None:
    (arguments,) = parse_arguments(argv, TransplantArguments, description=__doc__, check_inputs=True)
    output_dir = transplant(arguments)
    if is_main_process():
        print(*_summary(output_dir), sep="\n")
        print(f"transplants: {output_dir / 'transplants.csv'}, to read: {output_dir / 'transplants.html'}")
