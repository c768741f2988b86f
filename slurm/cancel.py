"""How is a study stopped? Cancels all its jobs; what they have done stays, and a launch continues it.

python -m slurm.cancel outputs/pocket_study
"""

from dataclasses import dataclass, field
from pathlib import Path

from slurm.submitting.queueing import cancel_queued, latest_launch
from tracking.command import parse_arguments, run_command


def cancel(study: Path) -> int:
    """Cancels the jobs of a study, and returns the number of queued ones.

    Raises:
        ValueError: if nothing was launched from this folder.
    """
    if latest_launch(study) is None:
        raise ValueError(f"{study} holds no launch; expected the output_dir of slurm.launch")
    return cancel_queued(study)


@dataclass(frozen=True, kw_only=True)
class CancelArguments:
    """The study to cancel."""

    study: str = field(metadata={"help": "folder of the study (its output_dir)", "positional": True})


def main(argv: list[str] | None = None) -> None:
    (arguments,) = parse_arguments(argv, CancelArguments, description=__doc__)
    number = cancel(Path(arguments.study))
    print(f"{number} jobs taken out of the queue; the same slurm.launch continues the study")


if __name__ == "__main__":
    run_command(main)
