"""Which model does what in a run of `analyze.attention`? Models, prompts, replies, and the work on them in batches.

Batches are formed from all replies of a model and mode, in an order of their own, and each is done by one process and
recorded whole. So neither the number of processes nor a kill changes what stands in a batch, and every model reads a
teacher-forced reply in the same company: their differences hold no rounding of the batch's making.
"""

import gc
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from analyze.attention_controls import NUM_CONTROL_REPLIES, TEACHER_FORCED, check_model
from analyze.attention_tables import Label, encode_masses
from data_builders.prompts import Prompt
from eval.batching import BatchSize
from eval.grading import grade
from eval.run import load_task
from eval.subject import Subject, open_subject
from models.families import family_of
from models.layout import layout_of
from tracking.command import did_you_mean
from tracking.progress import progress
from tracking.records import Record, read_records
from tracking.sharding import SharedLog

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from analyze.attention_replies import PromptedReply
    from eval.generation import Processor

OWN = "own"
MODES = (TEACHER_FORCED, OWN)
STORED = "response"
"""The reference that takes the prompts' own responses."""
Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How every model is loaded, asked and measured."""

    prompt_style: str
    system_prompt: str | None
    max_new_tokens: int
    top_tokens: int
    batch_size: int
    dtype: str


@dataclass(frozen=True)
class Contender:
    """One model of the comparison."""

    label: Label
    subject: Subject


@dataclass(frozen=True)
class Question:
    """One prompt of one task."""

    task: str
    directory: Path
    prompt: Prompt

    @property
    def image_paths(self) -> list[Path]:
        return [self.directory / image for image in self.prompt.images]

    @property
    def key(self) -> str:
        return f"{self.task}/{self.prompt.id}"

    @property
    def head(self) -> dict[str, str]:
        return {"task": self.task, "id": self.prompt.id, "ability": self.prompt.ability}


@dataclass(frozen=True)
class Unit:
    """One reply that one model reads."""

    label: Label
    mode: str
    question: Question
    reply: str

    @property
    def head(self) -> dict[str, str]:
        return {"model": self.label.name, "seed": self.label.seed, "mode": self.mode, **self.question.head}


@dataclass(frozen=True)
class Loaded:
    """A model in memory, and how its prompts are rendered."""

    model: "PreTrainedModel"
    processor: "Processor"
    reading: Reading

    def render(self, question: Question) -> str:
        from eval.generation import render_prompt

        style, system_prompt = self.reading.prompt_style, self.reading.system_prompt
        return render_prompt(self.processor, question.prompt, style=style, system_prompt=system_prompt)

    @property
    def pad_id(self) -> int:
        from eval.generation import tokenizer_of

        return int(tokenizer_of(self.processor).pad_token_id)

    def read(self, unit: Unit) -> "PromptedReply | None":
        from analyze.attention_replies import read_reply

        config = self.model.config
        text_only = family_of(config.model_type).text_only
        return read_reply(
            self.processor,
            text=self.render(unit.question),
            question=unit.question.prompt.question,
            image_paths=unit.question.image_paths,
            reply=unit.reply,
            vision_ids=() if text_only else (config.image_token_id, config.video_token_id),
        )


@dataclass(frozen=True)
class Job:
    """What one process does at a time: some items, by one model."""

    key: str
    label: Label
    items: Sequence[Any]
    work: Callable[[Loaded, Sequence[Any]], list[Record]]
    """Gives a record an item, or fewer items several times over where memory does not hold them."""


def parse_contender(text: str) -> tuple[Label, str]:
    """Parses `NAME=MODEL` or `NAME@SEED=MODEL`."""
    label, _, model = text.partition("=")
    name, at, seed = label.partition("@")
    if not name or not model or (at and not seed):
        raise ValueError(f"--models {text!r} is no NAME=MODEL or NAME@SEED=MODEL, such as sft=outputs/sft/final")
    return Label(name, seed), model


def open_contenders(models: Sequence[str]) -> list[Contender]:
    """Opens the models, which must have different names and seeds and the same depth."""
    named = [parse_contender(text) for text in models]
    labels = [label for label, _ in named]
    for label in labels:
        if labels.count(label) > 1:
            raise ValueError(f"model {str(label)!r} is named twice; expected each model and seed once")
        if not label.seed and [other.name for other in labels].count(label.name) > 1:
            raise ValueError(f"{label.name!r} stands with and without a seed; expected NAME@SEED throughout")
    contenders = [Contender(label, open_subject(model)) for label, model in named]
    depths = {str(one.label): layout_of(one.subject.directory).num_layers for one in contenders}
    first, *others = depths
    for other in others:
        if depths[other] != depths[first]:
            raise ValueError(
                f"{first} has {depths[first]} decoder layers and {other} {depths[other]}; compared layer by layer, "
                "models need the same depth"
            )
    return contenders


def load_questions(tasks_named: Sequence[str], num_prompts: int | None) -> list[Question]:
    """Reads the prompts of all tasks, or the first so many of each."""
    tasks = [load_task(name) for name in tasks_named]
    names = [task.name for task in tasks]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two tasks have a split of the name {name!r}; measure them into two output directories")
    return [Question(task.name, task.directory, prompt) for task in tasks for prompt in task.prompts[:num_prompts]]


def given_replies(reference: str, questions: Sequence[Question]) -> dict[str, str]:
    """Returns the replies that are stored with the prompts, or in a file.

    Raises:
        ValueError: where a prompt has none.
    """
    if reference == STORED:
        found = {one.key: one.prompt.response for one in questions}
    else:
        records = read_records(Path(reference))
        for number, record in enumerate(records, start=1):
            if not isinstance(record, dict) or not isinstance(record.get("response"), str) or "id" not in record:
                raise ValueError(f"{reference}:{number}: no reply; expected an object with id and response")
        by_id = {record["id"]: record["response"] for record in records if "task" not in record}
        by_key = {f"{record['task']}/{record['id']}": record["response"] for record in records if "task" in record}
        found = {one.key: by_key.get(one.key, by_id.get(one.prompt.id)) for one in questions}
    for key, reply in found.items():
        if reply is None:
            raise ValueError(
                f"--reference {reference}: no reply to the prompt {key}; give a file with one for each, or the name of "
                "a model, whose answers are then generated"
            )
    return {key: reply for key, reply in found.items() if reply is not None}


def check_reference(reference: str, labels: Sequence[Label]) -> Label | None:
    """Returns the model that a reference names; None where it names stored replies or a file."""
    by_name = {str(label): label for label in labels}
    if reference in by_name:
        return by_name[reference]
    if reference != STORED and not Path(reference).is_file():
        valid = [*by_name, STORED]
        raise ValueError(
            f"--reference {reference!r} is neither a model, nor {STORED!r}, nor a file{did_you_mean(reference, valid)} "
            f"(models: {', '.join(by_name)})"
        )
    return None


def unreadable_images(questions: Sequence[Question]) -> dict[str, str]:
    """Returns the prompts with an image that cannot be decoded, each with the reason."""
    from PIL import Image

    reasons = {}
    for one in progress(questions, label="images", total=len(questions), unit="prompt"):
        for path in one.image_paths:
            try:
                Image.open(path).convert("RGB")
            except OSError as error:
                reasons[one.key] = f"image {path.name} cannot be read: {' '.join(str(error).split())}"
    return reasons


def plan_units(
    contenders: Sequence[Contender],
    questions: Sequence[Question],
    modes: Sequence[str],
    reference: Label | None,
    replies: dict[str, str],
    answers: Sequence[Record],
) -> list[Unit]:
    """Returns every reply that every model is to read.

    Args:
        contenders: the models.
        questions: the prompts.
        modes: teacher-forced, own or both.
        reference: the model whose answers all read in the teacher-forced mode; None where `replies` has the text.
        replies: by the key of a question.
        answers: the models' own, of those that were asked for.
    """
    own = {
        f"{Label(record['model'], record['seed'])}/{record['task']}/{record['id']}": record["response"]
        for record in answers
    }
    texts = {question.key: own[f"{reference}/{question.key}"] for question in questions} if reference else replies
    units = []
    for contender in contenders:
        for mode in (mode for mode in MODES if mode in modes):
            for question in questions:
                reply = texts[question.key] if mode == TEACHER_FORCED else own[f"{contender.label}/{question.key}"]
                units.append(Unit(contender.label, mode, question, reply))
    return units


def answer_jobs(contenders: Sequence[Contender], questions: Sequence[Question], reading: Reading) -> list[Job]:
    """Returns the jobs in which these models answer every question."""
    batches = _batches(questions, reading.batch_size, lambda one: (len(one.prompt.images), len(one.prompt.question)))
    return [
        Job(f"{contender.label}/answers/{number}", contender.label, batch, partial(_answer, contender.label))
        for contender in contenders
        for number, batch in enumerate(batches)
    ]


def measure_jobs(contenders: Sequence[Contender], units: Sequence[Unit], reading: Reading) -> list[Job]:
    """Returns the jobs in which every model is checked and reads its replies."""
    jobs = []
    for contender in contenders:
        own = [unit for unit in units if unit.label == contender.label]
        pictured = sorted(own, key=lambda unit: -len(unit.question.prompt.images))
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
    """Does the jobs that are not done, in all processes together; returns their records, in every process."""
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
    """Loads a model, after what an earlier one held is given back."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return Loaded(*contender.subject.load(dtype=reading.dtype, attn_implementation="sdpa"), reading)


def _batches(items: Sequence[Item], size: int, length: Callable[[Item], Any]) -> list[list[Item]]:
    """Returns batches of similar length, the longest first."""
    ordered = sorted(items, key=length, reverse=True)
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def _length(unit: Unit) -> tuple[int, int]:
    return len(unit.question.prompt.images), len(unit.question.prompt.question) + len(unit.reply)


def _answer(label: Label, loaded: Loaded, batch: Sequence[Question]) -> list[Record]:
    from eval.generation import generate, greedy_settings

    generations = generate(
        loaded.model,
        loaded.processor,
        [loaded.render(question) for question in batch],
        [question.image_paths for question in batch],
        greedy_settings(loaded.model, loaded.processor, loaded.reading.max_new_tokens),
    )
    return [
        {
            "model": label.name,
            "seed": label.seed,
            **question.head,
            "response": generation.response,
            "num_tokens": generation.num_tokens,
            "finish_reason": generation.finish_reason,
            "status": grade(generation.response, question.prompt.answer, question.prompt.answer_kind).status,
        }
        for question, generation in zip(batch, generations, strict=True)
    ]


def _measure(loaded: Loaded, batch: Sequence[Unit]) -> list[Record]:
    from analyze.attention_replies import measure

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
