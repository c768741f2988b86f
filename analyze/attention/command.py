"""How much does a model attend to its image while it reasons? Attention per layer and head, compared between models.

    python -m analyze.attention --models base=BASE sft=SFT rl=RL --tasks outputs/pocket/data:test \\
        --output-dir outputs/attention
    accelerate launch --num_processes 8 -m analyze.attention …

The paper's attention shift (Eq. 1): the attention from the tokens of a reply to the vision tokens, per layer and head,
averaged over the reply; and to what else it goes. Each model is `NAME=CHECKPOINT` or `NAME@SEED=CHECKPOINT`
(a folder, hub id, or a recipe's .yaml). Every model is measured on the same prompts in two modes:

- teacher-forced: on the same text for all, so that only the models differ. `--reference` chooses the text: a model
  whose greedy answers are used (by default the first), `response` (the responses stored with the prompts), or a .jsonl
  file with `id` and `response`, such as the records of `eval.run`;
- own: on each model's own greedy answers. Here length and wording differ too: a longer reply has more text of its own
  to attend to. `vision_over_uniform` corrects for length.

D/attention.csv    means with t intervals: per model, mode, task, ability, part of the reply, layer and head
D/shift.csv        paired differences between models per layer, with intervals and corrected p-values
D/blocks.csv       the same, averaged over early, mid, late and all layers
D/replies.csv      how many replies were measured, and how long they are; skipped.csv: what was not measured, and why
D/controls.csv     see below; one that fails ends the command with exit status 1
D/records.jsonl    one record per batch of replies, with the masses of every head
D/answers/         greedy answers, graded
D/figures/

Controls of every run: the masses of each query sum to one; two measurements of the same model are exactly equal; its
logits equal those of plain SDPA; the attention output computed from the measured weights equals SDPA's; in the
teacher-forced mode all models read the same tokens.

Means are over prompts, intervals are 95 %. Tasks are those of `analyze/probes/inputs.py`. Attention matrices are never
stored (`mass.py`). Known limits: attention shows where a model looks, not what it uses. Greedy answers are tokenised
again from their text.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analyze.attention.controls import TEACHER_FORCED, check_controls, control_table
from analyze.attention.figures import AttentionTables, draw_all
from analyze.attention.plan import (
    MODES,
    OWN,
    check_baselines,
    check_contender,
    check_reference,
    given_replies,
    open_contenders,
    plan_units,
)
from analyze.attention.records import collect
from analyze.attention.run import Reading, answer_jobs, measure_jobs, share_jobs
from analyze.attention.summary import summary
from analyze.attention.tables import attention_table, reply_table, shift_tables
from analyze.probes.inputs import (
    SKIPPED_COLUMNS,
    check_choices,
    check_loading,
    check_sight,
    leave_out_unreadable,
    load_problems,
)
from eval.replies.prompting import STYLE_ARGUMENT, SYSTEM_ARGUMENT, check_style
from eval.tasks import LIMIT_ARGUMENT, check_task
from models.blocks import CUTS_ARGUMENT, PARTITION_ARGUMENT, Partition, make_partition
from models.loading import DTYPE_ARGUMENT
from tracking.command import check_all, check_least, is_main_process, parse_arguments
from tracking.processes import on_main_process
from tracking.progress import say
from tracking.records import Record
from tracking.run import OVERWRITE_ARGUMENT
from tracking.sharding import open_shared_run
from tracking.tables import write_table

if TYPE_CHECKING:
    import pandas as pd

ANSWERS_DIR = "answers"


@dataclass(frozen=True, kw_only=True)
class AttentionArguments:
    """The models, the replies they read, and the comparisons."""

    models: list[str] = field(
        metadata={
            "help": "one or more NAME=MODEL or NAME@SEED=MODEL; a model is a checkpoint's folder, a hub id, or a "
            "splice's recipe",
            "check": check_contender,
        }
    )
    tasks: list[str] = field(
        metadata={"help": "one or more tasks of eval.run: FOLDER:SPLIT, gsm8k:FILE, mathvista, …", "check": check_task}
    )
    output_dir: str = field(metadata={"help": "where records, tables and figures are written"})
    baseline: list[str] = field(
        default_factory=list,
        metadata={"help": "names of the models that all others are compared with; by default the first model"},
    )
    modes: list[str] = field(
        default_factory=lambda: list(MODES), metadata={"help": f"modes to measure, any of {', '.join(MODES)}"}
    )
    reference: str | None = field(
        default=None,
        metadata={
            "help": "text of the teacher-forced mode: NAME or NAME@SEED of a model whose greedy answers are used (by "
            "default the first model), `response` (the responses stored with the prompts), or a .jsonl file with "
            "id and response"
        },
    )
    limit: int | None = field(default=None, metadata=LIMIT_ARGUMENT | {"formerly": ("num_prompts",)})
    prompt_style: str = field(default="plain", metadata=STYLE_ARGUMENT)
    system_prompt: str | None = field(default=None, metadata=SYSTEM_ARGUMENT)
    max_new_tokens: int = field(default=2048, metadata={"help": "maximum length of a greedy answer, in tokens"})
    top_tokens: int = field(
        default=5, metadata={"help": "number of vision tokens with the highest attention that vision_top_share counts"}
    )
    partition: str = field(
        default="thirds",
        metadata=PARTITION_ARGUMENT,
    )
    cuts: list[int] = field(
        default_factory=list,
        metadata=CUTS_ARGUMENT,
    )
    batch_size: int = field(default=16, metadata={"help": "prompts per batch; halved if memory runs out"})
    dtype: str = field(default="auto", metadata=DTYPE_ARGUMENT)
    overwrite: bool = field(default=False, metadata=OVERWRITE_ARGUMENT)

    def __post_init__(self) -> None:
        check_all(
            partial(check_style, self.prompt_style),
            partial(check_loading, dtype=self.dtype),
            partial(check_least, self, max_new_tokens=1, batch_size=1, top_tokens=1, limit=1),
            partial(check_choices, "mode", self.modes, MODES),
            self._check_reference,
        )

    def _check_reference(self) -> None:
        if self.reference is not None and TEACHER_FORCED not in self.modes:
            raise ValueError(f"--reference has no effect without the mode {TEACHER_FORCED}; leave it out")


def write_results(
    output_dir: Path,
    records: Sequence[Record],
    *,
    partition: Partition,
    baselines: Sequence[str],
    left_out: Sequence[dict[str, str]],
) -> "pd.DataFrame":
    """Writes tables and figures; returns the table of controls."""
    import pandas as pd

    measured = [record for record in records if "control" not in record]
    skipped = [
        {name: record[name] for name in ("model", "seed", "mode", "task", "id")} | {"reason": record["skipped"]}
        for record in measured
        if "skipped" in record
    ]
    columns = ["model", "seed", "mode", *SKIPPED_COLUMNS]
    write_table(output_dir / "skipped.csv", pd.DataFrame([*skipped, *left_out], columns=columns))
    controls = control_table(records)
    write_table(output_dir / "controls.csv", controls)
    write_table(output_dir / "replies.csv", reply_table(measured))
    groups = collect(measured)
    if not groups:
        raise RuntimeError(f"no reply could be measured; see {output_dir / 'skipped.csv'}")
    attention = attention_table(groups, partition)
    write_table(output_dir / "attention.csv", attention)
    shift, blocks = shift_tables(groups, partition, baselines=baselines)
    write_table(output_dir / "shift.csv", shift)
    write_table(output_dir / "blocks.csv", blocks)
    draw_all(AttentionTables(attention=attention, shift=shift), output_dir / "figures")
    return controls


def measure_attention(arguments: AttentionArguments) -> Path:
    """Measures all models and writes everything; returns the output directory.

    Raises:
        RuntimeError: where a control failed; the tables are written.
    """
    contenders = open_contenders(arguments.models)
    labels = [contender.label for contender in contenders]
    baselines = arguments.baseline or [labels[0].name]
    check_baselines(labels, baselines)
    problems, fingerprints = load_problems(arguments.tasks, limit=arguments.limit)
    for contender in contenders:
        check_sight(problems, contender.layout)
    named = arguments.reference or str(labels[0])
    reference = check_reference(named, labels)
    forced = TEACHER_FORCED in arguments.modes
    replies = given_replies(named, problems) if forced and reference is None else {}
    num_layers = contenders[0].layout.num_layers
    partition = make_partition(num_layers, partition=arguments.partition, cuts=arguments.cuts)
    settings: dict[str, Any] = {
        "models": {str(contender.label): contender.subject.fingerprint for contender in contenders},
        "tasks": fingerprints,
        "baseline": baselines,
        "modes": [mode for mode in MODES if mode in arguments.modes],
        "reference": named if forced else None,
        "replies_sha256": hashlib.sha256(json.dumps(replies).encode()).hexdigest() if replies else None,
        "cuts": list(partition.cuts),
        **{
            name: getattr(arguments, name)
            for name in (
                "limit", "prompt_style", "system_prompt", "max_new_tokens", "top_tokens", "batch_size", "dtype",
            )
        },
    }  # fmt: skip
    output_dir = Path(arguments.output_dir)
    with open_shared_run(
        output_dir, command="analyze.attention", settings=settings, overwrite=arguments.overwrite
    ) as run:
        if run.finished:
            return output_dir
        run.note(**{str(contender.label): contender.subject.facts for contender in contenders})
        put, left_out = leave_out_unreadable(problems)
        asked = [
            contender for contender in contenders if OWN in arguments.modes or (forced and contender.label == reference)
        ]
        reading = Reading(**{one.name: getattr(arguments, one.name) for one in fields(Reading)})
        answering = answer_jobs(asked, put, reading)
        if answering:
            num_replies = len(asked) * len(put)
            say(f"{num_replies:,} replies, of at most {arguments.max_new_tokens:,} tokens each (--max-new-tokens)")
        answers = share_jobs(output_dir / ANSWERS_DIR, answering, asked, reading, title="answers") if answering else []
        units = plan_units(contenders, put, arguments.modes, reference, replies, answers)
        jobs = measure_jobs(contenders, units, reading)
        records = share_jobs(output_dir, jobs, contenders, reading, title="attention")
        controls = on_main_process(
            lambda: write_results(output_dir, records, partition=partition, baselines=baselines, left_out=left_out)
        )
        if left_out and is_main_process():
            print(f"{len(left_out)} problems have an image that cannot be read and were left out: skipped.csv")
        check_controls(controls, output_dir)
    return output_dir


def main(argv: list[str] | None = None) -> None:
    (arguments,) = parse_arguments(argv, AttentionArguments, description=__doc__, check_inputs=True)
    output_dir = measure_attention(arguments)
    if is_main_process():
        print(*summary(output_dir), f"attention shift: {output_dir / 'shift.csv'}", sep="\n")
