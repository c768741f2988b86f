"""The command `python -m benchmarks.necessary_layer`; its arguments and steps are in `command.py`."""

from benchmarks.necessary_layer.command import main
from tracking.command import run_command

if __name__ == "__main__":
    run_command(main)
