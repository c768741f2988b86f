"""What can this model do? Greedy answers to every prompt of the tasks, graded, with the mean per ability.

    python -m eval.run --model CHECKPOINT --tasks outputs/pocket/data:test --output-dir outputs/eval/sft

The model is a checkpoint, or a recipe of `merge.splice` (a file ending in .yaml), whose splice is then made in memory.
`records.jsonl` holds every response, `scores.csv` the accuracy per ability with its interval (Wilson, 95 %). A task is
`FOLDER:SPLIT`, a prompt set as `data_builders/prompts.py` describes it. Batches are the same whether or not the command
was killed and continued, so the answers are too.
"""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_builders.prompts import Prompt, prompts_fingerprint, read_prompts
from eval.grading import CORRECT, UNSCORED, grade, is_well_formed
from eval.prompting import check_style
from eval.statistics import wilson
from eval.subject import Subject, open_subject
from tracking.command import parse_arguments, run_command
from tracking.progress import progress
from tracking.records import Record, RecordLog
from tracking.run import open_run
from tracking.tables import write_table

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True)
class EvaluationArguments:
    """What is scored, and how."""

    model: str = field(metadata={"help": "checkpoint folder, hub id, or a recipe's .yaml"})
    tasks: list[str] = field(metadata={"help": "prompt sets as FOLDER:SPLIT"})
    output_dir: str = field(metadata={"help": "where records.jsonl and scores.csv are written"})
    prompt_style: str = field(default="plain", metadata={"help": "plain, boxed or think"})
    system_prompt: str | None = field(default=None, metadata={"help": "system message; none by default"})
    max_new_tokens: int = field(default=2048, metadata={"help": "longest reply, in tokens"})
    batch_size: int = field(default=16, metadata={"help": "prompts generated together"})
    dtype: str = field(default="auto", metadata={"help": "auto (as stored), float32 or bfloat16"})
    attn_implementation: str = field(default="sdpa", metadata={"help": "sdpa, eager or flash_attention_2"})
    overwrite: bool = field(default=False, metadata={"help": "start over"})

    def __post_init__(self) -> None:
        check_style(self.prompt_style)
        for name in ("max_new_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        repeated = {task for task in self.tasks if self.tasks.count(task) > 1}
        if repeated:
            raise ValueError(f"task {sorted(repeated)[0]!r} is named twice")


@dataclass(frozen=True)
class Task:
    """One split of a prompt set."""

    name: str
    directory: Path
    prompts: list[Prompt]


def load_task(name: str) -> Task:
    """Reads a task given as FOLDER:SPLIT."""
    folder, _, split = name.rpartition(":")
    if not folder:
        raise ValueError(f"task {name!r} is no FOLDER:SPLIT; expected for example outputs/pocket/data:test")
    return Task(name=split, directory=Path(folder), prompts=read_prompts(Path(folder), split))


def evaluate(arguments: EvaluationArguments) -> Path:
    """Runs an evaluation to its end and returns its output directory."""
    tasks = [load_task(name) for name in arguments.tasks]
    splits = [task.name for task in tasks]
    for split in splits:
        if splits.count(split) > 1:
            raise ValueError(f"two tasks have a split of the name {split!r}; evaluate them into two output directories")
    subject = open_subject(arguments.model)
    settings: dict[str, Any] = {
        "model": arguments.model,
        "model_fingerprint": subject.fingerprint,
        "tasks": {task.name: prompts_fingerprint(task.directory, task.name) for task in tasks},
        "prompt_style": arguments.prompt_style,
        "system_prompt": arguments.system_prompt,
        "max_new_tokens": arguments.max_new_tokens,
        "batch_size": arguments.batch_size,
        "dtype": arguments.dtype,
        "attn_implementation": arguments.attn_implementation,
    }
    output_dir = Path(arguments.output_dir)
    with open_run(output_dir, command="eval.run", settings=settings, overwrite=arguments.overwrite) as run:
        if run.finished:
            return output_dir
        run.note(**subject.facts)
        with RecordLog(output_dir / "records.jsonl") as log:
            _answer_all(arguments, subject, tasks, log)
            write_table(output_dir / "scores.csv", score_table(list(log)))
    return output_dir


def _answer_all(arguments: EvaluationArguments, subject: Subject, tasks: list[Task], log: RecordLog) -> None:
    from eval.generation import generate, greedy_settings, make_batches, render_prompt

    model, processor = subject.load(dtype=arguments.dtype, attn_implementation=arguments.attn_implementation)
    settings = greedy_settings(model, processor, arguments.max_new_tokens)
    for task in tasks:
        texts = [
            render_prompt(processor, prompt, style=arguments.prompt_style, system_prompt=arguments.system_prompt)
            for prompt in task.prompts
        ]
        batches = make_batches(task.prompts, texts, arguments.batch_size)
        for batch in progress(batches, label=f"{arguments.model}: {task.name}", unit="batch"):
            if all(_key(task, task.prompts[index]) in log for index in batch):
                continue
            prompts = [task.prompts[index] for index in batch]
            images = [[task.directory / image for image in prompt.images] for prompt in prompts]
            generations = generate(model, processor, [texts[index] for index in batch], images, settings)
            records: list[Record] = []
            for index, prompt, generation in zip(batch, prompts, generations, strict=True):
                verdict = grade(generation.response, prompt.answer, prompt.answer_kind)
                records.append(
                    {
                        "key": _key(task, prompt),
                        "task": task.name,
                        "id": prompt.id,
                        "ability": prompt.ability,
                        "gold": prompt.answer,
                        "answer_kind": prompt.answer_kind,
                        "prompt_sha256": hashlib.sha256(texts[index].encode()).hexdigest(),
                        "response": generation.response,
                        "num_tokens": generation.num_tokens,
                        "finish_reason": generation.finish_reason,
                        "extracted": verdict.extracted,
                        "status": verdict.status,
                        "rule": verdict.rule,
                        "well_formed": is_well_formed(generation.response),
                    }
                )
            log.append(*[record for record in records if record["key"] not in log])


def _key(task: Task, prompt: Prompt) -> str:
    return f"{task.name}/{prompt.id}"


def score_table(records: list[Record]) -> "pd.DataFrame":
    """Returns a row per task and ability: n, accuracy with its interval, unscored, well-formed, cut at the limit."""
    import pandas as pd

    rows = []
    for task, ability in dict.fromkeys((record["task"], record["ability"]) for record in records):
        group = [record for record in records if (record["task"], record["ability"]) == (task, ability)]
        scored = [record for record in group if record["status"] != UNSCORED]
        num_correct = sum(record["status"] == CORRECT for record in scored)
        rate = wilson(num_correct, len(scored))
        rows.append(
            {
                "task": task,
                "ability": ability,
                "n": len(scored),
                "accuracy": rate.estimate,
                "standard_error": rate.standard_error,
                "low": rate.low,
                "high": rate.high,
                "num_unscored": len(group) - len(scored),
                "well_formed_frac": sum(record["well_formed"] for record in group) / len(group),
                "mean_tokens": sum(record["num_tokens"] for record in group) / len(group),
                "at_limit_frac": sum(record["finish_reason"] == "length" for record in group) / len(group),
            }
        )
    return pd.DataFrame(rows).sort_values(["task", "ability"], ignore_index=True)


def main(argv: list[str] | None = None) -> None:
    (arguments,) = parse_arguments(argv, EvaluationArguments, description=__doc__)
    output_dir = evaluate(arguments)
    print(f"scores: {output_dir / 'scores.csv'}")


if __name__ == "__main__":
    run_command(main)
