"""How do imported replies become the records of an evaluation? Graded as `eval.run` grades, with the same keys.

A record has the keys of `eval.run`, and two more: `harness_verdicts` (metric -> score and extracted answer, as the
harness kept them) and, where the harness failed to get a reply, `no_reply` with its reason; such a record is unscored.
What the files do not tell, such as the number of tokens, is None.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace

from data_builders.prompt_sets.prompts import Prompt
from eval.grading import MAX_JUDGES, UNSCORED, Verdict, grade, is_well_formed
from eval.harnesses.replies import NO_QUESTION, Reply, as_text
from eval.replies.outcomes import GIVEN, record_key
from tracking.progress import progress
from tracking.records import Record

ALL = "all"
"""The ability of prompts that no field divides."""
NO_REPLY = "no reply"
HASH_CHARS = 16


def named(task: str) -> str:
    """Returns a task's name as a file's name may hold it: `org/gsm8k` becomes `org-gsm8k`."""
    return re.sub(r"[^\w.+-]+", "-", task).strip("-") or "task"


def with_clusters(replies: Sequence[Reply], field: str | None) -> list[Reply]:
    """Returns the replies with the cluster of each prompt: the value of a field, or else its pictures.

    Pictures that only one prompt shows form no cluster.

    Raises:
        ValueError: if a row lacks the field.
    """
    if field is not None:
        return [replace(reply, cluster=_value(reply, field, "--cluster-by")) for reply in replies]
    prompts: dict[tuple[str, tuple[str, ...]], set[str]] = {}
    for reply in replies:
        prompts.setdefault((reply.task, reply.pictures), set()).add(reply.id)
    return [
        replace(reply, cluster=_sha256("\n".join(reply.pictures))[:HASH_CHARS])
        if reply.pictures and len(prompts[reply.task, reply.pictures]) > 1
        else reply
        for reply in replies
    ]


def abilities(replies: Sequence[Reply], field: str | None) -> list[str]:
    """Returns for each reply the value of a field, by which tables are divided; `all` without a field.

    Raises:
        ValueError: if a row lacks the field.
    """
    return [ALL if field is None else _value(reply, field, "--group-by") for reply in replies]


def _value(reply: Reply, field: str, flag: str) -> str:
    value = as_text(reply.fields.get(field)).strip()
    if not value:
        known = ", ".join(map(str, reply.fields)) or "none"
        raise ValueError(f"{flag} {field}: {reply.task}, {reply.id} has no such field; its fields are {known}")
    return value


def check_unique(replies: Iterable[Reply]) -> None:
    """Refuses a sample that occurs twice.

    Raises:
        ValueError: naming it.
    """
    counts = Counter((reply.task, reply.id, reply.sample) for reply in replies)
    (task, own, sample), most = counts.most_common(1)[0]
    if most > 1:
        raise ValueError(f"{task}: sample {sample} of {own!r} occurs {most} times; expected each reply once")


def to_records(replies: Sequence[Reply], groups: Sequence[str]) -> list[Record]:
    """Grades replies and returns their records, in order.

    Args:
        groups: the ability of each reply.
    """
    with ThreadPoolExecutor(MAX_JUDGES) as pool:
        verdicts = progress(pool.map(_grade, replies), label="grading", total=len(replies), unit="reply")
        return [_record(*one) for one in zip(replies, groups, verdicts, strict=True)]


def _grade(reply: Reply) -> Verdict:
    if reply.no_reply:
        return Verdict(UNSCORED, None, NO_REPLY)
    assert reply.kind is not None, f"{reply.task}, {reply.id} has no kind"
    return grade(reply.response, reply.gold, reply.kind, reply.choices, reply.precision)


def _record(reply: Reply, ability: str, verdict: Verdict) -> Record:
    return {
        "key": record_key(reply.task, reply.id, GIVEN, reply.sample),
        "task": reply.task,
        "id": reply.id,
        "ability": ability,
        "condition": GIVEN,
        "sample": reply.sample,
        "cluster": reply.cluster,
        "gold": reply.gold,
        "answer_kind": reply.kind,
        "choices": list(reply.choices),
        "precision": reply.precision,
        "prompt_sha256": _sha256(reply.question),
        "images_sha256": _sha256("\n".join(reply.pictures)) if reply.pictures else None,
        "response": reply.response,
        "num_tokens": reply.num_tokens,
        "finish_reason": reply.finish_reason,
        "extracted": verdict.extracted,
        "status": verdict.status,
        "rule": verdict.rule,
        "well_formed": is_well_formed(reply.response),
        "harness_verdicts": {name: asdict(measure) for name, measure in reply.measures.items()},
        **({"no_reply": reply.no_reply} if reply.no_reply else {}),
    }


def prompts_of(replies: Iterable[Reply], groups: Iterable[str]) -> dict[str, list[Prompt]]:
    """Returns the prompts of each task, without their pictures, so that `eval.compare` can show the questions."""
    prompts: dict[str, dict[str, Prompt]] = {}
    for reply, ability in zip(replies, groups, strict=True):
        prompts.setdefault(reply.task, {}).setdefault(
            reply.id,
            Prompt(
                id=reply.id,
                ability=ability,
                question=reply.question.strip() or NO_QUESTION,
                answer=reply.gold,
                answer_kind=reply.kind or "",
                choices=reply.choices,
                precision=reply.precision,
                meta=None if reply.cluster is None else {"cluster": reply.cluster},
            ),
        )
    return {task: list(own.values()) for task, own in prompts.items()}


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
