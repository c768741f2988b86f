"""The command `python -m data_builders.vocabulary`; its arguments and steps are in `command.py`."""

from data_builders.vocabulary.command import main
from tracking.command import run_command

if __name__ == "__main__":
    run_command(main)
