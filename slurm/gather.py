"""How is a table made when a model is missing? Runs a command with the inputs that exist, and lists what is missing.

    python -m slurm.gather --study S --name comparison eval.compare sft=S/… full@0=S/… --baseline sft --output_dir S/…

Arguments `NAME=PATH` and `….csv` are left out if their path in the study does not exist or its command has not
finished, and so are the options that name a folder of tables (`FOLDERS`), and a `--reference` without any remaining
input. Omitted arguments are printed and written to
`S/missing/NAME.txt`, one per line, for the report; the file is empty if nothing is missing. If the set of missing
inputs differs from the last time, or an input is newer than the tables, the tables are made again.
"""

import runpy
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import Path

from tracking.command import parse_arguments, run_command
from tracking.product import write_text
from tracking.run import RUN_FILE, is_finished, read_run

REFERENCE = "--reference"
"""The optional second comparison model of eval.compare."""
FOLDERS = ("--support", "--transfer", "--tower")
"""Options of eval.claims, each with the output directory of another command."""
OUTPUT = "--output_dir"


def source_of(path: Path, study: Path) -> Path | None:
    """Returns the output directory of the study's command that wrote this path; None if there is none."""
    if path.is_relative_to(study):
        for folder in (path, *path.parents):
            if (folder / RUN_FILE).is_file():
                return folder
            if folder == study:
                break
    return None


def is_there(path: Path, study: Path) -> bool:
    """True for the output of a finished command of the study, and for any path outside of the study."""
    source = source_of(path, study)
    if source is not None:
        return is_finished(source)
    return not path.is_relative_to(study) or path.exists()


def is_outdated(command: Sequence[str], study: Path) -> bool:
    """True if an input finished after the tables were started."""
    output = output_of(command)
    if not (output / RUN_FILE).is_file():
        return False
    begun = min(attempt["start"] for attempt in read_run(output)["attempts"])
    words = [word for word in command if is_input(word)] + [
        folder for flag, folder in pairwise(command) if flag in FOLDERS
    ]
    sources = {source_of(path_of(word), study) for word in words} - {None, output}
    ends = [read_run(source)["attempts"][-1]["end"] for source in sources if source is not None]
    return any(datetime.fromisoformat(end) > datetime.fromisoformat(begun) for end in ends if end)


def is_input(word: str) -> bool:
    """True for NAME=PATH and for a CSV table."""
    return not word.startswith("-") and ("=" in word or word.endswith(".csv"))


def path_of(word: str) -> Path:
    """Returns the path of an input."""
    return Path(word.rpartition("=")[2]).absolute()


def output_of(command: Sequence[str]) -> Path:
    """Returns the output directory of a command.

    Raises:
        ValueError: if it has none.
    """
    for word, following in pairwise(command):
        if word == OUTPUT:
            return Path(following).absolute()
    raise ValueError(f"the command is {shlex.join(command)!r}; expected MODULE … {OUTPUT} DIR")


def split_inputs(command: list[str], study: Path) -> tuple[list[str], list[str]]:
    """Returns the command without missing inputs, and the missing inputs.

    Args:
        study: its folder, an absolute path.
    """
    kept: list[str] = []
    missing: list[str] = []
    for word in command:
        (missing if is_input(word) and not is_there(path_of(word), study) else kept).append(word)
    for flag, folder in [pair for pair in pairwise(kept) if pair[0] in FOLDERS]:
        if not is_there(path_of(folder), study):
            missing.append(f"{flag.removeprefix('--')}={folder}")
            place = kept.index(flag)
            del kept[place : place + 2]
    if REFERENCE in kept[:-1]:
        place = kept.index(REFERENCE)
        if kept[place + 1] not in {name_of(word) for word in kept if "=" in word}:
            missing.append(" ".join(kept[place : place + 2]))
            del kept[place : place + 2]
    return kept, missing


def name_of(word: str) -> str:
    """Returns NAME of NAME=PATH or NAME@SEED=PATH."""
    return word.partition("=")[0].partition("@")[0]


@dataclass(frozen=True, kw_only=True)
class GatherArguments:
    """The command that combines outputs of the study."""

    study: str = field(metadata={"help": "folder of the study"})
    name: str = field(metadata={"help": "name of this job in the list of what is missing"})
    command: list[str] = field(
        default_factory=list,
        metadata={
            "help": "the command to run: module and arguments, including --output_dir",
            "positional": "rest",
            "metavar": "COMMAND",
        },
    )


def main(argv: list[str] | None = None) -> None:
    (arguments,) = parse_arguments(argv, GatherArguments, description=__doc__)
    study = Path(arguments.study).absolute()
    if not study.is_dir():
        raise ValueError(f"--study {study} does not exist; expected the folder of a study")
    output_of(arguments.command)
    command, missing = split_inputs(arguments.command, study)
    listed = study / "missing" / f"{arguments.name}.txt"
    text = "".join(f"{word}\n" for word in missing)
    changed = listed.is_file() and listed.read_text(encoding="utf-8") != text
    write_text(listed, text)
    for word in missing:
        print(f"missing, and left out: {word}", flush=True)
    if changed or is_outdated(command, study):
        command.append("--overwrite")
    sys.argv = list(command)
    runpy.run_module(command[0], run_name="__main__", alter_sys=True)  # in this process, whose libraries it can use


if __name__ == "__main__":
    run_command(main)
