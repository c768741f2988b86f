"""How do queries become records? In batches that depend only on the queries; each reply is graded by the rules.

Batches are formed from all queries of a task, done or not, so a resumed run uses the same batches as an uninterrupted
one. If memory runs out, a batch is halved, and the next batch starts at full size again: the composition of a batch
never depends on earlier work. The longest prompts come first, so memory runs out early or not at all.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from data_builders.prompt_sets.prompts import Prompt
from eval.grading import BoxSpace, continued, grade, is_well_formed, opens_thoughts
from eval.replies.batching import BatchSize
from eval.replies.conditions import Query
from eval.replies.engines import Engine, Request
from eval.replies.pictures import AnswerSpaces, pictures_sha256
from eval.replies.sampling import reply_seed
from tracking.records import Record

if TYPE_CHECKING:
    from eval.replies.generation import Generation

OPENED_THOUGHTS = "opened_thoughts"
"""Key of a record whose prompt opened `<think>`, so that its reply starts inside its thoughts."""
GROUPED_BY = ("modality", "kind")
"""Fields of a prompt's `meta` that its records keep if it has them: the kind of picture, and of question."""
BOX_SCALE = "box_scale"
"""Key of the factors, horizontal and vertical, from pixels to the coordinates in which the model wrote its boxes."""


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
    engine: Engine,
    batch: Sequence[Query],
    texts: Mapping[str, str],
    batch_size: int,
    seed: int,
    spaces: AnswerSpaces | None = None,
) -> Iterator[list[Record]]:
    """Yields the records of a batch: all at once, or in parts if memory is insufficient.

    Args:
        texts: key of a prompt's first sample -> rendered prompt.
        spaces: how the model writes boxes, if not in pixels.
    """

    def answer(queries: Sequence[Query]) -> list["Generation"]:
        return engine.answer(
            [
                Request(texts[query.key_of_first], query.pictures, reply_seed(seed, query.prompt.id, query.sample))
                for query in queries
            ]
        )

    for part, generations in BatchSize(batch_size).run(batch, answer):
        yield [
            reply_record(
                query,
                texts[query.key_of_first],
                generation,
                None if spaces is None else spaces(query.prompt, query.directory),
            )
            for query, generation in zip(part, generations, strict=True)
        ]


def reply_record(query: Query, text: str, generation: "Generation", space: BoxSpace | None) -> Record:
    """Returns the record of a graded reply.

    Args:
        text: the rendered prompt.
        space: the coordinates in which the model writes boxes, if they are not the gold's.
    """
    prompt = query.prompt
    return {
        "key": query.key,
        "task": query.task,
        "id": prompt.id,
        "ability": prompt.ability,
        "condition": query.condition,
        "sample": query.sample,
        "cluster": (prompt.meta or {}).get("cluster"),
        **{name: prompt.meta[name] for name in GROUPED_BY if prompt.meta and name in prompt.meta},
        "gold": prompt.answer,
        "answer_kind": prompt.answer_kind,
        "choices": list(prompt.choices),
        "precision": prompt.precision,
        "prompt_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "images_sha256": pictures_sha256(query.pictures),
        **graded(prompt, generation, text=text, space=space),
        "well_formed": is_well_formed(continued(generation.response, opened=opens_thoughts(text))),
    }


def graded(prompt: Prompt, generation: "Generation", *, text: str, space: BoxSpace | None = None) -> Record:
    """Returns what records keep of a reply: its text, why it ended, and the verdict of the rules.

    Args:
        text: the rendered prompt; if it opens `<think>`, the reply starts inside its thoughts.
        space: the coordinates in which the model writes boxes, if they are not the gold's.
    """
    opened = opens_thoughts(text)
    gold = prompt.answer if space is None else space.gold_text(prompt.answer)
    reply = continued(generation.response, opened=opened)
    verdict = grade(reply, gold, prompt.answer_kind, prompt.choices, prompt.precision)
    return {
        "response": generation.response,
        "num_tokens": generation.num_tokens,
        "finish_reason": generation.finish_reason,
        "extracted": verdict.extracted,
        "status": verdict.status,
        "rule": verdict.rule,
        **({OPENED_THOUGHTS: True} if opened else {}),
        **({} if space is None else {BOX_SCALE: [space.scale_x, space.scale_y]}),
    }
