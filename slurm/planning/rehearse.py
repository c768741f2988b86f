"""Are the settings of the study's commands valid? Checked when the study is planned, not days later.

In a separate process (`slurm/` uses the other packages only by command line), every command parses its arguments as in
the real run and is stopped there. Training is not included: `train.plan` has already read its settings.
"""

import json
import sys
from collections.abc import Sequence

from slurm.planning.study import StudyJob, run_module
from tracking.command import ArgumentsTaken, arguments_only, command_module, run_command

ASKED = (
    "data_builders.build", "data_builders.pocket_descriptions", "eval.run", "analyze.swap", "analyze.skip",
    "analyze.attention", "analyze.deltas", "merge.all", "eval.tower",
)  # fmt: skip
"""Modules that parse their arguments first."""


def check_settings(jobs: Sequence[StudyJob]) -> None:
    """Rejects a study if a command does not accept its settings.

    Raises:
        ValueError: with the command's message.
    """
    commands: dict[tuple[str, ...], tuple[str, ...]] = {}
    for job in jobs:
        command = gathered(job.command)
        if command[0] in ASKED:
            same = (job.kind, *command[:2], *job.words_after("--config"))
            commands.setdefault(same, (job.name, *command))
    run_module("slurm.planning.rehearse", stdin=json.dumps(list(commands.values())), said_by="a job of the study")


def gathered(command: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the command wrapped by slurm.gather."""
    return command[command.index("--name") + 2 :] if command[0] == "slurm.gather" else command


def main() -> None:
    """Reads JSON from standard input: job name, module and arguments of each command."""
    for name, module, *words in json.load(sys.stdin):
        try:
            with arguments_only():
                command_module(module).main(words)
        except ArgumentsTaken:
            continue
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        raise AssertionError(f"{module} did not read its arguments")


if __name__ == "__main__":
    run_command(main)
