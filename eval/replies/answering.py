"""How do queries become records? In batches that depend only on the queries; each reply is graded by the rules.

Batches are formed from all queries of a task, done or not, so a resumed run uses the same batches as an uninterrupted
one. If memory runs out, a batch is halved, and the next batch starts at full size again: the composition of a batch
never depends on earlier work. The longest prompts come first, so memory runs out early or not at all.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from data_builders.prompt_sets.prompts import Prompt
from eval.grading import grade, is_well_formed
from eval.replies.batching import BatchSize
from eval.replies.conditions import Query
from eval.replies.engines import Engine, Request
from eval.replies.pictures import pictures_sha256
from eval.replies.sampling import reply_seed
from tracking.records import Record

if TYPE_CHECKING:
    from eval.replies.generation import Generation


def make_query_batches(queries: Sequence[Query], texts: Mapping[str, str], batch_size: int) -> list[list[Query]]:
    """Groups queries, task by task, into batches with similar lengths and equal numbers of images.

    Args:
        texts: key of a prompt's first sample -> rendered prompt.
    """
    from eval.replies.generation import make_batches

    batches: list[list[Query]] = []
    for task in dict.fromkeys(query.task for query in queries):
        own = [query for query in queries if query.task == task]
        rendered = [texts[query.key_of_first] for query in own]
        numbers = make_batches([query.prompt for query in own], rendered, batch_size)
        batches += [[own[number] for number in batch] for batch in numbers]
    return batches


def answer_batch(
    engine: Engine, batch: Sequence[Query], texts: Mapping[str, str], batch_size: int, seed: int
) -> Iterator[list[Record]]:
    """Yields the records of a batch: all at once, or in parts if memory is insufficient."""

    def answer(queries: Sequence[Query]) -> list["Generation"]:
        return engine.answer(
            [
                Request(texts[query.key_of_first], query.pictures, reply_seed(seed, query.prompt.id, query.sample))
                for query in queries
            ]
        )

    for part, generations in BatchSize(batch_size).run(batch, answer):
        yield [
            _record(query, texts[query.key_of_first], generation)
            for query, generation in zip(part, generations, strict=True)
        ]


def _record(query: Query, text: str, generation: "Generation") -> Record:
    prompt = query.prompt
    return {
        "key": query.key,
        "task": query.task,
        "id": prompt.id,
        "ability": prompt.ability,
        "condition": query.condition,
        "sample": query.sample,
        "cluster": (prompt.meta or {}).get("cluster"),
        "gold": prompt.answer,
        "answer_kind": prompt.answer_kind,
        "choices": list(prompt.choices),
        "precision": prompt.precision,
        "prompt_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "images_sha256": pictures_sha256(query.pictures),
        **graded(prompt, generation),
        "well_formed": is_well_formed(generation.response),
    }


def graded(prompt: Prompt, generation: "Generation") -> Record:
    """Returns what records keep of a reply: its text, why it ended, and the verdict of the rules."""
    verdict = grade(generation.response, prompt.answer, prompt.answer_kind, prompt.choices, prompt.precision)
    return {
        "response": generation.response,
        "num_tokens": generation.num_tokens,
        "finish_reason": generation.finish_reason,
        "extracted": verdict.extracted,
        "status": verdict.status,
        "rule": verdict.rule,
    }
