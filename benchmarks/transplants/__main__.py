"""The command `python -m benchmarks.transplants`; its arguments and steps are in `command.py`."""

from benchmarks.transplants.command import main
from tracking.command import run_command

if __name__ == "__main__":
    run_command(main)
