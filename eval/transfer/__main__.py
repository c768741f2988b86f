"""The command `python -m eval.transfer`; its arguments and steps are in `command.py`."""

from eval.transfer.command import main
from tracking.command import run_command

if __name__ == "__main__":
    run_command(main)
