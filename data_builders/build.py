"""How is a data set built? Prompt sets and pair sets from a seed or from source files, byte-identical each time.

    python -m data_builders.build pocket --seed 0 --output-dir outputs/pocket/data
    python -m data_builders.build looks --seed 0 --output-dir outputs/pocket_modalities/data
    python -m data_builders.build rl --source FILE_FOLDER_OR_HUB_ID --output-dir outputs/rl/data
    python -m data_builders.build medmnist --source FILES_OR_FOLDER --output-dir outputs/medical/data
    python -m data_builders.build choices --source FILES_OR_HUB_ID --output-dir outputs/questions/data
    python -m data_builders.build ocr --num-pairs 100 --seed 0 --output-dir outputs/pairs/ocr
    python -m data_builders.build pocket_pairs --num-pairs 100 --seed 0 --output-dir outputs/pocket/pairs

Pair sets: ocr, counting, grounding, recognition, and pocket_pairs for the pocket model. `python -m
data_builders.validate FOLDER` checks a finished pair set.
"""

import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from data_builders.choices.build import ChoicesArguments, build_choices
from data_builders.choices.build import describe as describe_choices
from data_builders.counting.build import COUNTING
from data_builders.grounding.build import GROUNDING
from data_builders.medmnist.build import MedmnistArguments, build_medmnist, check_sources
from data_builders.medmnist.build import describe as describe_medmnist
from data_builders.ocr.build import OCR
from data_builders.pairs.sets import (
    MANIFEST_FILE,
    METADATA_FILE,
    Drawing,
    PairSetArguments,
    PairTask,
    build_pair_set,
    describe_set,
)
from data_builders.pairs.vision_grid import open_vision_grid
from data_builders.pocket.build import POCKET_PAIRS
from data_builders.pocket.modalities import LookSizes, build_looks
from data_builders.pocket.world import PocketSizes, build_pocket_world
from data_builders.recognition.build import RECOGNITION
from data_builders.rl.build import WORK_DIR, RlArguments, build_rl, describe
from tracking.command import did_you_mean, parse_arguments, program_name, run_command
from tracking.product import partial_directory
from tracking.progress import progress
from tracking.run import OVERWRITE_ARGUMENT, open_run

BUILDER_VERSION = 1
"""Increased whenever the same arguments would give different files."""
DATA_DIR = "data"


@dataclass(frozen=True, kw_only=True)
class BuildArguments:
    """The output directory and the seed."""

    output_dir: str = field(metadata={"help": "output directory; the data is written to its subfolder data/"})
    seed: int = field(default=0, metadata={"help": "seed from which all content is drawn"})
    overwrite: bool = field(default=False, metadata=OVERWRITE_ARGUMENT)


class Task(NamedTuple):
    """One kind of data set."""

    arguments: tuple[type, ...]
    """Dataclass of its arguments."""
    build: Callable[[Path, Path, int, Any], None]
    """Writes the product into a folder, given seed and arguments; keeps unfinished work in the output directory."""
    describe: Callable[[Any], dict[str, Any]]
    """Returns what determines the product; paths do not."""
    check: Callable[[Path, int, Any], None] | None = None
    """Checks output directory, seed and arguments before anything is written."""
    continues: bool = False
    """Whether it continues with the folder of a killed build."""

    @property
    def purpose(self) -> str:
        """What is built: the first line of the module of its arguments."""
        return (sys.modules[self.arguments[-1].__module__].__doc__ or "").split("\n")[0]


def build_pocket(directory: Path, output_dir: Path, seed: int, own: tuple[PocketSizes]) -> None:
    build_pocket_world(directory, sizes=own[0], seed=seed)


def build_look_prompts(directory: Path, output_dir: Path, seed: int, own: tuple[LookSizes]) -> None:
    build_looks(directory, sizes=own[0], seed=seed)


def build_rl_prompts(directory: Path, output_dir: Path, seed: int, own: tuple[RlArguments]) -> None:
    build_rl(directory, output_dir, own[0], seed)


def build_medmnist_prompts(directory: Path, output_dir: Path, seed: int, own: tuple[MedmnistArguments]) -> None:
    build_medmnist(directory, own[0], seed)


def build_choices_prompts(directory: Path, output_dir: Path, seed: int, own: tuple[ChoicesArguments]) -> None:
    build_choices(directory, output_dir, output_dir / WORK_DIR, own[0], seed)


def pair_task(name: str, task: PairTask) -> Task:
    """Wraps a kind of pair set as a kind of data set."""

    def drawing(output_dir: Path, seed: int, shared: PairSetArguments) -> Drawing:
        grid = open_vision_grid(shared.processor)
        return Drawing(task=name, seed=seed, split=shared.split, grid=grid, work_dir=output_dir / WORK_DIR)

    def check(output_dir: Path, seed: int, own: tuple[PairSetArguments, Any]) -> None:
        shared, arguments = own
        if task.check is not None:
            task.check(arguments, drawing(output_dir, seed, shared), shared.num_pairs)

    def build(directory: Path, output_dir: Path, seed: int, own: tuple[PairSetArguments, Any]) -> None:
        shared, arguments = own
        build_pair_set(directory, task, arguments, drawing(output_dir, seed, shared), shared)

    def describe(own: tuple[PairSetArguments, Any]) -> dict[str, Any]:
        shared, arguments = own
        return describe_set(task, arguments, shared)

    return Task((PairSetArguments, task.arguments), build, describe, check=check, continues=True)


PAIR_TASKS: dict[str, PairTask] = {
    "ocr": OCR,
    "counting": COUNTING,
    "grounding": GROUNDING,
    "recognition": RECOGNITION,
    "pocket_pairs": POCKET_PAIRS,
}
TASKS: dict[str, Task] = {
    "pocket": Task((PocketSizes,), build_pocket, lambda own: asdict(own[0])),
    "looks": Task((LookSizes,), build_look_prompts, lambda own: asdict(own[0])),
    "rl": Task((RlArguments,), build_rl_prompts, lambda own: describe(own[0])),
    "medmnist": Task(
        (MedmnistArguments,),
        build_medmnist_prompts,
        lambda own: describe_medmnist(own[0]),
        check=lambda output_dir, seed, own: check_sources(own[0]),
    ),
    "choices": Task((ChoicesArguments,), build_choices_prompts, lambda own: describe_choices(own[0])),
    **{name: pair_task(name, task) for name, task in PAIR_TASKS.items()},
}


def write_manifest(directory: Path, task: str, arguments: dict[str, Any]) -> None:
    """Writes `manifest.json`: the sha256 of every file, the builder's version and its arguments."""
    files = {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in progress(sorted(directory.rglob("*")), label="digests of all files", unit="file")
        if path.is_file()
    }
    manifest = {"task": task, "builder_version": BUILDER_VERSION, "arguments": arguments, "files": files}
    (directory / MANIFEST_FILE).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def describe_tasks() -> str:
    """Returns the help of the command without a task: what can be built."""
    width = max(map(len, TASKS))
    return "\n".join(
        [
            f"usage: {program_name()} TASK --output-dir DIR [--config FILE] [--NAME VALUE ...]\n",
            "TASK is one of these; TASK --help lists its arguments:\n",
            *(f"  {name:<{width}}  {task.purpose}" for name, task in TASKS.items()),
            "\nThe data is written to DIR/data. `python -m data_builders.validate DIR` checks a finished pair set.",
        ]
    )


def _listings(directory: Path) -> list[Path]:
    """Returns the files with one prompt or pair per line."""
    return [path for path in sorted(directory.glob("*.jsonl")) if path.name != METADATA_FILE]


def _num_lines(path: Path) -> int:
    with path.open("rb") as lines:
        return sum(1 for _ in lines)


def main(argv: list[str] | None = None) -> None:
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] in (["--help"], ["-h"]):
        print(describe_tasks())
        return
    if not argv or argv[0].startswith("-"):
        raise ValueError(
            f"name what to build first, such as: python -m data_builders.build {next(iter(TASKS))} --output-dir D"
        )
    task = argv.pop(0)
    if task not in TASKS:
        raise ValueError(f"task {task!r} is unknown; expected one of {', '.join(TASKS)}{did_you_mean(task, TASKS)}")
    arguments, *own = parse_arguments(
        argv,
        BuildArguments,
        *TASKS[task].arguments,
        description=TASKS[task].purpose,
        subcommand=task,
        check_inputs=True,
    )
    output_dir = Path(arguments.output_dir)
    described = {"seed": arguments.seed, **TASKS[task].describe(own)}
    check = TASKS[task].check
    if check is not None:
        check(output_dir, arguments.seed, own)
    settings = {"task": task, "builder_version": BUILDER_VERSION, **described}
    with open_run(output_dir, command="data_builders.build", settings=settings, overwrite=arguments.overwrite) as run:
        if not run.finished and not (output_dir / DATA_DIR).exists():
            with partial_directory(output_dir / DATA_DIR, keep=TASKS[task].continues) as partial:
                TASKS[task].build(partial, output_dir, arguments.seed, own)
                write_manifest(partial, task, described)
        shutil.rmtree(output_dir / WORK_DIR, ignore_errors=True)
    print(", ".join(f"{path.stem}: {_num_lines(path)}" for path in _listings(output_dir / DATA_DIR)))
    print(f"data: {output_dir / DATA_DIR}")


if __name__ == "__main__":
    run_command(main)
