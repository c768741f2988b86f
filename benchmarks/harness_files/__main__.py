"""The command `python -m benchmarks.harness_files`; its arguments and steps are in `command.py`."""

from benchmarks.harness_files.command import main
from tracking.command import run_command

if __name__ == "__main__":
    run_command(main)
