"""What does a plain JSONL of replies look like? One object per line, for replies that no harness kept.

    {"id": "17", "response": "… so the answer is 12.", "gold": "12", "answer_kind": "number", "images": ["17.png"]}

Required: `id`, `response`, `gold`. Optional: `task` (by default the file's name), `sample` (0, 1, …), `question`,
`answer_kind` (a kind of `eval.grading`), `choices` (the options' texts), `precision` (decimals), `images` (prompts
with the same ones form a cluster), `correct` (another verdict: true, false, or a number from 0 to 1), `extracted` (the
answer that was read), `num_tokens`, `finish_reason` (`stop` or `length`). Other fields serve `--group-by` and
`--cluster-by`.
"""

from pathlib import Path

from eval.grading import KINDS
from eval.harnesses.replies import (
    NO_QUESTION,
    Fields,
    Measure,
    Reply,
    Source,
    as_score,
    as_text,
    need,
    pictures_in,
    read_lines,
)
from eval.replies.decoding import LENGTH, REPETITION, STOP

PLAIN = "plain"


def read_plain(path: Path) -> Source:
    """Reads a plain JSONL of replies.

    Raises:
        ValueError: naming the line that cannot be read.
    """
    replies = [_reply(row, where, path.stem) for where, row in read_lines(path)]
    if not replies:
        raise ValueError(f"{path} is empty; expected one reply per line")
    return Source(harness=PLAIN, replies=replies)


def _reply(row: Fields, where: str, stem: str) -> Reply:
    need(row, where, "id", "response", "gold")
    kind, choices, finish = row.get("answer_kind"), row.get("choices") or [], row.get("finish_reason")
    if not isinstance(row["response"], str):
        raise ValueError(f"{where}: response is {row['response']!r}; expected a text")
    if kind is not None and kind not in KINDS:
        raise ValueError(f"{where}: answer_kind is {kind!r}; expected one of {', '.join(KINDS)}")
    if not isinstance(choices, list):
        raise ValueError(f"{where}: choices is {choices!r}; expected a list of the options' texts")
    if finish not in (None, STOP, LENGTH, REPETITION):
        raise ValueError(f"{where}: finish_reason is {finish!r}; expected {STOP}, {LENGTH} or {REPETITION}")
    for name in ("sample", "precision", "num_tokens"):
        if not isinstance(row.get(name, 0), int | None):
            raise ValueError(f"{where}: {name} is {row[name]!r}; expected a whole number")
    score = as_score(row.get("correct"))
    if "correct" in row and row["correct"] is not None and score is None:
        raise ValueError(f"{where}: correct is {row['correct']!r}; expected true, false or a number from 0 to 1")
    extracted = row.get("extracted")
    return Reply(
        task=as_text(row.get("task")) or stem,
        id=as_text(row["id"]),
        sample=row.get("sample") or 0,
        question=as_text(row.get("question")).strip() or NO_QUESTION,
        golds=tuple(map(as_text, row["gold"])) if isinstance(row["gold"], list) else (as_text(row["gold"]),),
        response=row["response"],
        kind=kind,
        choices=tuple(map(as_text, choices)),
        precision=row.get("precision"),
        pictures=pictures_in(row),
        fields=row,
        measures={}
        if score is None
        else {"correct": Measure(score=score, answer=None if extracted is None else as_text(extracted))},
        num_tokens=row.get("num_tokens"),
        finish_reason=finish,
    )
