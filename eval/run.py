"""What can this model do? Answers and grades all prompts of the tasks; reports accuracy and the paper's abilities.

    python -m eval.run --model CHECKPOINT --tasks outputs/pocket/data:test --output-dir outputs/eval/sft
    python -m eval.run --model CHECKPOINT --tasks mathvista math500 --abilities true --descriptions FILE.jsonl …
    python -m eval.run --model CHECKPOINT --tasks … --num-samples 16 --temperature 1 …   (then eval.support)
    accelerate launch --num_processes 8 -m eval.run …

The model is a checkpoint, a PEFT adapter (merged into its base in fp32 and rounded once), or a recipe of `merge.splice`
(a .yaml file); adapters and splices are built in memory. Tasks are benchmarks by name and prompt sets as FOLDER:SPLIT
(`eval/tasks/`). Prompts are asked as given; with `--abilities true` also with black images or a description, as each
ability's definition requires; with `--conditions` as named (`eval/replies/conditions.py`). Replies are greedy or, with
a temperature, sampled, each with its own seed.

D/records.jsonl    every reply: task, id, condition, sample, response, tokens, why it ended, extracted answer, verdict
D/scores.csv       per task and ability: accuracy and the ability's definition, each with n and interval
D/run.json         all settings that affect replies: generation, chat template, system prompt, pixel limits, …

Batches are formed from all replies, done or not, and a batch that does not fit into memory is halved on its own; so
batches do not depend on earlier work, and a command that was killed gives the same answers when it is resumed. SIGTERM
ends it with exit status 75, together with every process that an engine started.

A judge or describing model behind an endpoint is tested before anything is loaded or written. If it fails later, the
unanswered questions are counted, the exit status is 1, and the same command repeats only those questions.
"""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_builders.prompt_sets.prompts import Prompt
from eval.grading import BOX_SPACES, check_box_space
from eval.judge.verdicts import FAIL, KEEP, Judge, JudgeArguments, JudgeReport, Judging, open_judge, report
from eval.replies.answering import answer_batch, make_query_batches
from eval.replies.conditions import (
    BY_ABILITY,
    REUSE_ARGUMENT,
    check_conditions,
    conditions_of,
    count_undescribed,
    count_without_images,
    earlier_replies,
    make_queries,
)
from eval.replies.decoding import REPETITION_ARGUMENT, check_repetition_window
from eval.replies.described import describe, described_prompts, open_needed, say_what_is_missing
from eval.replies.descriptions import DescriptionArguments, Descriptions
from eval.replies.engines import ENGINES, EngineOptions, check_vllm
from eval.replies.outcomes import GIVEN
from eval.replies.pictures import MAX_PIXELS_ARGUMENT, MIN_PIXELS_ARGUMENT, AnswerSpaces, answer_spaces, pixel_limits
from eval.replies.prompting import MAX_TOKENS_ARGUMENT, STYLE_ARGUMENT, SYSTEM_ARGUMENT, check_style
from eval.replies.rollouts import read_rollout
from eval.replies.sampling import SamplingArguments
from eval.replies.subject import Subject, check_subject, open_subject
from eval.statistics.scores import score_table
from eval.statistics.summary import summary
from eval.tasks import CACHE_DIR, LIMIT_ARGUMENT, Task, check_task, open_task
from models.adapters.opening import BASE_ARGUMENT
from models.layout import read_model_config
from models.loading import ATTENTION_ARGUMENT, DTYPE_ARGUMENT, load_processor
from tracking.command import (
    check_all,
    check_least,
    did_you_mean,
    is_main_process,
    parse_arguments,
    run_command,
    stopped_by_sigterm,
)
from tracking.processes import on_main_process
from tracking.product import write_text
from tracking.progress import progress, say
from tracking.records import Record, encode_records
from tracking.run import OVERWRITE_ARGUMENT, RUN_FILE, is_finished
from tracking.sharding import RECORDS_FILE, SharedLog, join_processes, open_shared_run
from tracking.tables import write_table

if TYPE_CHECKING:
    from eval.replies.generation import Processor

__all__ = ["ARGUMENTS", "EvaluationArguments", "Task", "evaluate", "main"]

ATTENTION = "sdpa"


@dataclass(frozen=True, kw_only=True)
class EvaluationArguments:
    """The model, the tasks, and how replies are generated."""

    model: str = field(
        metadata={
            "help": "folder or hub id of a checkpoint or a PEFT adapter, or the .yaml of a splice's recipe",
            "check": check_subject,
        }
    )
    tasks: list[str] = field(
        metadata={
            "help": "one or more tasks: benchmarks as NAME or NAME:PATH, prompt sets as FOLDER:SPLIT",
            "check": check_task,
        }
    )
    output_dir: str = field(metadata={"help": "where records.jsonl and scores.csv are written"})
    base: str | None = field(default=None, metadata=BASE_ARGUMENT)
    limit: int | None = field(default=None, metadata=LIMIT_ARGUMENT)
    abilities: bool = field(
        default=False,
        metadata={"help": "ask each prompt under all conditions that the definition of its ability requires"},
    )
    conditions: list[str] = field(
        default_factory=list,
        metadata={"help": "conditions to ask under: any of given, black, described; by default given"},
    )
    prompt_style: str = field(default="plain", metadata=STYLE_ARGUMENT)
    system_prompt: str | None = field(default=None, metadata=SYSTEM_ARGUMENT)
    max_new_tokens: int = field(default=2048, metadata=MAX_TOKENS_ARGUMENT)
    repetition_window: int = field(default=128, metadata=REPETITION_ARGUMENT)
    min_pixels: int | None = field(default=None, metadata=MIN_PIXELS_ARGUMENT)
    max_pixels: int | None = field(default=None, metadata=MAX_PIXELS_ARGUMENT)
    box_space: str | None = field(
        default=None,
        metadata={
            "help": f"coordinates in which the model writes boxes: {', '.join(BOX_SPACES)}; by default those of the "
            "model's family"
        },
    )
    engine: str = field(
        default="huggingface",
        metadata={
            "help": "what generates replies: huggingface, or vllm (make setup-vllm for GPUs, make setup-vllm-cpu "
            "for CPUs)"
        },
    )
    batch_size: int = field(default=16, metadata={"help": "replies generated together; fewer if memory runs out"})
    dtype: str = field(default="auto", metadata=DTYPE_ARGUMENT)
    attn_implementation: str = field(default=ATTENTION, metadata=ATTENTION_ARGUMENT)
    cache_dir: str = field(default=str(CACHE_DIR), metadata={"help": "folder to unpack a benchmark's images to"})
    reuse: list[str] = field(default_factory=list, metadata=REUSE_ARGUMENT)
    overwrite: bool = field(default=False, metadata=OVERWRITE_ARGUMENT)

    def __post_init__(self) -> None:
        check_all(
            partial(check_style, self.prompt_style),
            partial(check_conditions, self.conditions, abilities=self.abilities),
            partial(check_least, self, max_new_tokens=1, batch_size=1, limit=1),
            self._check_engine,
            partial(check_repetition_window, self.repetition_window),
            partial(check_box_space, self.box_space),
            self._check_tasks,
        )

    def _check_engine(self) -> None:
        if self.engine not in ENGINES:
            meant = did_you_mean(self.engine, ENGINES)
            raise ValueError(f"engine {self.engine!r} is unknown; expected {' or '.join(ENGINES)}{meant}")
        if self.engine == "vllm" and self.attn_implementation != ATTENTION:
            raise ValueError(
                f"attn_implementation {self.attn_implementation!r} has no effect with engine vllm, which has attention "
                "of its own; leave it out"
            )

    def _check_tasks(self) -> None:
        repeated = {task for task in self.tasks if self.tasks.count(task) > 1}
        if repeated:
            raise ValueError(f"task {sorted(repeated)[0]!r} is named twice")

    def conditions_of(self, prompt: Prompt) -> tuple[str, ...]:
        return conditions_of(prompt, self.conditions, abilities=self.abilities)


ARGUMENTS = (EvaluationArguments, SamplingArguments, DescriptionArguments, JudgeArguments)
"""All arguments of the command."""


def evaluate(
    arguments: EvaluationArguments,
    sampling: SamplingArguments = SamplingArguments(),  # noqa: B008 (frozen)
    describing: DescriptionArguments = DescriptionArguments(),  # noqa: B008
    judging: JudgeArguments = JudgeArguments(),  # noqa: B008
) -> Path:
    """Runs an evaluation to its end and returns its output directory.

    Raises:
        ValueError: for invalid arguments or inputs, before anything is written.
        RuntimeError: if an endpoint left questions unanswered; calling it again repeats those.
    """
    from eval.replies.generation import render_prompt

    join_processes()
    tasks = on_main_process(
        lambda: [
            open_task(name, cache_dir=Path(arguments.cache_dir)).limited(arguments.limit) for name in arguments.tasks
        ]
    )
    names = [task.name for task in tasks]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two tasks have the name {name!r}; evaluate them into two output directories")
    subject = open_subject(arguments.model, arguments.base)
    if arguments.engine == "vllm":
        check_vllm(subject)
    processor = load_processor(subject.directory)
    options = _engine_options(arguments, sampling, subject, processor)
    model_type = read_model_config(subject.directory)["model_type"]
    spaces = answer_spaces(model_type, options.limits, name=arguments.box_space)
    output_dir = Path(arguments.output_dir)
    descriptions = open_needed(describing, tasks, arguments.conditions_of, output_dir)
    judge = open_judge(judging, output_dir)
    rollout = read_rollout(subject.directory) if subject.plan is None and subject.merged is None else None
    settings = _settings(arguments, subject, tasks, processor, options, judging, spaces)
    if descriptions is not None:
        settings["descriptions"] = dict(descriptions.source)
    reused: dict[str, Record] = {}
    if arguments.overwrite or not on_main_process(lambda: is_finished(output_dir)):
        reused = on_main_process(lambda: earlier_replies(arguments.reuse, settings))
        lost = on_main_process(lambda: _check_endpoints(arguments, judging, judge, descriptions, tasks))
        if judge is not None:
            judge.endpoint.given_up = lost
    with open_shared_run(output_dir, command="eval.run", settings=settings, overwrite=arguments.overwrite) as run:
        if run.finished:
            return output_dir
        told = on_main_process(lambda: describe(descriptions, tasks, arguments.conditions_of))
        queries = [
            query
            for task in tasks
            for query in make_queries(task, arguments.conditions_of, told[task.name], sampling.num_samples)
        ]
        run.note(
            **subject.facts,
            rollout=rollout,
            tasks=dict(zip(names, arguments.tasks, strict=True)),
            task_facts={task.name: task.facts for task in tasks},
            chat_template=_chat_template(processor),
            num_reused=sum(query.key in reused for query in queries),
            num_undescribed=sum(count_undescribed(task, arguments.conditions_of, told[task.name]) for task in tasks),
            num_without_images=sum(
                count_without_images(task, arguments.conditions, abilities=arguments.abilities) for task in tasks
            ),
        )
        say_what_is_missing(run.state["attempts"][-1], descriptions)
        with SharedLog(output_dir, [query.key for query in queries]) as log:
            if is_main_process():
                log.append(*[reused[query.key] for query in queries if query.key in reused])
            queries = [query for query in queries if query.key not in reused]
            put = {
                query.key: render_prompt(
                    processor, query.prompt, style=arguments.prompt_style, system_prompt=arguments.system_prompt
                )
                for query in queries
                if not query.sample
            }
            batches = make_query_batches(queries, put, arguments.batch_size)
            own = [batches[number] for number in log.pending_groups([[query.key for query in one] for one in batches])]
            questions = {query.key: query.prompt.question for query in queries}
            working = None if judge is None else Judging(judge)
            if own:
                taken = f"; {len(reused):,} are reused" if reused else ""
                say(
                    f"{len(queries):,} replies to {len({(query.task, query.prompt.id) for query in queries}):,} prompts"
                    f", of at most {arguments.max_new_tokens:,} tokens each (--max-new-tokens){taken}"
                )
                with closing(ENGINES[arguments.engine](subject, processor, options)) as engine:
                    run.note(loaded_dtype=engine.dtype)
                    for batch in progress(own, label=arguments.model, unit="batch"):
                        for records in answer_batch(engine, batch, put, arguments.batch_size, sampling.seed, spaces):
                            log.append(*records)
                            if working is not None:
                                working.start(records, questions)
            if working is not None:
                working.wait()
            merged = log.merge()
        judged = on_main_process(lambda: _finish(output_dir, merged, working, questions))
        if judge is not None:
            run.note(judge=judged.facts, judge_settings={**judge.endpoint.settings, "max_tokens": judge.max_tokens})
        if judged.unanswered and judging.judge_unanswered == FAIL:
            raise RuntimeError(
                f"{judged.unanswered_line}; the same command asks again, for these alone; with --judge-unanswered keep "
                "it leaves these answers unscored and finishes"
            )
        if judged.unanswered and is_main_process():
            print(f"{judged.unanswered_line}; these answers stay unscored")
    return output_dir


def _check_endpoints(
    arguments: EvaluationArguments,
    judging: JudgeArguments,
    judge: Judge | None,
    descriptions: Descriptions | None,
    tasks: Sequence[Task],
) -> str:
    """Tests endpoints before long work begins; returns why the judge is not used, if so."""
    lost = ""
    if judge is not None:
        try:
            judge.check()
        except ValueError as error:
            if judging.judge_unanswered == FAIL:
                begun = (Path(arguments.output_dir) / RUN_FILE).is_file()
                raise ValueError(f"{error}, or do without it: --judge-unanswered keep" if begun else error) from None
            print(f"note: {error}; judge_unanswered is {KEEP}: it is not asked", flush=True)
            lost = "not asked, since it did not answer when it was tried"
    if descriptions is not None:
        for task in tasks:
            descriptions.check(described_prompts(task, arguments.conditions_of), task.directory)
    return lost


def _finish(
    output_dir: Path, merged: list[Record], judging: Judging | None, questions: Mapping[str, str]
) -> JudgeReport:
    """Writes the judge's verdicts into the records, and the scores; reports undecided answers."""
    records = merged if judging is None else judging.finish(merged, questions)
    if records != merged:
        write_text(output_dir / RECORDS_FILE, encode_records(records))
    write_table(output_dir / "scores.csv", score_table(records))
    judged = report(records)
    if judged.undecided:
        print(judged.undecided_line)
    return judged


def _engine_options(
    arguments: EvaluationArguments, sampling: SamplingArguments, subject: Subject, processor: "Processor"
) -> EngineOptions:
    from eval.replies.generation import resolved_settings

    return EngineOptions(
        settings=resolved_settings(subject.directory, processor, arguments.max_new_tokens),
        sampling=sampling,
        limits=pixel_limits(processor, min_pixels=arguments.min_pixels, max_pixels=arguments.max_pixels),
        repetition_window=arguments.repetition_window,
        dtype=arguments.dtype,
        attn_implementation=arguments.attn_implementation,
    )


def _settings(
    arguments: EvaluationArguments,
    subject: Subject,
    tasks: Sequence[Task],
    processor: "Processor",
    options: EngineOptions,
    judging: JudgeArguments,
    spaces: AnswerSpaces,
) -> dict[str, Any]:
    """Returns all settings that affect a reply or its verdict; the first two may differ within a comparison."""
    return {
        "model": arguments.model,
        "model_fingerprint": subject.fingerprint,
        "tasks": {task.name: task.fingerprint for task in tasks},
        "conditions": BY_ABILITY if arguments.abilities else (arguments.conditions or [GIVEN]),
        "prompt_style": arguments.prompt_style,
        "system_prompt": arguments.system_prompt,
        "chat_template_sha256": hashlib.sha256(_chat_template(processor).encode()).hexdigest(),
        "max_new_tokens": arguments.max_new_tokens,
        "repetition_window": arguments.repetition_window,
        **({} if arguments.limit is None else {"limit": arguments.limit}),
        "generation": options.settings,
        "sampling": asdict(options.sampling),
        "pixels": None if options.limits is None else asdict(options.limits),
        **(
            {"box_space": spaces.name}
            if any(prompt.answer_kind == "box" for task in tasks for prompt in task.prompts)
            else {}
        ),
        "engine": arguments.engine,
        "batch_size": arguments.batch_size,
        "dtype": arguments.dtype,
        "attn_implementation": arguments.attn_implementation,
        "judge": judging.judge_model,
    }


def _chat_template(processor: "Processor") -> str:
    from eval.replies.generation import chat_template_of

    return chat_template_of(processor)


def main(argv: list[str] | None = None) -> None:
    arguments, sampling, describing, judging = parse_arguments(argv, *ARGUMENTS, description=__doc__, check_inputs=True)
    with stopped_by_sigterm():
        output_dir = evaluate(arguments, sampling, describing, judging)
    if is_main_process():
        print(*summary(output_dir), f"scores: {output_dir / 'scores.csv'}", sep="\n")


if __name__ == "__main__":
    run_command(main)
