"""Does the score of another harness reproduce? Imports its replies, grades them, and lists where the verdicts differ.

    python -m eval.import results/MODEL/samples_gsm8k_DATE.jsonl --output-dir outputs/import/base
    python -m eval.import MODEL/MODEL_MathVista_MINI.xlsx --task mathvista --output-dir outputs/import/mathvista
    python -m eval.import replies.jsonl --kind math --output-dir outputs/import/own

The command reads samples of lmms-eval and lm-evaluation-harness, logs of inspect_ai, tables of VLMEvalKit, and a plain
JSONL (`eval/harnesses/plain.py` has its fields). Give all files of one evaluation of one model together; a folder
stands for the samples and `.eval` logs in it. The output is a folder as `eval.run` writes it, so `eval.regrade`,
`eval.compare` and `eval.support` work on it. Models can be compared if the same harness asked them the same prompts
with the same settings, as far as its files tell them.

O/records.jsonl        every reply, with our verdict and, under `harness_verdicts`, the harness's
O/scores.csv           accuracy per task with n and interval
O/verdicts.csv         per task and metric of the harness: how often the two verdicts agree
O/disagreements.csv    every reply that the two judge differently, and why (`eval/harnesses/verdicts.py`)
O/prompts/             the prompts, without pictures, which `eval.compare` shows

Prompts that show the same picture form a cluster; `--cluster-by` names a field instead. How answers are graded is read
from the files, or asked for with `--kind` (`eval/harnesses/kinds.py`). Rows without a reply or a gold are counted.
"""  # noqa: N999 (a command; nothing imports it by a statement)

import hashlib
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_builders.prompt_sets.prompts import Prompt, prompts_fingerprint, write_prompts
from eval.harnesses.choices import GOLD_IS
from eval.harnesses.kinds import parse_kinds, settle
from eval.harnesses.reading import check_file, check_harness, files_at, read_files
from eval.harnesses.records import abilities, check_unique, prompts_of, to_records, with_clusters
from eval.harnesses.replies import Reply, Source
from eval.harnesses.verdicts import DISAGREEMENTS_FILE, VERDICTS_FILE, summary_of, write_verdicts
from eval.replies.outcomes import GIVEN
from eval.statistics.scores import score_table
from eval.statistics.summary import summary
from tracking.command import check_all, parse_arguments, run_command
from tracking.product import partial_directory, write_text
from tracking.records import encode_records
from tracking.run import OVERWRITE_ARGUMENT, open_run
from tracking.tables import write_table

PROMPTS_DIR = "prompts"


@dataclass(frozen=True, kw_only=True)
class ImportArguments:
    """The files of another harness, and what they do not tell."""

    files: list[str] = field(
        metadata={
            "help": "one or more files of one evaluation, or folders with them",
            "positional": True,
            "metavar": "FILE",
            "check": check_file,
        }
    )
    output_dir: str = field(metadata={"help": "where records.jsonl and the tables are written"})
    kind: list[str] = field(
        default_factory=list,
        metadata={
            "help": "how answers are graded, as KIND or TASK=KIND: number, text, math, choice, yes_no, box, list, or "
            "by-gold to let each gold decide; by default as the files tell"
        },
    )
    gold_is: str | None = field(
        default=None,
        metadata={"help": "what a number as the gold of a choice means: text (the option's), or index (from 0)"},
    )
    cluster_by: str | None = field(
        default=None, metadata={"help": "field whose value groups related prompts; by default their picture"}
    )
    group_by: str | None = field(
        default=None, metadata={"help": "field whose values divide a task in all tables, such as category"}
    )
    task: str | None = field(default=None, metadata={"help": "the task's name; by default as the file tells"})
    model: str | None = field(default=None, metadata={"help": "the model's name; by default as the files tell"})
    harness: str | None = field(
        default=None,
        metadata={"help": "lmms-eval, lm-eval, inspect, vlmevalkit or plain; by default recognised from the files"},
    )
    overwrite: bool = field(default=False, metadata=OVERWRITE_ARGUMENT)

    def __post_init__(self) -> None:
        check_all(lambda: check_harness(self.harness), lambda: parse_kinds(self.kind), self._check_gold_is)

    def _check_gold_is(self) -> None:
        if self.gold_is not in (None, *GOLD_IS):
            raise ValueError(f"gold_is is {self.gold_is!r}; expected {' or '.join(GOLD_IS)}")


def import_replies(arguments: ImportArguments) -> tuple[Source, list[Reply], Counter[str]]:
    """Imports the files into the output directory; returns what was read, what is graded, and why rows are left out.

    Raises:
        ValueError: in one line, before anything is written, if a file is damaged or does not tell enough.
    """
    source = read_files(arguments.files, harness=arguments.harness, task=arguments.task, model=arguments.model)
    replies, without = settle(source.replies, parse_kinds(arguments.kind), arguments.gold_is)
    left_out = source.left_out + without
    if not replies:
        raise ValueError(f"no reply can be graded: {counted(left_out)}")
    check_unique(replies)
    groups = abilities(replies, arguments.group_by)
    replies = with_clusters(replies, arguments.cluster_by)
    prompts = prompts_of(replies, groups)
    output_dir = Path(arguments.output_dir)
    settings = _settings(arguments, source, prompts)
    with open_run(output_dir, command="eval.import", settings=settings, overwrite=arguments.overwrite) as run:
        if run.finished:
            return source, replies, left_out
        run.note(
            harness_version=source.version,
            files=[str(file) for name in arguments.files for file in files_at(Path(name))],
            tasks={task: f"{output_dir / PROMPTS_DIR}:{task}" for task in prompts},
            left_out=dict(left_out),
        )
        records = to_records(replies, groups)
        if not (output_dir / PROMPTS_DIR).is_dir():
            with partial_directory(output_dir / PROMPTS_DIR) as folder:
                _write_all(folder, prompts)
        write_text(output_dir / "records.jsonl", encode_records(records))
        write_table(output_dir / "scores.csv", score_table(records))
        write_verdicts(output_dir, records)
    return source, replies, left_out


def _settings(arguments: ImportArguments, source: Source, prompts: Mapping[str, Sequence[Prompt]]) -> dict[str, Any]:
    """Returns what determines the result; all but the first two must be shared by the models of a comparison."""
    digest = hashlib.sha256()
    for name in arguments.files:
        for file in files_at(Path(name)):
            digest.update(file.read_bytes())
    with tempfile.TemporaryDirectory() as folder:
        _write_all(Path(folder), prompts)
        fingerprints = {task: prompts_fingerprint(Path(folder), task) for task in prompts}
    return {
        "model": source.model,
        "model_fingerprint": digest.hexdigest(),
        "harness": source.harness,
        "tasks": fingerprints,
        "conditions": [GIVEN],
        "harness_settings": dict(source.settings),
        "max_new_tokens": source.max_new_tokens,
    }


def _write_all(folder: Path, prompts: Mapping[str, Sequence[Prompt]]) -> None:
    for task, own in prompts.items():
        write_prompts(folder, task, own)


def counted(reasons: Mapping[str, int]) -> str:
    """Returns reasons with their counts, the most frequent first."""
    return "; ".join(f"{count} × {reason}" for reason, count in Counter(reasons).most_common())


def imported(source: Source, replies: Sequence[Reply], left_out: Mapping[str, int]) -> list[str]:
    """Returns the lines that say what was imported, how it is graded, and what is left out."""
    failed = Counter(reply.no_reply for reply in replies if reply.no_reply)
    lines = [f"{source.harness}, {source.model or 'a model that the files do not name'}: {len(replies):,} replies"]
    for task in dict.fromkeys(reply.task for reply in replies):
        own = [reply for reply in replies if reply.task == task]
        kinds = Counter(str(reply.kind) for reply in own)
        clusters = len({reply.cluster for reply in own if reply.cluster is not None})
        grouped = f", in {clusters:,} clusters" if clusters else ""
        graded = ", ".join(f"{count:,} as {kind}" for kind, count in kinds.most_common())
        lines.append(f"{task}: {len({reply.id for reply in own}):,} prompts{grouped}; graded {graded}")
    if failed:
        lines.append(f"no reply, left unscored: {counted(failed)}")
    if left_out:
        lines.append(f"left out: {counted(left_out)}")
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    (arguments,) = parse_arguments(argv, ImportArguments, description=__doc__, check_inputs=True)
    output_dir = Path(arguments.output_dir)
    print(*imported(*import_replies(arguments)), sep="\n")
    print(*summary(output_dir), *summary_of(output_dir), sep="\n")
    print(f"verdicts: {output_dir / VERDICTS_FILE}, where they differ: {output_dir / DISAGREEMENTS_FILE}")


if __name__ == "__main__":
    run_command(main)
