"""The command `python -m analyze.modalities`; its arguments and steps are in `command.py`."""

from analyze.modalities.command import main
from tracking.command import run_command

if __name__ == "__main__":
    run_command(main)
