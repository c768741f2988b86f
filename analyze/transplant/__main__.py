"""The command `python -m analyze.transplant`; its arguments and steps are in `command.py`."""

from analyze.transplant.command import main
from tracking.command import run_command

if __name__ == "__main__":
    run_command(main)
