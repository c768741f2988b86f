"""Is a necessary block found, and no other? The positive control of the freezing experiment (`necessary_block`).

Each of `early`, `mid` and `late` is made necessary in a study of its own. It runs in DIR/necessity and takes longer
than all other instruments together.
"""

from dataclasses import replace
from pathlib import Path

from benchmarks.known_answers.answers import Answer, read_answers
from benchmarks.known_answers.workplace import Workplace

NAME = "necessity"
COMMAND = "benchmarks.necessary_block"


def measure(work: Workplace) -> list[Answer]:
    """Runs the studies and returns what they found; the splits of A against A are among them.

    Raises:
        RuntimeError: if a study fails before it has answers, for example because a frozen tensor changed.
    """
    directory = work.directory / NAME
    table = directory / "answers.csv"
    try:
        work.run(COMMAND, "--seed", str(work.seed), "--output-dir", directory)
    except RuntimeError:
        if not table.is_file():
            raise
    return read_control(table)


def read_control(path: Path) -> list[Answer]:
    """Returns the rows of the positive control's `answers.csv` as answers of this instrument."""
    return [
        replace(answer, instrument=NAME, case=answer.case if answer.instrument == NAME else answer.instrument)
        for answer in read_answers(path)
    ]
