"""The command `python -m benchmarks.graders`; its arguments and steps are in `command.py`."""

from benchmarks.graders.command import main
from tracking.command import run_command

if __name__ == "__main__":
    run_command(main)
