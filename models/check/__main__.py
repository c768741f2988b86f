"""Runs `models.check.command`."""

from models.check.command import main
from tracking.command import run_command

if __name__ == "__main__":
    run_command(main)
