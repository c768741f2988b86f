"""The command `python -m eval.tower`; its arguments and steps are in `command.py`."""

from eval.tower.command import main
from tracking.command import run_command

if __name__ == "__main__":
    run_command(main)
