"""Which layers does an answer need? Each left out in turn, its skip connection kept, and the drop in accuracy measured.

    python -m analyze.skip --model CHECKPOINT --tasks gsm8k:FILE math500:FILE --output-dir outputs/skip/rl
    accelerate launch -m analyze.skip --model … --tasks outputs/pocket/data:test --abilities reasoning …

Layer k's output is replaced by its input, in the prefill and in every step of decoding (paper, App. D); likewise whole
blocks, and a layer's attention or MLP alone (`plan.py`). Different problems and different skipped layers
are rows of one batch (`layers.py`). Replies are greedy and graded by the one grader.

D/records.jsonl     one record a problem and configuration, with the whole reply
D/rates.csv         per task, ability and configuration: accuracy with Wilson's interval; the drop against the model
                    with nothing left out, paired, with its interval; what could not be judged, ran to the limit, or was
                    ended because it went round in circles (`eval/replies/repetition.py`), each counted apart
D/controls.csv      with nothing left out, are the replies those of the plain model, made without this probe?
D/skipped.csv       problems that were left out since an image cannot be read
D/figures/drop.png  the drop over depth

Tasks are those of `analyze/probes/inputs.py`. A killed command continues; batches are the same whether or not it was
killed, and however many processes share them. Where memory runs out a batch is halved.

Known limits: a batch goes on until its longest reply has ended. In lower precision than float32 a reply may hang on the
shape of its batch; `controls.csv` says how many do.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from analyze.probes.inputs import (
    SKIPPED_COLUMNS,
    Problem,
    check_choices,
    check_loading,
    check_sight,
    load_problems,
    readable,
    skipped_rows,
    unreadable_images,
)
from analyze.skip.figures import draw_all
from analyze.skip.plan import KINDS, NONE, Configuration, make_configurations
from analyze.skip.run import Row, all_rows, make_units, row_record
from analyze.skip.tables import control_table, rate_table
from data_builders.prompt_sets.prompts import ABILITIES
from eval.replies.batching import BatchSize
from eval.replies.prompting import check_style
from eval.replies.subject import Subject, check_subject, open_subject
from eval.run import MIN_REPETITION_WINDOW
from eval.tasks import check_task
from models.blocks import PARTITIONS, make_partition
from models.layout import layout_of
from tracking.command import check_all, check_least, is_main_process, parse_arguments
from tracking.processes import on_main_process
from tracking.progress import progress
from tracking.sharding import SharedLog, open_shared_run
from tracking.tables import format_columns, write_table

if TYPE_CHECKING:
    import pandas as pd

    from eval.replies.generation import Generation


@dataclass(frozen=True, kw_only=True)
class SkipArguments:
    """What is left out of which model, and on which problems."""

    model: str = field(metadata={"help": "checkpoint folder, hub id, or a recipe's .yaml", "check": check_subject})
    tasks: list[str] = field(
        metadata={"help": "tasks of eval.run: FOLDER:SPLIT, gsm8k:FILE, mathvista, …; several", "check": check_task}
    )
    output_dir: str = field(metadata={"help": "where records, tables and figures are written"})
    configurations: list[str] = field(
        default_factory=lambda: list(KINDS),
        metadata={"help": f"what is left out in turn: any of {', '.join(KINDS)}, or expressions such as llm:4-7.mlp"},
    )
    abilities: list[str] = field(
        default_factory=list, metadata={"help": f"only prompts of these abilities, of {', '.join(ABILITIES)}"}
    )
    limit: int | None = field(
        default=None,
        metadata={"help": "at most so many prompts of each task, the first", "formerly": ("max_problems",)},
    )
    partition: str = field(default="thirds", metadata={"help": "thirds or paper", "choices": PARTITIONS})
    cuts: list[int] = field(default_factory=list, metadata={"help": "two layer numbers instead, such as 8 20"})
    prompt_style: str = field(default="plain", metadata={"help": "plain, boxed or think"})
    system_prompt: str | None = field(default=None, metadata={"help": "system message; none by default"})
    max_new_tokens: int = field(default=2048, metadata={"help": "longest reply, in tokens"})
    repetition_window: int = field(
        default=128,
        metadata={"help": "a reply ends when its last so many tokens are four or more rounds of one cycle; 0: never"},
    )
    batch_size: int = field(default=128, metadata={"help": "rows generated together, halved where memory runs out"})
    dtype: str = field(default="auto", metadata={"help": "auto (as stored), float32 or bfloat16"})
    attn_implementation: str = field(default="sdpa", metadata={"help": "sdpa, eager or flash_attention_2"})
    overwrite: bool = field(default=False, metadata={"help": "start over"})

    def __post_init__(self) -> None:
        check_all(
            partial(check_style, self.prompt_style),
            partial(check_loading, dtype=self.dtype, attn_implementation=self.attn_implementation),
            partial(check_least, self, max_new_tokens=1, batch_size=1, limit=1, repetition_window=0),
            partial(check_choices, "ability", self.abilities or ABILITIES, ABILITIES),
            self._check_window,
        )

    def _check_window(self) -> None:
        if 0 < self.repetition_window < MIN_REPETITION_WINDOW:
            raise ValueError(
                f"repetition_window is {self.repetition_window}; so few tokens repeat in sound replies too, it must be "
                f"at least {MIN_REPETITION_WINDOW}, or 0 to end no reply"
            )


def probe(arguments: SkipArguments) -> Path:
    """Runs the probe to its end and returns its output directory.

    Raises:
        ValueError: for a mistake in the arguments, before anything is written.
        RuntimeError: where the control does not hold; the tables that show it are written.
    """
    problems, fingerprints = load_problems(arguments.tasks, abilities=arguments.abilities, limit=arguments.limit)
    subject = open_subject(arguments.model)
    layout = layout_of(subject.directory)
    check_sight(problems, layout)
    partition = make_partition(layout.num_layers, partition=arguments.partition, cuts=arguments.cuts)
    configurations = make_configurations(arguments.configurations, layout, partition)
    settings: dict[str, Any] = {
        "model": arguments.model,
        "model_fingerprint": subject.fingerprint,
        "tasks": fingerprints,
        "configurations": [configuration.name for configuration in configurations],
        "partition": str(partition),
        **{
            name: getattr(arguments, name)
            for name in (
                "abilities", "limit", "prompt_style", "system_prompt", "max_new_tokens", "repetition_window",
                "batch_size", "dtype", "attn_implementation",
            )
        },
    }  # fmt: skip
    output_dir = Path(arguments.output_dir)
    with open_shared_run(output_dir, command="analyze.skip", settings=settings, overwrite=arguments.overwrite) as run:
        if run.finished:
            return output_dir
        run.note(**subject.facts)
        unreadable = on_main_process(lambda: unreadable_images(problems))
        put = readable(problems, unreadable)
        with SharedLog(output_dir, [row.key for row in all_rows(put, configurations)]) as log:
            _answer_all(arguments, subject, put, configurations, log)
            records = log.merge()

        def write() -> None:
            import pandas as pd

            rates, controls = rate_table(records, configurations, partition), control_table(records)
            write_table(output_dir / "rates.csv", rates)
            write_table(output_dir / "controls.csv", controls)
            skipped = pd.DataFrame(skipped_rows(problems, unreadable), columns=SKIPPED_COLUMNS)
            write_table(output_dir / "skipped.csv", skipped)
            draw_all(rates, partition, output_dir / "figures")
            _print_summary(rates, controls, num_skipped=len(unreadable))
            _check_controls(controls, output_dir)

        on_main_process(write)
    return output_dir


def _answer_all(
    arguments: SkipArguments,
    subject: Subject,
    problems: Sequence[Problem],
    configurations: Sequence[Configuration],
    log: SharedLog,
) -> None:
    """Generates, grades and records what is not done."""
    from eval.replies.generation import render_prompt

    model, processor = subject.load(dtype=arguments.dtype, attn_implementation=arguments.attn_implementation)
    texts = {
        problem.key: render_prompt(
            processor, problem.prompt, style=arguments.prompt_style, system_prompt=arguments.system_prompt
        )
        for problem in problems
    }
    units = [
        unit
        for task in dict.fromkeys(problem.task for problem in problems)
        for unit in make_units([p for p in problems if p.task == task], texts, configurations, arguments.batch_size)
    ]
    own = [units[number] for number in log.pending_groups([[row.key for row in unit] for unit in units])]
    size = BatchSize(arguments.batch_size)
    dtype = str(model.dtype).removeprefix("torch.")
    for unit in progress(own, label=f"{arguments.model}: skip", unit="batch"):
        answers = _answers(arguments, model, processor, unit, texts, size)
        log.append(
            *[row_record(row, text=texts[row.problem.key], dtype=dtype, answer=answer) for row, answer in answers]
        )


def _answers(
    arguments: SkipArguments, model: Any, processor: Any, unit: Sequence[Row], texts: dict[str, str], size: BatchSize
) -> Iterator[tuple[Row, "Generation"]]:
    import torch

    from analyze.skip.generation import Rows, answer_rows
    from analyze.skip.layers import RowwiseSkip
    from eval.replies.generation import generate, greedy_settings

    settings = greedy_settings(model, processor, arguments.max_new_tokens)

    def work(rows: Sequence[Row]) -> list["Generation"]:
        problems = list(dict.fromkeys(row.problem for row in rows))
        rendered = [texts[problem.key] for problem in problems]
        images = [problem.image_paths for problem in problems]
        configurations = [row.configuration for row in rows if row.configuration]
        if not configurations:
            return generate(model, processor, rendered, images, settings)
        with RowwiseSkip(model) as skip:
            batch = Rows(
                texts=rendered,
                images=images,
                prompts=[problems.index(row.problem) for row in rows],
                plan=torch.from_numpy(np.stack([one.plan(skip.num_layers) for one in configurations])),
            )
            return answer_rows(model, processor, skip, batch, settings, repetition_window=arguments.repetition_window)

    for rows, generations in size.run(unit, work):
        yield from zip(rows, generations, strict=True)


def _check_controls(controls: "pd.DataFrame", output_dir: Path) -> None:
    for _, row in controls[~controls["holds"]].iterrows():
        raise RuntimeError(
            f"{row['task']}: with nothing left out only {row['num_equal_replies']} of {row['n']} replies are the plain "
            f"model's; the drops in {output_dir / 'rates.csv'} are not to be trusted"
        )


def _print_summary(rates: "pd.DataFrame", controls: "pd.DataFrame", *, num_skipped: int) -> None:
    """Says what stands in the tables: the three largest drops of each kind, and what was counted apart."""
    if num_skipped:
        print(f"{num_skipped} problems have an image that cannot be read and were left out: skipped.csv")
    columns = ["task", "ability", "configuration", "n", "accuracy", "drop", "drop_low", "drop_high"]
    shown = rates.sort_values("drop", ascending=False, kind="stable").groupby(["task", "ability", "kind"]).head(3)
    rows = [columns]
    for row in shown.sort_index()[columns].to_numpy().tolist():
        rows.append(["" if value != value or value is None else _in_words(value) for value in row])
    print("\n".join(format_columns(rows, right=range(3, len(columns)))))
    for _, control in controls.iterrows():
        print(
            f"control: {control['task']}: with nothing left out {control['num_equal_replies']} of {control['n']} "
            "replies are the plain model's"
        )
    own = rates[rates["configuration"] != NONE]
    if own.empty:
        return
    print(
        f"of the replies with parts left out {own['at_limit_frac'].mean():.1%} ran to the limit, "
        f"{own['repetition_frac'].mean():.1%} went round in circles and were ended; "
        f"{int(own['num_unscored'].sum())} could not be judged"
    )


def _in_words(value: float | str) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def main(argv: list[str] | None = None) -> None:
    (arguments,) = parse_arguments(argv, SkipArguments, description=__doc__, check_inputs=True)
    output_dir = probe(arguments)
    if is_main_process():
        print(f"rates: {output_dir / 'rates.csv'}")
