"""The command `python -m benchmarks.calibration`; its arguments and steps are in `command.py`."""

from benchmarks.calibration.command import main
from tracking.command import run_command

if __name__ == "__main__":
    run_command(main)
