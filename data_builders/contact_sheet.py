"""What do the pairs of a set look like? Draws targets and sources side by side, with prompt and answers below.

python -m data_builders.contact_sheet FOLDER --rows 1 --output F.png
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from data_builders.pairs.files import find_set, read_pairs
from data_builders.pairs.sheet import COLUMNS, draw_sheet
from tracking.command import run_command
from tracking.product import partial_file


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("directory", type=Path, help="a set of pairs")
    parser.add_argument("--rows", type=int, default=4, help="how many rows of pairs")
    parser.add_argument("--columns", type=int, default=COLUMNS, help="how many pairs stand side by side")
    parser.add_argument("--output", type=Path, required=True, help="the PNG to write")
    arguments = parser.parse_args(argv)
    if min(arguments.rows, arguments.columns) < 1:
        raise ValueError(f"--rows {arguments.rows} --columns {arguments.columns}; expected at least 1 of each")
    directory = find_set(arguments.directory)
    pairs = read_pairs(directory)[: arguments.rows * arguments.columns]
    with partial_file(arguments.output) as partial:
        draw_sheet(directory, pairs, columns=arguments.columns).save(partial, format="PNG")
    print(f"sheet: {arguments.output}")


if __name__ == "__main__":
    run_command(main)
