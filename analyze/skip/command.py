"""Which layers does an answer need? Skips each layer in turn and measures the drop in accuracy.

    python -m analyze.skip --model CHECKPOINT --tasks gsm8k:FILE math500:FILE --output-dir outputs/skip/rl
    accelerate launch -m analyze.skip --model … --tasks outputs/pocket/data:test --abilities reasoning …

Layer k's output is replaced by its input, in the prefill and in every step of decoding (paper, App. D); likewise whole
blocks, and a layer's attention or MLP alone (`plan.py`). Different problems and different skipped layers
are rows of one batch (`layers.py`). Replies are greedy and graded by the one grader.

D/records.jsonl     one record per problem and configuration, with the whole reply
D/rates.csv         per task, ability and configuration: accuracy with Wilson's interval; the paired drop from the model
                    with nothing skipped, with its interval; the numbers of replies that could not be judged, that
                    reached the token limit, and that were stopped for repetition (`eval/replies/repetition.py`)
D/controls.csv      with nothing skipped, do the replies equal those of the plain model without this probe?
D/skipped.csv       problems left out because an image cannot be read
D/figures/drop.png  the drop over depth

Tasks are those of `analyze/probes/inputs.py`. A killed command continues; batches are the same whether or not it was
killed, and however many processes share them. If memory runs out a batch is halved.

Known limits: a batch runs until its longest reply has ended. In lower precision than float32 a reply may depend on the
shape of its batch; `controls.csv` has the number of such replies.
"""

from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

from analyze.probes.inputs import (
    SKIPPED_COLUMNS,
    check_choices,
    check_loading,
    check_sight,
    leave_out_unreadable,
    load_problems,
)
from analyze.skip.controls import check_controls, control_table
from analyze.skip.figures import draw_all
from analyze.skip.plan import KINDS, Asking, all_rows, make_configurations
from analyze.skip.run import answer_all
from analyze.skip.summary import summary
from analyze.skip.tables import rate_table
from data_builders.prompt_sets.prompts import ABILITIES
from eval.replies.decoding import REPETITION_ARGUMENT, check_repetition_window
from eval.replies.prompting import MAX_TOKENS_ARGUMENT, STYLE_ARGUMENT, SYSTEM_ARGUMENT, check_style
from eval.replies.subject import check_subject, open_subject
from eval.tasks import LIMIT_ARGUMENT, check_task
from models.adapters.opening import BASE_ARGUMENT
from models.blocks import CUTS_ARGUMENT, PARTITION_ARGUMENT, make_partition
from models.layout import layout_of
from models.loading import ATTENTION_ARGUMENT, DTYPE_ARGUMENT
from tracking.command import check_all, check_least, is_main_process, parse_arguments
from tracking.processes import on_main_process
from tracking.run import OVERWRITE_ARGUMENT
from tracking.sharding import SharedLog, open_shared_run
from tracking.tables import write_table


@dataclass(frozen=True, kw_only=True)
class SkipArguments:
    """The model, the problems, and what is skipped."""

    model: str = field(
        metadata={
            "help": "folder or hub id of a checkpoint or a PEFT adapter, or the .yaml of a splice's recipe",
            "check": check_subject,
        }
    )
    tasks: list[str] = field(
        metadata={"help": "one or more tasks of eval.run: FOLDER:SPLIT, gsm8k:FILE, mathvista, …", "check": check_task}
    )
    output_dir: str = field(metadata={"help": "where records, tables and figures are written"})
    base: str | None = field(default=None, metadata=BASE_ARGUMENT)
    configurations: list[str] = field(
        default_factory=lambda: list(KINDS),
        metadata={
            "help": f"what to skip, one after the other: any of {', '.join(KINDS)}, or block expressions such as "
            "llm:4-7.mlp"
        },
    )
    abilities: list[str] = field(
        default_factory=list, metadata={"help": f"use only prompts of these abilities: {', '.join(ABILITIES)}"}
    )
    limit: int | None = field(
        default=None,
        metadata=LIMIT_ARGUMENT | {"formerly": ("max_problems",)},
    )
    partition: str = field(
        default="thirds",
        metadata=PARTITION_ARGUMENT,
    )
    cuts: list[int] = field(
        default_factory=list,
        metadata=CUTS_ARGUMENT,
    )
    prompt_style: str = field(default="plain", metadata=STYLE_ARGUMENT)
    system_prompt: str | None = field(default=None, metadata=SYSTEM_ARGUMENT)
    max_new_tokens: int = field(default=2048, metadata=MAX_TOKENS_ARGUMENT)
    repetition_window: int = field(default=128, metadata=REPETITION_ARGUMENT)
    batch_size: int = field(default=128, metadata={"help": "rows generated together; halved if memory runs out"})
    dtype: str = field(default="auto", metadata=DTYPE_ARGUMENT)
    attn_implementation: str = field(default="sdpa", metadata=ATTENTION_ARGUMENT)
    overwrite: bool = field(default=False, metadata=OVERWRITE_ARGUMENT)

    def __post_init__(self) -> None:
        check_all(
            partial(check_style, self.prompt_style),
            partial(check_loading, dtype=self.dtype, attn_implementation=self.attn_implementation),
            partial(check_least, self, max_new_tokens=1, batch_size=1, limit=1, repetition_window=0),
            partial(check_repetition_window, self.repetition_window),
            partial(check_choices, "ability", self.abilities or ABILITIES, ABILITIES),
        )


def probe(arguments: SkipArguments) -> Path:
    """Runs the probe to its end and returns its output directory.

    Raises:
        ValueError: for a mistake in the arguments, before anything is written.
        RuntimeError: where the control does not hold; the tables that show it are written.
    """
    problems, fingerprints = load_problems(arguments.tasks, abilities=arguments.abilities, limit=arguments.limit)
    subject = open_subject(arguments.model, arguments.base)
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
        put, left_out = leave_out_unreadable(problems)
        asking = Asking(**{one.name: getattr(arguments, one.name) for one in fields(Asking)})
        with SharedLog(output_dir, [row.key for row in all_rows(put, configurations)]) as log:
            answer_all(subject, put, configurations, log, asking, title=f"{arguments.model}: skip")
            records = log.merge()

        def write() -> None:
            import pandas as pd

            rates, controls = rate_table(records, configurations, partition), control_table(records)
            write_table(output_dir / "rates.csv", rates)
            write_table(output_dir / "controls.csv", controls)
            skipped = pd.DataFrame(left_out, columns=SKIPPED_COLUMNS)
            write_table(output_dir / "skipped.csv", skipped)
            draw_all(rates, partition, output_dir / "figures")
            if left_out:
                print(f"{len(left_out)} problems have an image that cannot be read and were left out: skipped.csv")
            check_controls(controls, output_dir)

        on_main_process(write)
    return output_dir


def main(argv: list[str] | None = None) -> None:
    (arguments,) = parse_arguments(argv, SkipArguments, description=__doc__, check_inputs=True)
    output_dir = probe(arguments)
    if is_main_process():
        print(*summary(output_dir), f"rates: {output_dir / 'rates.csv'}", sep="\n")
