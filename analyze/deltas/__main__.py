"""The command `python -m analyze.deltas`; its arguments and steps are in `command.py`."""

from analyze.deltas.command import main
from tracking.command import run_command

if __name__ == "__main__":
    run_command(main)
