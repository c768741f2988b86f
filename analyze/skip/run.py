"""How are the answers made? Rows of problems and configurations in batches, shared by processes."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from analyze.probes.inputs import Problem
from analyze.skip.plan import Asking, Configuration, Row, all_rows, make_units
from analyze.skip.records import row_record
from eval.replies.batching import BatchSize
from eval.replies.pictures import answer_spaces, pixel_limits
from eval.replies.subject import Subject
from tracking.progress import progress, say
from tracking.sharding import SharedLog

if TYPE_CHECKING:
    from eval.replies.generation import Generation


def answer_all(
    subject: Subject,
    problems: Sequence[Problem],
    configurations: Sequence[Configuration],
    log: SharedLog,
    asking: Asking,
    *,
    title: str,
) -> None:
    """Generates, grades and records what is not done."""
    from eval.replies.generation import render_prompt

    num_replies = len(all_rows(problems, configurations))
    say(f"{num_replies:,} replies, of at most {asking.max_new_tokens:,} tokens each (--max-new-tokens)")
    model, processor = subject.load(dtype=asking.dtype, attn_implementation=asking.attn_implementation)
    texts = {
        problem.key: render_prompt(
            processor, problem.prompt, style=asking.prompt_style, system_prompt=asking.system_prompt
        )
        for problem in problems
    }
    units = [
        unit
        for task in dict.fromkeys(problem.task for problem in problems)
        for unit in make_units([p for p in problems if p.task == task], texts, configurations, asking.batch_size)
    ]
    own = [units[number] for number in log.pending_groups([[row.key for row in unit] for unit in units])]
    size = BatchSize(asking.batch_size)
    dtype = str(model.dtype).removeprefix("torch.")
    spaces = answer_spaces(model.config.model_type, pixel_limits(processor, min_pixels=None, max_pixels=None))
    for unit in progress(own, label=title, unit="batch"):
        answers = _answers(asking, model, processor, unit, texts, size)
        log.append(
            *[
                row_record(
                    row,
                    text=texts[row.problem.key],
                    dtype=dtype,
                    answer=answer,
                    space=spaces(row.problem.prompt, row.problem.directory),
                )
                for row, answer in answers
            ]
        )


def _answers(
    asking: Asking, model: Any, processor: Any, unit: Sequence[Row], texts: dict[str, str], size: BatchSize
) -> Iterator[tuple[Row, "Generation"]]:
    import torch

    from analyze.skip.generation import Rows, answer_rows
    from analyze.skip.layers import RowwiseSkip
    from eval.replies.generation import generate, greedy_settings

    settings = greedy_settings(model, processor, asking.max_new_tokens)

    def work(rows: Sequence[Row]) -> list["Generation"]:
        problems = list(dict.fromkeys(row.problem for row in rows))
        rendered = [texts[problem.key] for problem in problems]
        images = [problem.image_paths for problem in problems]
        configurations = [row.configuration for row in rows if row.configuration]
        if not configurations:
            return generate(model, processor, rendered, images, settings)
        with RowwiseSkip(model) as skip:
            batch = Rows(
                texts=rendered,
                images=images,
                prompts=[problems.index(row.problem) for row in rows],
                plan=torch.from_numpy(np.stack([one.plan(skip.num_layers) for one in configurations])),
            )
            return answer_rows(model, processor, skip, batch, settings, repetition_window=asking.repetition_window)

    for rows, generations in size.run(unit, work):
        yield from zip(rows, generations, strict=True)
