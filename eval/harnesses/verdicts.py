"""Where do a harness's verdict and ours differ, and why? The tables `verdicts.csv` and `disagreements.csv`.

Compared are metrics whose score is 0 or 1; partial credit is counted as not compared. The reasons:

    cut at the token limit           the reply ends at its limit, and the two read an unfinished reply differently
    no answer found here             ours finds no answer in the reply
    not judged here                  ours finds one, and leaves it unscored
    another answer read              the two read different answers in the reply
    same answer, compared otherwise  both read the same answer, and compare it with the gold differently
    its answer is not in the file    the harness does not say which answer it read
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.grading import CORRECT, INCORRECT, UNSCORED, parse_number
from eval.replies.decoding import LENGTH
from tracking.records import Record
from tracking.tables import format_first, read_table, write_table

if TYPE_CHECKING:
    import pandas as pd

CUT, NO_ANSWER, NOT_JUDGED = "cut at the token limit", "no answer found here", "not judged here"
OTHER_ANSWER, SAME_ANSWER = "another answer read", "same answer, compared otherwise"
UNKNOWN_ANSWER = "its answer is not in the file"
VERDICTS_FILE, DISAGREEMENTS_FILE = "verdicts.csv", "disagreements.csv"
HARNESS_VERDICTS = "harness_verdicts"
COLUMNS = (
    "key", "task", "metric", "gold", "answer_kind", "harness_score", "harness_answer", "status", "extracted", "rule",
    "reason", "response_end",
)  # fmt: skip
COUNTS = (
    "task", "metric", "n", "harness_accuracy", "accuracy", "both_right", "both_wrong", "harness_only", "ours_only",
    "num_unscored", "num_partial",
)  # fmt: skip
END_CHARS = 200
"""Of a reply's end, which `disagreements.csv` shows."""


def _verdicts(records: Sequence[Record]) -> Iterator[tuple[Record, str, dict[str, Any]]]:
    for record in records:
        for metric, verdict in record.get(HARNESS_VERDICTS, {}).items():
            yield record, metric, verdict


def verdict_table(records: Sequence[Record]) -> "pd.DataFrame":
    """Returns one row per task and metric: how often the two verdicts agree.

    `n` counts the replies that both judged right or wrong; both accuracies are over these. `num_unscored` are replies
    that ours left unscored, `num_partial` those with partial credit.
    """
    import pandas as pd

    groups: dict[tuple[str, str], Counter[tuple[float, str]]] = {}
    for record, metric, verdict in _verdicts(records):
        groups.setdefault((record["task"], metric), Counter())[verdict["score"], record["status"]] += 1
    rows = []
    for (task, metric), counts in groups.items():
        both = {(theirs, ours): counts[theirs, ours] for theirs in (0.0, 1.0) for ours in (CORRECT, INCORRECT)}
        n = sum(both.values())
        rows.append(
            {
                "task": task,
                "metric": metric,
                "n": n,
                "harness_accuracy": (both[1.0, CORRECT] + both[1.0, INCORRECT]) / n if n else None,
                "accuracy": (both[1.0, CORRECT] + both[0.0, CORRECT]) / n if n else None,
                "both_right": both[1.0, CORRECT],
                "both_wrong": both[0.0, INCORRECT],
                "harness_only": both[1.0, INCORRECT],
                "ours_only": both[0.0, CORRECT],
                "num_unscored": sum(count for (_, ours), count in counts.items() if ours == UNSCORED),
                "num_partial": sum(count for (theirs, _), count in counts.items() if theirs not in (0.0, 1.0)),
            }
        )
    return pd.DataFrame(rows, columns=list(COUNTS))


def disagreement_table(records: Sequence[Record]) -> "pd.DataFrame":
    """Returns one row per reply and metric that the two judge differently, or that only the harness judges."""
    import pandas as pd

    rows = [
        {
            "key": record["key"],
            "task": record["task"],
            "metric": metric,
            "gold": record["gold"],
            "answer_kind": record["answer_kind"],
            "harness_score": verdict["score"],
            "harness_answer": verdict["answer"],
            "status": record["status"],
            "extracted": record["extracted"],
            "rule": record["rule"],
            "reason": reason(record, verdict),
            "response_end": record["response"][-END_CHARS:],
        }
        for record, metric, verdict in _verdicts(records)
        if record["status"] == UNSCORED
        or (verdict["score"] in (0.0, 1.0) and (verdict["score"] == 1.0) != (record["status"] == CORRECT))
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def reason(record: Record, verdict: dict[str, Any]) -> str:
    """Returns why a harness's verdict on a reply differs from ours."""
    if "no_reply" in record:
        return str(record["no_reply"])
    if record["finish_reason"] == LENGTH:
        return CUT
    if record["status"] == UNSCORED:
        return NOT_JUDGED
    if record["extracted"] is None:
        return NO_ANSWER
    if verdict["answer"] is None:
        return UNKNOWN_ANSWER
    return SAME_ANSWER if _same(verdict["answer"], record) else OTHER_ANSWER


def _same(answer: str, record: Record) -> bool:
    """True if a harness's answer is the one that we extracted: as text, as a number, or as an option."""
    ours = _meaning(record["extracted"], record["choices"])
    return _meaning(answer, record["choices"]) == ours


def _meaning(answer: str, choices: Sequence[str]) -> object:
    plain = "".join(answer.split()).strip("().:$").casefold()
    if len(plain) == 1 and plain.isalpha() and ord(plain) - ord("a") < len(choices):
        plain = "".join(choices[ord(plain) - ord("a")].split()).casefold()
    number = parse_number(plain)
    return plain if number is None else number


def write_verdicts(output_dir: Path, records: Sequence[Record]) -> None:
    """Writes both tables."""
    write_table(output_dir / VERDICTS_FILE, verdict_table(records))
    write_table(output_dir / DISAGREEMENTS_FILE, disagreement_table(records))


def summary_of(output_dir: Path) -> list[str]:
    """Returns the lines for the terminal, from the tables: agreement per metric, and the reasons for the rest."""
    verdicts, disagreements = (read_table(output_dir / name) for name in (VERDICTS_FILE, DISAGREEMENTS_FILE))
    if verdicts.empty:
        return ["the files hold no verdicts of the harness on single replies: there is nothing to compare"]
    rows = [["task", "metric", "n", "harness", "ours", "both right", "both wrong", "only harness", "only ours"]]
    for _, row in verdicts.iterrows():
        shares = [f"{100 * row[name]:.1f} %" if row["n"] else "" for name in ("harness_accuracy", "accuracy")]
        counts = [str(row[name]) for name in ("both_right", "both_wrong", "harness_only", "ours_only")]
        rows.append([row["task"], row["metric"], str(row["n"]), *shares, *counts])
    lines = format_first(rows, right=range(2, len(rows[0])), table="verdicts.csv")
    partial, unscored = int(verdicts["num_partial"].sum()), int(verdicts["num_unscored"].sum())
    if partial:
        lines.append(f"with partial credit, not compared: {partial}")
    if unscored:
        lines.append(f"left unscored by this suite: {unscored}")
    if disagreements.empty:
        return [*lines, "verdicts differ nowhere"]
    reasons = Counter(disagreements["reason"]).most_common()
    return [*lines, "verdicts differ: " + "; ".join(f"{count} × {name}" for name, count in reasons)]
