"""Builds a data set from a seed: the same arguments give byte-identical files.

python -m data_builders.build pocket --seed 0 --output-dir outputs/pocket/data
"""

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data_builders.pocket import PocketSizes, build_pocket_world
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


def build_pocket(directory: Path, sizes: Any, seed: int) -> None:
    build_pocket_world(directory, sizes=sizes, seed=seed)


TASKS: dict[str, tuple[type, Callable[[Path, Any, int], None]]] = {"pocket": (PocketSizes, build_pocket)}
"""Task -> its own arguments, its builder."""


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
    sizes_class, build = TASKS[task]
    arguments, sizes = parse_arguments(argv, BuildArguments, sizes_class, description=__doc__)
    output_dir = Path(arguments.output_dir)
    settings = {"task": task, "builder_version": BUILDER_VERSION, "seed": arguments.seed, **asdict(sizes)}
    with open_run(output_dir, command="data_builders.build", settings=settings, overwrite=arguments.overwrite) as run:
        if not run.finished and not (output_dir / DATA_DIR).exists():
            with partial_directory(output_dir / DATA_DIR) as partial:
                build(partial, sizes, arguments.seed)
                write_manifest(partial, task, {"seed": arguments.seed, **asdict(sizes)})
    print(f"data: {output_dir / DATA_DIR}")


if __name__ == "__main__":
    run_command(main)
