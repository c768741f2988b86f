"""How is a study stopped? Cancels all its jobs; what they have done stays, and a launch continues it.

python -m slurm.cancel outputs/pocket_study
"""

import argparse
from pathlib import Path

from slurm.submitting.queueing import cancel_queued, latest_launch
from tracking.command import run_command


def cancel(study: Path) -> int:
    """Cancels the jobs of a study, and returns the number of queued ones.

    Raises:
        ValueError: if nothing was launched from this folder.
    """
    if latest_launch(study) is None:
        raise ValueError(f"{study} holds no launch; expected the output_dir of slurm.launch")
    return cancel_queued(study)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("study", type=Path, help="output_dir of the study")
    arguments = parser.parse_args(argv)
    number = cancel(arguments.study)
    print(f"{number} jobs taken out of the queue; the same slurm.launch continues the study")


if __name__ == "__main__":
    run_command(main)
