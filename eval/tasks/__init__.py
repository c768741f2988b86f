"""Which tasks are available by name? Published benchmarks, and prompt sets.

    mathvista               the hub's files, at the commit given in the benchmark's module
    mathvista@REVISION      the same at another commit, tag or branch
    mathvista:PATH          a copy: a Parquet, JSON or JSONL file, or a folder with the hub's files
    FOLDER:SPLIT            a prompt set (`data_builders/prompt_sets/prompts.py`)

Each benchmark is a module here: its location, its columns, how a row becomes a prompt, how answers are graded. The
prompt style (plain, boxed, think) is set by the run (`eval/replies/prompting.py`). A prompt set whose folder has the
name of a benchmark is given as `./mathvista:SPLIT`.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from data_builders.prompt_sets.prompts import Prompt, check_split, find_split, splits_of
from eval.tasks.benchmark import Benchmark, Row, Task
from eval.tasks.gsm8k import GSM8K
from eval.tasks.math500 import MATH500
from eval.tasks.mathverse import MATHVERSE
from eval.tasks.mathvision import MATHVISION, MATHVISION_TESTMINI
from eval.tasks.mathvista import MATHVISTA
from eval.tasks.pictures import image_entry, image_root, open_store
from eval.tasks.prompt_sets import open_prompt_set
from eval.tasks.rows import hub_files, local_files, read_rows
from tracking.command import did_you_mean
from tracking.progress import progress

__all__ = ["TASKS", "Task", "check_task", "open_task"]

TASKS: dict[str, Benchmark] = {
    "mathvista": MATHVISTA,
    "math500": MATH500,
    "gsm8k": GSM8K,
    "mathvision": MATHVISION,
    "mathvision-testmini": MATHVISION_TESTMINI,
    "mathverse": MATHVERSE,
}
"""Benchmarks by name."""


CACHE_DIR = Path("outputs/tasks")
LIMIT_ARGUMENT = {"help": "use only the first N prompts of each task"}
"""Metadata of the field `limit` of all commands that take tasks."""


def open_task(name: str, *, cache_dir: Path = CACHE_DIR, with_images: bool = True) -> Task:
    """Reads a task.

    Args:
        name: in one of the forms of the module's docstring.
        cache_dir: folder for images embedded in rows, with one subfolder per benchmark.
        with_images: if False, only the text is used and no images are needed.

    Raises:
        ValueError: in one line, if there is no such task, or it is damaged or incomplete.
    """
    head, colon, place = name.partition(":")
    known, _, revision = head.partition("@")
    if known in TASKS:
        if colon and revision:
            raise ValueError(f"task {name!r} names a revision and a copy; name one of them")
        return _open_benchmark(known, place if colon else None, revision or None, cache_dir, with_images)
    folder, _, split = name.rpartition(":")
    if not folder:
        if splits := _splits_at(Path(name)):
            raise ValueError(f"task {name!r} names no split; expected FOLDER:SPLIT: {', '.join(splits)}")
        raise ValueError(
            f"task {name!r} is unknown; expected FOLDER:SPLIT, or one of {', '.join(TASKS)}{did_you_mean(known, TASKS)}"
        )
    return open_prompt_set(folder, split)


def check_task(name: str) -> None:
    """Refuses a task that is plainly not there, without reading one that is; the hub is not asked.

    Raises:
        ValueError: as `open_task` does.
    """
    head, _, place = name.partition(":")
    folder, _, split = name.rpartition(":")
    if head.partition("@")[0] in TASKS:
        if place and not Path(place).exists():
            open_task(name, cache_dir=Path())
    elif folder:
        check_split(Path(folder), split)
    else:
        open_task(name, cache_dir=Path())


def _splits_at(path: Path) -> list[str]:
    """Returns how the splits of a prompt set are named as tasks, from its folder, from one around it, or its file."""
    if path.is_file() and path.suffix == ".jsonl":
        return [f"{path.parent}:{path.stem}"]
    place = find_split(path) if path.is_dir() else None
    return [] if place is None else [f"{place}:{split}" for split in splits_of(place)]


def _open_benchmark(name: str, place: str | None, revision: str | None, cache_dir: Path, with_images: bool) -> Task:
    benchmark = TASKS[name]
    commit = revision or benchmark.revision
    files = hub_files(benchmark, commit) if place is None else local_files(benchmark, Path(place))
    source = f"{benchmark.repo}@{commit}" if place is None else place
    pairs = _read_prompts(benchmark, files)
    if with_images and benchmark.image_columns:
        prompts, directory = _with_images(name, benchmark, pairs, files[0], cache_dir / name)
    else:
        prompts, directory = [prompt for prompt, _ in pairs], files[0].parent
    if not prompts:
        raise ValueError(f"{files[0]} is empty; expected the problems of {name}")
    _check_ids(prompts, files[0])
    facts: dict[str, Any] = {
        "source": source, "num_prompts": len(prompts), "num_images": len({i for p in prompts for i in p.images}),
    }  # fmt: skip
    is_stored = directory == cache_dir / name
    fingerprint = _fingerprint(prompts, None if is_stored else directory)
    return Task(name=name, prompts=prompts, directory=directory, fingerprint=fingerprint, facts=facts)


def _read_prompts(benchmark: Benchmark, files: list[Path]) -> Iterator[tuple[Prompt, Row]]:
    number = 0
    for path in files:
        for row in read_rows(path):
            number += 1
            missing = [column for column in benchmark.columns if column not in row]
            if missing:
                raise ValueError(f"{path} has no column {missing[0]!r}; a row has {', '.join(row)}")
            try:
                yield benchmark.read(row, f"{number:04d}"), row
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                what = f"{error} is missing" if isinstance(error, KeyError) else error
                raise ValueError(f"{path}: row {number}: {what}") from error


def _with_images(
    name: str, benchmark: Benchmark, pairs: Iterator[tuple[Prompt, Row]], file: Path, store_dir: Path
) -> tuple[list[Prompt], Path]:
    prompts: list[Prompt] = []
    stored = 0
    with open_store(store_dir) as store:
        for prompt, row in progress(pairs, label=f"{name}: images", unit="image"):
            try:
                entry = image_entry(row, benchmark.image_columns)
                stored += isinstance(entry, bytes)
                image = store.add(entry) if isinstance(entry, bytes) else entry
            except ValueError as error:
                raise ValueError(f"{file}: {name} {prompt.id}: {error}") from error
            prompts.append(replace(prompt, images=(image,)))
        if stored:
            store.save()
    if stored == len(prompts):
        return prompts, store_dir
    try:
        if stored:
            raise ValueError(f"{len(prompts) - stored} of {len(prompts)} rows have a path instead of their image")
        return prompts, image_root([prompt.images[0] for prompt in prompts], file)
    except ValueError as error:
        raise ValueError(
            f"{file}: {error}; unpack images.zip of the hub's {benchmark.repo} beside the file, or name the Parquet "
            "files, which contain the images"
        ) from error


def _check_ids(prompts: list[Prompt], path: Path) -> None:
    seen: set[str] = set()
    for prompt in prompts:
        if prompt.id in seen:
            raise ValueError(f"{path}: id {prompt.id!r} appears twice; expected each problem once")
        seen.add(prompt.id)


def _fingerprint(prompts: list[Prompt], directory: Path | None) -> str:
    """Returns a sha256 of the prompts and of their images' bytes, except images named by their content."""
    digest = hashlib.sha256(json.dumps([asdict(prompt) for prompt in prompts], sort_keys=True).encode())
    if directory is not None:
        for image in sorted({image for prompt in prompts for image in prompt.images}):
            digest.update(hashlib.sha256((directory / image).read_bytes()).digest())
    return digest.hexdigest()
