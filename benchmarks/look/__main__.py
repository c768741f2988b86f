"""The command `python -m benchmarks.look`; its arguments and steps are in `command.py`."""

from benchmarks.look.command import main
from tracking.command import run_command

if __name__ == "__main__":
    run_command(main)
