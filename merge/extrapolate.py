"""What would longer training have given? A checkpoint on the line through a run's kept steps (RELEX, arXiv 2605.21468).

    python -m merge.extrapolate --trajectory outputs/arms/full-seed0 --until-step 20 --to-step 40 \\
        --output-dir outputs/extrapolated-40
    python -m eval.run --model outputs/extrapolated-40/checkpoint --tasks …

Per tensor, the changes of the observed steps have one leading direction; the coefficient along it is continued on a
least-squares line over the steps (`merge/trajectories/line.py`). If the run has kept the step that is predicted, the
command prints how far the prediction is from it, and how far the last observed step was.

OUTPUT/checkpoint/    the checkpoint, loadable
OUTPUT/lines.csv      per changed tensor: rank-1 share, R², slope, and the distance to the real step, if there is one
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from merge.restore import START_ARGUMENT, TRAJECTORY_ARGUMENT, check_place, write_weights
from merge.splice import CHECKPOINT_DIR
from merge.trajectories.extrapolated import ExtrapolatedCheckpoint, Miss, extrapolate, misses
from merge.trajectories.restored import Trajectory, open_trajectory
from tracking.command import parse_arguments, run_command
from tracking.run import OVERWRITE_ARGUMENT, open_run
from tracking.tables import write_table

COMMAND = "merge.extrapolate"
LINES_FILE = "lines.csv"
ALL = "all"


@dataclass(frozen=True, kw_only=True)
class ExtrapolateArguments:
    """Which steps are observed, and which one is predicted."""

    trajectory: str = field(metadata=TRAJECTORY_ARGUMENT)
    to_step: int = field(metadata={"help": "the optimizer step to predict; before, between or after the observed ones"})
    output_dir: str = field(
        metadata={"help": "output directory; the checkpoint is written to its subfolder checkpoint/"}
    )
    until_step: int | None = field(
        default=None, metadata={"help": "observe only the kept steps up to this one; by default all"}
    )
    start: str | None = field(default=None, metadata=START_ARGUMENT)
    overwrite: bool = field(default=False, metadata=OVERWRITE_ARGUMENT)


def predict(trajectory: Trajectory, *, to_step: int, until_step: int | None) -> ExtrapolatedCheckpoint:
    """Returns the predicted checkpoint, computed lazily.

    Raises:
        ValueError: if fewer than two kept steps are observed.
    """
    observed = [step for step in trajectory.numbers if until_step is None or step <= until_step]
    if len(observed) < 2:
        raise ValueError(
            f"{trajectory.directory} has kept {len(observed)} steps up to step {until_step}; a line needs at least two "
            f"(kept are {', '.join(map(str, trajectory.numbers))})"
        )
    return extrapolate(trajectory.start, [trajectory.at(step) for step in observed], to_step)


def write_extrapolated(
    trajectory: Trajectory, predicted: ExtrapolatedCheckpoint, directory: Path, *, overwrite: bool = False
) -> Miss | None:
    """Writes the checkpoint and `lines.csv` into a run directory.

    Returns:
        The distance to the real step over all tensors, if the run has kept it and the checkpoint was written now.
    """
    import pandas as pd

    check_place(directory, trajectory)
    checkpoint = directory / CHECKPOINT_DIR
    observed = [each.record.step for each in predicted.observed]
    settings = {"to_step": predicted.step, "observed": observed, "fingerprint": predicted.fingerprint()}
    with open_run(directory, command=COMMAND, settings=settings, overwrite=overwrite) as run:
        if run.finished:
            return None
        write_weights(trajectory, predicted, checkpoint, rollout=None)  # no run wrote these weights
        found: Mapping[str, Miss] = {}
        if predicted.step in trajectory.numbers:
            found = dict(misses(predicted, trajectory.at(predicted.step)))
        rows = [
            {
                "tensor": name,
                "num_observed": len(observed),
                "rank1_share": line.rank1_share,
                "r2": line.r2,
                "slope": line.slope,
                "intercept": line.intercept,
                "predicted": line.predicted(predicted.step),
                **_distance(found.get(name)),
            }
            for name, line in predicted.lines.items()
        ]
        write_table(directory / LINES_FILE, pd.DataFrame(rows))
    return found.get(ALL)


def _distance(miss: Miss | None) -> dict[str, Any]:
    return asdict(miss) if miss is not None else {}


def main(argv: list[str] | None = None) -> None:
    (arguments,) = parse_arguments(argv, ExtrapolateArguments, description=__doc__, check_inputs=True)
    trajectory = open_trajectory(Path(arguments.trajectory), arguments.start)
    predicted = predict(trajectory, to_step=arguments.to_step, until_step=arguments.until_step)
    directory = Path(arguments.output_dir)
    miss = write_extrapolated(trajectory, predicted, directory, overwrite=arguments.overwrite)
    observed = [each.record.step for each in predicted.observed]
    print(f"step {predicted.step}, predicted from {len(observed)} kept steps, {observed[0]} to {observed[-1]}")
    if miss is not None:
        print(
            f"distance to the real step {predicted.step}, relative to its change: {miss.error:.3f}; of the last "
            f"observed step: {miss.last_error:.3f}; cosine of predicted and real change: {miss.cosine:.3f}"
        )
    print(f"checkpoint: {directory / CHECKPOINT_DIR}")


if __name__ == "__main__":
    run_command(main)
