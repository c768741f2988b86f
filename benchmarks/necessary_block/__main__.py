"""The command `python -m benchmarks.necessary_block`; its arguments and steps are in `command.py`."""

from benchmarks.necessary_block.command import main
from tracking.command import run_command

if __name__ == "__main__":
    run_command(main)
