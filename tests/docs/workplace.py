"""A working directory like the repository's root, with a reduced `outputs/pocket`, in which the guides' commands run.

The configurations are the shipped ones with fewer steps, prompts and pairs, so every command runs as it is written. All
commands of the study run in this process: a process of its own for each would spend most of its time importing.
"""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from tracking.command import REPOSITORY_ROOT, command_module

COPIED = ("configs", "docs")
SMALLER: dict[str, dict[str, Any]] = {
    "data": {
        "num_base": 320,
        "num_sft": 320,
        "num_rl": 48,
        "num_validation_per_ability": 4,
        "num_test_per_ability": 12,
    },
    "base": {"max_steps": 20},
    "sft": {"max_steps": 40},  # enough that some sampled replies earn more than others, so that GRPO moves weights
    "grpo": {"max_steps": 2, "save_steps": 2, "per_device_train_batch_size": 16, "logging_steps": 1},
    "samples": {"num_samples": 2},
    "pairs": {"num_pairs": 6},
    "necessity": {"num_parallel": 1, "seeds": [0, 1]},  # the pages name runs of these two
}
"""What each configuration of `configs/pocket` says in place of its own values."""


@contextmanager
def working_directory(directory: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(directory)
    try:
        yield
    finally:
        os.chdir(before)


def make_workplace(directory: Path) -> Path:
    """Writes the files that commands read from the repository's root, with smaller pocket configurations."""
    for name in COPIED:
        shutil.copytree(REPOSITORY_ROOT / name, directory / name)
    (directory / ".venv").symlink_to(Path(sys.prefix))
    for name, values in SMALLER.items():
        path = directory / "configs" / "pocket" / f"{name}.yaml"
        path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **values}))
    return directory


def run_pocket(directory: Path) -> None:
    """Runs what `make pocket` runs, command by command, in the given working directory."""
    from train.necessity import main, plan_study
    from train.planning.study import NecessityArguments

    config = Path("configs") / "pocket" / "necessity.yaml"
    with working_directory(directory):
        study = plan_study(NecessityArguments(**yaml.safe_load(config.read_text())))
        for job in study.jobs:
            _, dash_m, name, *words = job.command
            assert dash_m == "-m", job.shell
            command_module(name).main(words)
        main(["--config", str(config), "--collect", "true"])  # the tables and the report of what is there
