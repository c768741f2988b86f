"""The command `python -m benchmarks.known_answers`; its arguments and steps are in `command.py`."""

from benchmarks.known_answers.command import main
from tracking.command import run_command

if __name__ == "__main__":
    run_command(main)
