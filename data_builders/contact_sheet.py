"""What do the pairs of a set look like? Draws targets and sources side by side, with prompt and answers below.

    python -m data_builders.contact_sheet FOLDER --rows 1 --output F.png

FOLDER is a pair set: the folder with pairs.jsonl.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data_builders.pairs.files import check_pairs, find_set, read_pairs
from data_builders.pairs.sheet import COLUMNS, draw_sheet
from tracking.command import check_least, parse_arguments, run_command
from tracking.product import check_output_file, partial_file


@dataclass(frozen=True, kw_only=True)
class SheetArguments:
    """The pairs to show, and their layout."""

    directory: str = field(
        metadata={"help": "a pair set: the folder with pairs.jsonl", "positional": True, "check": check_pairs}
    )
    output: str = field(metadata={"help": "PNG file to write", "check": check_output_file})
    rows: int = field(default=4, metadata={"help": "number of rows of pairs"})
    columns: int = field(default=COLUMNS, metadata={"help": "number of pairs per row"})

    def __post_init__(self) -> None:
        check_least(self, rows=1, columns=1)


def main(argv: Sequence[str] | None = None) -> None:
    (arguments,) = parse_arguments(argv, SheetArguments, description=__doc__, check_inputs=True)
    directory, output = find_set(Path(arguments.directory)), Path(arguments.output)
    pairs = read_pairs(directory)[: arguments.rows * arguments.columns]
    with partial_file(output) as partial:
        draw_sheet(directory, pairs, columns=arguments.columns).save(partial, format="PNG")
    print(f"sheet: {arguments.output}")


if __name__ == "__main__":
    run_command(main)
