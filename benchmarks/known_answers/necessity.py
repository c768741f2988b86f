"""Is a necessary block found, and no other? The positive control of the freezing experiment (`necessary_block`).

Each of `early`, `mid` and `late` is made necessary in a study of its own. It runs in DIR/necessity and takes longer
than all other instruments together.
"""

from pathlib import Path

from benchmarks.known_answers.answers import FOUND, Answer
from benchmarks.known_answers.workplace import Workplace
from tracking.tables import read_table

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
    return read_answers(table)


def read_answers(path: Path) -> list[Answer]:
    """Returns the rows of the positive control's `answers.csv`."""
    rows = read_table(path).to_dict("records")
    return [
        Answer(
            instrument=NAME,
            case=str(row["case"]) if row["instrument"] == NAME else str(row["instrument"]),
            quantity=str(row["quantity"]),
            place=str(row["place"]),
            truth=float(row["truth"]),
            estimate=float(row["estimate"]),
            low=float(row["low"]),
            high=float(row["high"]),
            is_right=row["verdict"] == FOUND,
        )
        for row in rows
    ]
