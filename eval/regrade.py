"""What does the current grader say of stored replies? Grades them again, without running the model.

    python -m eval.regrade outputs/eval/base outputs/eval/sft --dry-run
    python -m eval.regrade outputs/eval/base outputs/eval/sft

Each folder is the finished output of `eval.run` or `eval.import`. `records.jsonl` and `scores.csv` are replaced
atomically, and so are the tables of an import that compare verdicts. No verdict is lost: a record whose status,
extracted answer or rule changed keeps the previous ones under `verdicts_before`, oldest first, and `regraded.csv` has
one line per change. A language model's verdict is kept if the rules still leave the answer unscored. Regrade all models
of a comparison, not only some of them, and compare them again.
"""

import itertools
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from eval.compare.alike import IMPORT, read_evaluation
from eval.grading import MAX_JUDGES, UNSCORED, BoxSpace, continued, grade
from eval.harnesses.verdicts import write_verdicts
from eval.replies.answering import BOX_SCALE, OPENED_THOUGHTS
from tracking.command import parse_arguments, run_command
from tracking.product import write_text
from tracking.progress import progress
from tracking.records import Record, encode_records, read_records
from tracking.run import git_state, open_run
from tracking.tables import write_table

if TYPE_CHECKING:
    import pandas as pd

VERDICT = ("status", "extracted", "rule")
"""The keys of a record's verdict."""
BEFORE = "verdicts_before"
NEEDED = ("key", "response", "gold", "answer_kind", *VERDICT)
COLUMNS = ("key", "gold", *(f"{name}_before" for name in VERDICT), *VERDICT)
MAX_LISTED = 20


def regrade(directory: Path, *, dry_run: bool = False) -> list[Record]:
    """Grades the replies of a finished evaluation again and returns the records that changed.

    Raises:
        ValueError: if the folder is not a finished evaluation, or its records have no replies.
    """
    state = read_evaluation(directory)
    with open_run(directory, command=state["command"], settings=state["settings"]) as run:
        records = read_records(directory / "records.jsonl")
        regraded = regrade_records(records, label=str(directory))
        changed = [new for old, new in zip(records, regraded, strict=True) if new is not old]
        if not dry_run:
            from eval.statistics.scores import score_table

            write_text(directory / "records.jsonl", encode_records(regraded))
            write_table(directory / "scores.csv", score_table(regraded))
            write_table(directory / "regraded.csv", changes_table(regraded))
            if state["command"] == IMPORT:
                write_verdicts(directory, regraded)
            run.note(regraded={"git": git_state(), "num_changed": len(changed)})
    return changed


def regrade_records(records: Sequence[Record], *, label: str = "regrading") -> list[Record]:
    """Returns the records with the current grader's verdicts; unchanged records are the same objects."""
    for record in records:
        missing = [name for name in NEEDED if name not in record]
        if missing:
            raise ValueError(f"record {record.get('key')!r} has no {missing[0]!r}; expected the records of eval.run")
    with ThreadPoolExecutor(MAX_JUDGES) as pool:
        return list(progress(pool.map(_regraded, records), label=label, total=len(records), unit="reply"))


def _regraded(record: Record) -> Record:
    if record.get("no_reply"):  # another harness failed to get one
        return record
    scale = record.get(BOX_SCALE)
    verdict = grade(
        continued(record["response"], opened=record.get(OPENED_THOUGHTS, False)),
        record["gold"] if scale is None else BoxSpace(*scale).gold_text(record["gold"]),
        record["answer_kind"],
        choices=record.get("choices"),
        precision=record.get("precision"),
    )
    old = {name: record[name] for name in VERDICT}
    new = {"status": verdict.status, "extracted": verdict.extracted, "rule": verdict.rule}
    if new == old or _stands(old, new):
        return record
    return {**record, **new, BEFORE: [*record.get(BEFORE, ()), old]}


def _stands(old: Record, new: Record) -> bool:
    """True if the rules still have no verdict and a language model was asked: its answer follows a semicolon."""
    is_judged = ";" in old["rule"] and (old["status"] != UNSCORED or old["rule"].startswith(new["rule"]))
    return is_judged and new["status"] == UNSCORED


def changes_table(records: Sequence[Record]) -> "pd.DataFrame":
    """Returns one row per replaced verdict, in the order of the records, oldest first."""
    import pandas as pd

    rows = []
    for record in records:
        verdicts = [*record.get(BEFORE, ()), {name: record[name] for name in VERDICT}]
        for old, new in itertools.pairwise(verdicts):
            before = {f"{name}_before": value for name, value in old.items()}
            rows.append({"key": record["key"], "gold": record["gold"], **before, **new})
    return pd.DataFrame(rows, columns=list(COLUMNS))


def summary(directory: Path, changed: Sequence[Record], *, dry_run: bool) -> list[str]:
    """Returns a summary of the changes, as lines for the terminal."""
    moves = Counter((record[BEFORE][-1]["status"], record["status"]) for record in changed)
    moved = [f"{count} {old} -> {new}" for (old, new), count in sorted(moves.items()) if old != new]
    said = "would change" if dry_run else "changed"
    lines = [
        f"{directory}: {sum(old != new for old, new in moves.elements())} verdicts {said}: {', '.join(moved) or 'none'}"
    ]
    listed = [record for record in changed if record[BEFORE][-1]["status"] != record["status"]]
    for record in listed[:MAX_LISTED]:
        old = record[BEFORE][-1]
        lines.append(
            f"  {record['key']}: {old['status']} -> {record['status']} ({record['rule']}): "
            f"{record['extracted']!r}, gold {record['gold']!r}"
        )
    if len(listed) > MAX_LISTED:
        lines.append(
            f"  and {len(listed) - MAX_LISTED} more" + ("" if dry_run else f", in {directory / 'regraded.csv'}")
        )
    return lines


@dataclass(frozen=True, kw_only=True)
class RegradeArguments:
    """The results to grade again."""

    directories: list[str] = field(
        metadata={
            "help": "one or more output directories of finished eval.run or eval.import commands",
            "positional": True,
            "metavar": "DIR",
        }
    )
    dry_run: bool = field(default=False, metadata={"help": "print what would change and write nothing"})


def main(argv: Sequence[str] | None = None) -> None:
    (arguments,) = parse_arguments(argv, RegradeArguments, description=__doc__)
    for directory in map(Path, arguments.directories):
        changed = regrade(directory, dry_run=arguments.dry_run)
        print("\n".join(summary(directory, changed, dry_run=arguments.dry_run)))


if __name__ == "__main__":
    run_command(main)
