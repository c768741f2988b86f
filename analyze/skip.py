"""Which layers does an answer need? Each left out in turn, its skip connection kept, and the drop in accuracy measured.

    python -m analyze.skip --model CHECKPOINT --tasks gsm8k:FILE math500:FILE --output-dir outputs/skip/rl
    accelerate launch -m analyze.skip --model … --tasks outputs/pocket/data:test --abilities reasoning …

Layer k's output is replaced by its input, in the prefill and in every step of decoding (paper, App. D); likewise whole
blocks, and a layer's attention or MLP alone (`analyze/skip_plans.py`). Different problems and different skipped layers
are rows of one batch (`analyze/skipping.py`). Replies are greedy and graded by the one grader.

D/records.jsonl     one record a problem and configuration, with the whole reply
D/rates.csv         per task, ability and configuration: accuracy with Wilson's interval; the drop against the model
                    with nothing left out, paired, with its interval; what could not be judged, ran to the limit, or was
                    ended because it went round in circles (`analyze/repetition.py`), each counted apart
D/controls.csv      with nothing left out, are the replies those of the plain model, made without this probe?
D/figures/drop.png  the drop over depth

A task is `FOLDER:SPLIT` of a prompt set, or `gsm8k:FILE` or `math500:FILE` (`data_builders/reasoning_sets.py`). A
killed command continues; batches are the same whether or not it was killed, and however many processes share them.
Where memory runs out a batch is halved.

Known limits: a batch goes on until its longest reply has ended. In lower precision than float32 a reply may hang on the
shape of its batch; `controls.csv` says how many do.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from analyze.skip_figures import draw_all
from analyze.skip_plans import KINDS, NONE, Configuration, make_configurations
from analyze.skip_tables import PLAIN, control_table, rate_table
from data_builders.prompts import ABILITIES, Prompt, prompts_fingerprint
from data_builders.reasoning_sets import FORMATS, read_reasoning_set, reasoning_set_fingerprint
from eval.batching import BatchSize
from eval.grading import grade
from eval.prompting import check_style
from eval.run import Task, load_task
from eval.subject import Subject, open_subject
from models.blocks import make_partition
from models.layout import layout_of
from tracking.command import did_you_mean, parse_arguments, run_command
from tracking.processes import on_main_process
from tracking.progress import progress
from tracking.records import Record
from tracking.sharding import SharedLog, open_shared_run
from tracking.tables import format_columns, write_table

if TYPE_CHECKING:
    import pandas as pd

    from eval.generation import Generation


@dataclass(frozen=True, kw_only=True)
class SkipArguments:
    """What is left out of which model, and on which problems."""

    model: str = field(metadata={"help": "checkpoint folder, hub id, or a recipe's .yaml"})
    tasks: list[str] = field(metadata={"help": "FOLDER:SPLIT of a prompt set, gsm8k:FILE or math500:FILE, several"})
    output_dir: str = field(metadata={"help": "where records, tables and figures are written"})
    configurations: list[str] = field(
        default_factory=lambda: list(KINDS),
        metadata={"help": f"what is left out in turn: any of {', '.join(KINDS)}, or expressions such as llm:4-7.mlp"},
    )
    abilities: list[str] = field(
        default_factory=list, metadata={"help": f"only prompts of these abilities, of {', '.join(ABILITIES)}"}
    )
    max_problems: int | None = field(default=None, metadata={"help": "only the first so many problems of each task"})
    partition: str = field(default="thirds", metadata={"help": "thirds or paper"})
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
        check_style(self.prompt_style)
        for name, least in (("max_new_tokens", 1), ("batch_size", 1), ("max_problems", 1), ("repetition_window", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}; it must be at least {least}")
        if 0 < self.repetition_window < 16:
            raise ValueError(
                f"repetition_window is {self.repetition_window}; so few tokens repeat in sound replies too, it must be "
                "at least 16, or 0 to end no reply"
            )
        for ability in self.abilities:
            if ability not in ABILITIES:
                expected = f"expected {', '.join(ABILITIES)}{did_you_mean(ability, ABILITIES)}"
                raise ValueError(f"ability {ability!r} is unknown; {expected}")


@dataclass(frozen=True, kw_only=True)
class Unit:
    """What is generated together: answers to prompts of one task."""

    task: Task
    rows: tuple[tuple[int, Configuration | None], ...]
    """(number of the prompt, what is left out); None for the plain model, without the probe's hooks."""

    def key(self, row: tuple[int, Configuration | None]) -> str:
        number, configuration = row
        return record_key(self.task, self.task.prompts[number], configuration)

    @property
    def keys(self) -> list[str]:
        return [self.key(row) for row in self.rows]


def record_key(task: Task, prompt: Prompt, configuration: Configuration | None) -> str:
    """Names the reply to one prompt under one configuration."""
    return f"{task.name}/{prompt.id}/{configuration.name if configuration else PLAIN}"


def load_problems(name: str, arguments: SkipArguments) -> tuple[Task, str]:
    """Reads a task and returns it with a fingerprint of its file.

    Raises:
        ValueError: where it cannot be read, or holds none of the abilities that are asked for.
    """
    kind, _, file = name.partition(":")
    if kind in FORMATS:
        path = Path(file)
        task = Task(name=kind, directory=path.parent, prompts=read_reasoning_set(kind, path))
        fingerprint = reasoning_set_fingerprint(path)
    else:
        task = load_task(name)
        fingerprint = prompts_fingerprint(task.directory, task.name)
    wanted = [prompt for prompt in task.prompts if not arguments.abilities or prompt.ability in arguments.abilities]
    if not wanted:
        raise ValueError(f"task {name} has no prompts of {', '.join(arguments.abilities)}; name other abilities")
    return Task(name=task.name, directory=task.directory, prompts=wanted[: arguments.max_problems]), fingerprint


def probe(arguments: SkipArguments) -> Path:
    """Runs the probe to its end and returns its output directory.

    Raises:
        ValueError: for a mistake in the arguments, before anything is written.
        RuntimeError: where the control does not hold; the tables that show it are written.
    """
    loaded = [load_problems(name, arguments) for name in arguments.tasks]
    tasks = [task for task, _ in loaded]
    names = [task.name for task in tasks]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two tasks have the name {name!r}; probe them into two output directories")
    subject = open_subject(arguments.model)
    layout = layout_of(subject.directory)
    seeing = [prompt.id for task in tasks for prompt in task.prompts if prompt.images]
    if layout.family.text_only and seeing:
        raise ValueError(
            f"prompt {seeing[0]!r} has images ({len(seeing)} such), and {layout.family.model_type} is a text-only "
            "model; name abilities without images"
        )
    partition = make_partition(layout.num_layers, partition=arguments.partition, cuts=arguments.cuts)
    configurations = make_configurations(arguments.configurations, layout, partition)
    settings: dict[str, Any] = {
        "model": arguments.model,
        "model_fingerprint": subject.fingerprint,
        "tasks": {task.name: fingerprint for task, fingerprint in loaded},
        "configurations": [configuration.name for configuration in configurations],
        "partition": str(partition),
        **{
            name: getattr(arguments, name)
            for name in (
                "abilities", "max_problems", "prompt_style", "system_prompt", "max_new_tokens", "repetition_window",
                "batch_size", "dtype", "attn_implementation",
            )
        },
    }  # fmt: skip
    output_dir = Path(arguments.output_dir)
    with open_shared_run(output_dir, command="analyze.skip", settings=settings, overwrite=arguments.overwrite) as run:
        if run.finished:
            return output_dir
        run.note(**subject.facts)
        keys = [
            record_key(task, prompt, configuration)
            for task in tasks
            for prompt in task.prompts
            for configuration in (None, *configurations)
        ]
        with SharedLog(output_dir, keys) as log:
            _answer_all(arguments, subject, tasks, configurations, log)
            records = log.merge()

        def write() -> None:
            rates, controls = rate_table(records, configurations, partition), control_table(records)
            write_table(output_dir / "rates.csv", rates)
            write_table(output_dir / "controls.csv", controls)
            draw_all(rates, partition, output_dir / "figures")
            _print_summary(rates, controls)
            _check_controls(controls, output_dir)

        on_main_process(write)
    return output_dir


def make_units(
    task: Task, texts: Sequence[str], configurations: Sequence[Configuration], batch_size: int
) -> list[Unit]:
    """Returns all of a task's batches, plain ones first: prompts of similar length and equally many images together.

    The rows of one prompt stand beside each other, since what they share is computed once.
    """
    from eval.generation import make_batches

    units = [
        Unit(task=task, rows=tuple((number, None) for number in batch))
        for batch in make_batches(task.prompts, texts, batch_size)
    ]
    rows: list[tuple[int, Configuration | None]] = []
    for (number,) in make_batches(task.prompts, texts, 1):
        for configuration in configurations:
            if rows and (
                len(rows) == batch_size or len(task.prompts[rows[-1][0]].images) != len(task.prompts[number].images)
            ):
                units.append(Unit(task=task, rows=tuple(rows)))
                rows = []
            rows.append((number, configuration))
    return [*units, Unit(task=task, rows=tuple(rows))]


def _answer_all(
    arguments: SkipArguments,
    subject: Subject,
    tasks: Sequence[Task],
    configurations: Sequence[Configuration],
    log: SharedLog,
) -> None:
    """Generates, grades and records what is not done."""
    from eval.generation import render_prompt

    model, processor = subject.load(dtype=arguments.dtype, attn_implementation=arguments.attn_implementation)
    texts = {
        task.name: [
            render_prompt(processor, prompt, style=arguments.prompt_style, system_prompt=arguments.system_prompt)
            for prompt in task.prompts
        ]
        for task in tasks
    }
    units = [
        unit for task in tasks for unit in make_units(task, texts[task.name], configurations, arguments.batch_size)
    ]
    own = [units[number] for number in log.pending_groups([unit.keys for unit in units])]
    size = BatchSize(arguments.batch_size)
    for unit in progress(own, label=arguments.model, unit="batch"):
        answers = _answers(arguments, model, processor, unit, texts[unit.task.name], size)
        log.append(*[_record(unit, row, texts[unit.task.name], model, answer) for row, answer in answers])


def _answers(
    arguments: SkipArguments, model: Any, processor: Any, unit: Unit, texts: Sequence[str], size: BatchSize
) -> Iterator[tuple[tuple[int, Configuration | None], "Generation"]]:
    import torch

    from analyze.skip_generation import Rows, answer_rows
    from analyze.skipping import RowwiseSkip
    from eval.generation import generate, greedy_settings

    settings = greedy_settings(model, processor, arguments.max_new_tokens)

    def images(numbers: Sequence[int]) -> list[list[Path]]:
        return [[unit.task.directory / image for image in unit.task.prompts[n].images] for n in numbers]

    def work(rows: Sequence[tuple[int, Configuration | None]]) -> list["Generation"]:
        numbers = [number for number, _ in rows]
        configurations = [configuration for _, configuration in rows if configuration]
        if not configurations:
            return generate(model, processor, [texts[n] for n in numbers], images(numbers), settings)
        prompts = list(dict.fromkeys(numbers))
        with RowwiseSkip(model) as skip:
            plans = [configuration.plan(skip.num_layers) for configuration in configurations]
            batch = Rows(
                texts=[texts[n] for n in prompts],
                images=images(prompts),
                prompts=[prompts.index(n) for n in numbers],
                plan=torch.from_numpy(np.stack(plans)),
            )
            return answer_rows(model, processor, skip, batch, settings, repetition_window=arguments.repetition_window)

    for rows, generations in size.run(unit.rows, work):
        yield from zip(rows, generations, strict=True)


def _record(
    unit: Unit, row: tuple[int, Configuration | None], texts: Sequence[str], model: Any, answer: "Generation"
) -> Record:
    number, configuration = row
    prompt = unit.task.prompts[number]
    verdict = grade(answer.response, prompt.answer, prompt.answer_kind)
    return {
        "key": unit.key(row),
        "task": unit.task.name,
        "id": prompt.id,
        "ability": prompt.ability,
        "configuration": configuration.name if configuration else PLAIN,
        "gold": prompt.answer,
        "answer_kind": prompt.answer_kind,
        "prompt_sha256": hashlib.sha256(texts[number].encode()).hexdigest(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "response": answer.response,
        "num_tokens": answer.num_tokens,
        "finish_reason": answer.finish_reason,
        "extracted": verdict.extracted,
        "status": verdict.status,
        "rule": verdict.rule,
    }


def _check_controls(controls: "pd.DataFrame", output_dir: Path) -> None:
    for _, row in controls[~controls["holds"]].iterrows():
        raise RuntimeError(
            f"{row['task']}: with nothing left out only {row['num_equal_replies']} of {row['n']} replies are the plain "
            f"model's; the drops in {output_dir / 'rates.csv'} are not to be trusted"
        )


def _print_summary(rates: "pd.DataFrame", controls: "pd.DataFrame") -> None:
    """Says what stands in the tables: the three largest drops of each kind, and what was counted apart."""
    columns = ["task", "ability", "configuration", "n", "accuracy", "drop", "drop_low", "drop_high"]
    shown = rates.sort_values("drop", ascending=False, kind="stable").groupby(["task", "ability", "kind"]).head(3)
    rows = [columns]
    for row in shown.sort_index()[columns].to_numpy().tolist():
        rows.append([f"{value:.3f}" if isinstance(value, float) else str(value) for value in row])
    print("\n".join(format_columns(rows, right=range(3, len(columns)))))
    for _, control in controls.iterrows():
        print(
            f"control: {control['task']}: with nothing left out {control['num_equal_replies']} of {control['n']} "
            "replies are the plain model's"
        )
    own = rates[rates["configuration"] != NONE]
    print(
        f"of the replies with parts left out {own['at_limit_frac'].mean():.1%} ran to the limit, "
        f"{own['repetition_frac'].mean():.1%} went round in circles and were ended; "
        f"{int(own['num_unscored'].sum())} could not be judged"
    )


def main(argv: list[str] | None = None) -> None:
    (arguments,) = parse_arguments(argv, SkipArguments, description=__doc__)
    output_dir = probe(arguments)
    print(f"rates: {output_dir / 'rates.csv'}")


if __name__ == "__main__":
    run_command(main)
