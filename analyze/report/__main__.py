"""The command `python -m analyze.report`; its arguments and steps are in `command.py`."""

from analyze.report.command import main
from tracking.command import run_command

if __name__ == "__main__":
    run_command(main)
