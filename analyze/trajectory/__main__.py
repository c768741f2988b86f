"""Runs `python -m analyze.trajectory`."""

from analyze.trajectory.command import main
from tracking.command import run_command

if __name__ == "__main__":
    run_command(main)
