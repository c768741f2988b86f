"""The command `python -m data_builders.validate`; its arguments and steps are in `command.py`."""

from data_builders.validate.command import main
from tracking.command import run_command

if __name__ == "__main__":
    run_command(main)
