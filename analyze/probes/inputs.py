"""The inputs of a probe: its problems and options, checked before a model is loaded.

Tasks are those of `eval.run`: `FOLDER:SPLIT` of a prompt set, or a benchmark such as `gsm8k:FILE` (`eval/tasks`).
Problems with an image that cannot be decoded are listed and left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from data_builders.prompt_sets.images import DECODING_ERRORS
from data_builders.prompt_sets.prompts import Prompt
from eval.grading import KINDS
from eval.tasks import open_task
from models.layout import Layout
from tracking.command import check_all, did_you_mean
from tracking.processes import on_main_process
from tracking.progress import progress

SKIPPED_COLUMNS = ["task", "id", "reason"]
"""Columns of the table of skipped problems."""
DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")
ATTENTIONS = ("sdpa", "eager", "flash_attention_2")


@dataclass(frozen=True, kw_only=True, eq=False)
class Problem:
    """One prompt of one task."""

    task: str
    directory: Path
    prompt: Prompt

    @property
    def key(self) -> str:
        return f"{self.task}/{self.prompt.id}"

    @property
    def head(self) -> dict[str, str]:
        """The first fields of its record."""
        return {"task": self.task, "id": self.prompt.id, "ability": self.prompt.ability}

    @property
    def image_paths(self) -> list[Path]:
        return [self.directory / image for image in self.prompt.images]


def load_problems(
    named: Sequence[str], *, abilities: Sequence[str] = (), limit: int | None = None
) -> tuple[list[Problem], dict[str, str]]:
    """Reads tasks and returns their problems, in order, and a fingerprint of each task.

    Args:
        named: tasks, as described in the module's docstring.
        abilities: only problems of these abilities; all if empty.
        limit: maximum number of problems per task, the first ones.

    Raises:
        ValueError: if a task cannot be read or graded, has none of the abilities, or has another's name.
    """
    problems: list[Problem] = []
    fingerprints: dict[str, str] = {}
    for name in named:
        task = open_task(name)
        if task.name in fingerprints:
            raise ValueError(f"two tasks have the name {task.name!r}; probe them into two output directories")
        fingerprints[task.name] = task.fingerprint
        chosen = [prompt for prompt in task.prompts if not abilities or prompt.ability in abilities]
        if not chosen:
            raise ValueError(f"task {name} has no prompts of {', '.join(abilities)}; name other abilities")
        for prompt in chosen[:limit]:
            if prompt.answer_kind not in KINDS:
                raise ValueError(
                    f"prompt {prompt.id!r} of {name}: answer kind {prompt.answer_kind!r} is unknown; expected one of "
                    f"{', '.join(KINDS)}"
                )
            problems.append(Problem(task=task.name, directory=task.directory, prompt=prompt))
    return problems, fingerprints


def unreadable_images(problems: Sequence[Problem]) -> dict[str, str]:
    """Returns the keys of problems with an image that cannot be decoded, with reasons."""
    from PIL import Image

    reasons = {}
    for problem in progress(problems, label="images", total=len(problems), unit="problem"):
        for path in problem.image_paths:
            try:
                with Image.open(path) as opened:
                    opened.convert("RGB")
            except DECODING_ERRORS as error:
                said = type(error).__name__ if path.name in str(error) else " ".join(str(error).split())
                reasons[problem.key] = f"image {path.name} cannot be read: {said}"
    return reasons


def leave_out_unreadable(problems: Sequence[Problem]) -> tuple[list[Problem], list[dict[str, str]]]:
    """Returns the problems that can be put, and a row of `SKIPPED_COLUMNS` for each that is left out.

    The main process looks for all.

    Raises:
        ValueError: where none can be put.
    """
    unreadable = on_main_process(lambda: unreadable_images(problems))
    return readable(problems, unreadable), skipped_rows(problems, unreadable)


def readable(problems: Sequence[Problem], unreadable: dict[str, str]) -> list[Problem]:
    """Returns the usable problems.

    Raises:
        ValueError: if there are none.
    """
    kept = [problem for problem in problems if problem.key not in unreadable]
    if not kept:
        key, reason = next(iter(unreadable.items()))
        raise ValueError(f"none of the {len(problems)} problems can be used; the first, {key}: {reason}")
    return kept


def skipped_rows(problems: Sequence[Problem], unreadable: dict[str, str]) -> list[dict[str, str]]:
    """Returns one table row per skipped problem."""
    return [
        {"task": problem.task, "id": problem.prompt.id, "reason": unreadable[problem.key]}
        for problem in problems
        if problem.key in unreadable
    ]


def check_sight(problems: Sequence[Problem], layout: Layout) -> None:
    """Rejects images for a text-only model."""
    seeing = [problem.key for problem in problems if problem.prompt.images]
    if layout.family.text_only and seeing:
        raise ValueError(
            f"prompt {seeing[0]} has images ({len(seeing)} such), and {layout.family.model_type} is a text-only model; "
            "expected problems without images"
        )


def check_loading(*, dtype: str, attn_implementation: str = ATTENTIONS[0]) -> None:
    """Rejects invalid loading options."""
    check_all(
        partial(check_choices, "dtype", [dtype], DTYPES),
        partial(check_choices, "attn_implementation", [attn_implementation], ATTENTIONS),
    )


def check_choices(what: str, chosen: Sequence[str], valid: Sequence[str]) -> None:
    """Rejects unknown or duplicate names, and an empty list."""
    if not chosen:
        raise ValueError(f"no {what} is named; expected any of {', '.join(valid)}")
    for name in chosen:
        if name not in valid:
            raise ValueError(f"{what} {name!r} is unknown{did_you_mean(name, valid)} (expected {', '.join(valid)})")
        if list(chosen).count(name) > 1:
            raise ValueError(f"{what} {name!r} is named twice")
