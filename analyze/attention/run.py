"""How is a run executed? Answering, measuring and controls in batches, shared by processes, one model at a time.

Batches are formed from all replies of a model and mode in a fixed order; each is processed by one process and recorded
completely. So batches do not depend on the number of processes or on interruptions, and every model reads a
teacher-forced reply in the same batch: differences between models contain no rounding caused by batching.
"""

import gc
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from analyze.attention.controls import NUM_CONTROL_REPLIES, check_model
from analyze.attention.plan import MODES, Contender, Unit
from analyze.attention.records import Label, encode_masses
from analyze.probes.inputs import Problem
from eval.grading import BoxSpace
from eval.replies.answering import graded
from eval.replies.batching import BatchSize
from eval.replies.pictures import answer_spaces, pixel_limits
from tracking.progress import progress
from tracking.records import Record
from tracking.sharding import SharedLog

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from analyze.attention.replies import PromptedReply
    from eval.replies.generation import Processor

Item = TypeVar("Item")
KEPT_OF_ANSWERS = ("response", "num_tokens", "finish_reason", "status")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Settings for loading, prompting and measuring every model."""

    prompt_style: str
    system_prompt: str | None
    max_new_tokens: int
    top_tokens: int
    batch_size: int
    dtype: str


@dataclass(frozen=True)
class Loaded:
    """A loaded model with its prompt rendering."""

    model: "PreTrainedModel"
    processor: "Processor"
    reading: Reading

    def render(self, problem: Problem) -> str:
        from eval.replies.generation import render_prompt

        style, system_prompt = self.reading.prompt_style, self.reading.system_prompt
        return render_prompt(self.processor, problem.prompt, style=style, system_prompt=system_prompt)

    def space_of(self, problem: Problem) -> BoxSpace | None:
        """The coordinates in which the model answers a problem that asks for a box."""
        limits = pixel_limits(self.processor, min_pixels=None, max_pixels=None)
        return answer_spaces(self.model.config.model_type, limits)(problem.prompt, problem.directory)

    @property
    def pad_id(self) -> int:
        from eval.replies.generation import tokenizer_of

        return int(tokenizer_of(self.processor).pad_token_id)

    def read(self, unit: Unit) -> "PromptedReply | None":
        from analyze.attention.replies import read_reply_of

        return read_reply_of(
            self.model,
            self.processor,
            text=self.render(unit.problem),
            question=unit.problem.prompt.question,
            image_paths=unit.problem.image_paths,
            reply=unit.reply,
        )


@dataclass(frozen=True)
class Job:
    """A unit of work for one process: some items, by one model."""

    key: str
    label: Label
    items: Sequence[Any]
    work: Callable[[Loaded, Sequence[Any]], list[Record]]
    """Returns one record per item, in smaller batches if memory is insufficient."""


def answer_jobs(contenders: Sequence[Contender], problems: Sequence[Problem], reading: Reading) -> list[Job]:
    """Returns the jobs in which these models answer every problem."""
    batches = _batches(problems, reading.batch_size, lambda one: (len(one.prompt.images), len(one.prompt.question)))
    return [
        Job(f"{contender.label}/answers/{number}", contender.label, batch, partial(_answer, contender.label))
        for contender in contenders
        for number, batch in enumerate(batches)
    ]


def measure_jobs(contenders: Sequence[Contender], units: Sequence[Unit], reading: Reading) -> list[Job]:
    """Returns the jobs in which every model runs its controls and reads its replies."""
    jobs = []
    for contender in contenders:
        own = [unit for unit in units if unit.label == contender.label]
        pictured = sorted(own, key=lambda unit: -len(unit.problem.prompt.images))
        chosen = [unit for unit in pictured if unit.reply.strip()][:NUM_CONTROL_REPLIES]
        jobs.append(Job(f"{contender.label}/controls", contender.label, chosen, partial(_control, contender.label)))
        for mode in MODES:
            batches = _batches([unit for unit in own if unit.mode == mode], reading.batch_size, _length)
            jobs += [
                Job(f"{contender.label}/{mode}/{number}", contender.label, batch, _measure)
                for number, batch in enumerate(batches)
            ]
    return jobs


def share_jobs(
    directory: Path, jobs: Sequence[Job], contenders: Sequence[Contender], reading: Reading, *, title: str
) -> list[Record]:
    """Runs the unfinished jobs in all processes; returns their records in every process."""
    with SharedLog(directory, [job.key for job in jobs]) as log:
        pending = set(log.pending)
        for contender in contenders:
            todo = [job for job in jobs if job.label == contender.label and job.key in pending]
            if todo:
                loaded = _load(contender, reading)
                size = BatchSize(reading.batch_size)
                for job in progress(todo, label=f"{contender.label}: {title}", total=len(todo), unit="batch"):
                    found = [records for _, records in size.run(job.items, partial(job.work, loaded))]
                    log.append({"key": job.key, "records": [record for records in found for record in records]})
                del loaded
        return [record for job in log.merge() for record in job["records"]]


def _load(contender: Contender, reading: Reading) -> Loaded:
    """Loads a model after freeing the previous one."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return Loaded(*contender.subject.load(dtype=reading.dtype, attn_implementation="sdpa"), reading)


def _batches(items: Sequence[Item], size: int, length: Callable[[Item], Any]) -> list[list[Item]]:
    """Returns batches of similar length, longest first."""
    ordered = sorted(items, key=length, reverse=True)
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def _length(unit: Unit) -> tuple[int, int]:
    return len(unit.problem.prompt.images), len(unit.problem.prompt.question) + len(unit.reply)


def _answer(label: Label, loaded: Loaded, batch: Sequence[Problem]) -> list[Record]:
    from eval.replies.generation import generate, greedy_settings

    texts = [loaded.render(problem) for problem in batch]
    generations = generate(
        loaded.model,
        loaded.processor,
        texts,
        [problem.image_paths for problem in batch],
        greedy_settings(loaded.model, loaded.processor, loaded.reading.max_new_tokens),
    )
    return [
        {
            "model": label.name,
            "seed": label.seed,
            **problem.head,
            **{
                name: value
                for name, value in graded(problem.prompt, generation, text=text, space=loaded.space_of(problem)).items()
                if name in KEPT_OF_ANSWERS
            },
        }
        for problem, text, generation in zip(batch, texts, generations, strict=True)
    ]


def _measure(loaded: Loaded, batch: Sequence[Unit]) -> list[Record]:
    from analyze.attention.replies import measure

    rows = [loaded.read(unit) for unit in batch]
    records: list[Record] = [
        {**unit.head, "skipped": "the reply is empty"} for unit, row in zip(batch, rows, strict=True) if row is None
    ]
    units = [unit for unit, row in zip(batch, rows, strict=True) if row is not None]
    present = [row for row in rows if row is not None]
    if not present:
        return records
    mass = measure(loaded.model, present, pad_id=loaded.pad_id, top_tokens=loaded.reading.top_tokens)
    for unit, row, masses, error in zip(units, present, mass.result(), mass.sum_errors.tolist(), strict=True):
        records.append(
            {
                **unit.head,
                "num_prompt_tokens": len(row.input_ids) - row.num_reply_tokens,
                "num_vision_tokens": row.num_vision_tokens,
                "num_tokens": row.num_reply_tokens,
                "tokens_sha256": row.digest,
                "uniform": row.uniform,
                "sum_error": error,
                **encode_masses(masses.numpy()),
            }
        )
    return records


def _control(label: Label, loaded: Loaded, batch: Sequence[Unit]) -> list[Record]:
    rows = [row for row in map(loaded.read, batch) if row is not None]
    if not rows:
        return []
    found = check_model(loaded.model, rows, pad_id=loaded.pad_id, top_tokens=loaded.reading.top_tokens)
    return [{"model": label.name, "seed": label.seed, "control": asdict(found)}]
