"""Builds a data set from a seed: the same arguments give byte-identical files.

python -m data_builders.build pocket --seed 0 --output-dir outputs/pocket/data
python -m data_builders.build pocket_pairs --seed 0 --num_pairs 100 --output-dir outputs/pocket/pairs
python -m data_builders.build rl --source FILES, FOLDERS or a HUB ID --output-dir outputs/rl/data
"""

import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from data_builders.pocket import PocketSizes, build_pocket_world
from data_builders.pocket_pairs import PocketPairArguments, build_pocket_pairs
from data_builders.rl import WORK_DIR, RlArguments, build_rl, describe
from tracking.command import did_you_mean, parse_arguments, run_command
from tracking.product import partial_directory
from tracking.run import open_run

BUILDER_VERSION = 1
"""Raised whenever the same arguments would give other files."""
DATA_DIR = "data"


@dataclass(frozen=True, kw_only=True)
class BuildArguments:
    """Where a data set is written, and from which seed."""

    output_dir: str = field(metadata={"help": "run directory; the data stands in its folder data/"})
    seed: int = field(default=0, metadata={"help": "everything is drawn from it"})
    overwrite: bool = field(default=False, metadata={"help": "start over"})


class Task(NamedTuple):
    """One kind of data set."""

    arguments: type
    """Its own arguments."""
    build: Callable[[Path, Path, Any, int], None]
    """Writes into a folder, keeping unfinished work in the output directory, from its arguments and a seed."""
    describe: Callable[[Any], dict[str, Any]]
    """Returns what determines the product; names of places do not."""


def build_pocket(directory: Path, output_dir: Path, sizes: PocketSizes, seed: int) -> None:
    build_pocket_world(directory, sizes=sizes, seed=seed)


def build_pairs(directory: Path, output_dir: Path, arguments: PocketPairArguments, seed: int) -> None:
    build_pocket_pairs(directory, seed=seed, **asdict(arguments))


TASKS: dict[str, Task] = {
    "pocket": Task(PocketSizes, build_pocket, asdict),
    "pocket_pairs": Task(PocketPairArguments, build_pairs, asdict),
    "rl": Task(RlArguments, build_rl, describe),
}


def write_manifest(directory: Path, task: str, arguments: dict[str, Any]) -> None:
    """Writes `manifest.json`: the sha256 of every file, the builder's version and its arguments."""
    files = {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }
    manifest = {"task": task, "builder_version": BUILDER_VERSION, "arguments": arguments, "files": files}
    (directory / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def main(argv: list[str] | None = None) -> None:
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0].startswith("-"):
        raise ValueError(
            f"name what to build first, such as: python -m data_builders.build {next(iter(TASKS))} --output-dir D"
        )
    task = argv.pop(0)
    if task not in TASKS:
        raise ValueError(f"task {task!r} is unknown; expected one of {', '.join(TASKS)}{did_you_mean(task, TASKS)}")
    arguments, own = parse_arguments(argv, BuildArguments, TASKS[task].arguments, description=__doc__)
    output_dir = Path(arguments.output_dir)
    described = {"seed": arguments.seed, **TASKS[task].describe(own)}
    settings = {"task": task, "builder_version": BUILDER_VERSION, **described}
    with open_run(output_dir, command="data_builders.build", settings=settings, overwrite=arguments.overwrite) as run:
        if not run.finished and not (output_dir / DATA_DIR).exists():
            with partial_directory(output_dir / DATA_DIR) as partial:
                TASKS[task].build(partial, output_dir, own, arguments.seed)
                write_manifest(partial, task, described)
        shutil.rmtree(output_dir / WORK_DIR, ignore_errors=True)
    print(f"data: {output_dir / DATA_DIR}")


if __name__ == "__main__":
    run_command(main)
