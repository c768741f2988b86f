"""What was the model after a kept step of a training run? Writes the checkpoint that training would have saved there.

    python -m merge.restore --trajectory outputs/arms/full-seed0 --step 20 --output-dir outputs/step-20

RUN/trajectory/ has the changed elements of the kept steps (train.grpo, train.sft: `keep_trajectory`). The checkpoint is
the run's start with those of one step: the same files, names, dtypes and bytes as RUN/final/ would have had. The start
is compared whole with the one that the run began from, and every restored tensor with its recorded sha256, before a
file is written under its final name. The run's `rollout.json` is copied as it is; it describes the whole run.

OUTPUT/checkpoint/    the checkpoint
"""

import shutil
from dataclasses import dataclass, field
from pathlib import Path

from merge.recipes.companions import ROLLOUT_FILE
from merge.splice import CHECKPOINT_DIR, check_room
from merge.trajectories.restored import Trajectory, open_trajectory
from models.checkpoint import Checkpoint, open_checkpoint, write_like
from models.loading import check_checkpoint
from tracking.command import parse_arguments, run_command
from tracking.product import partial_directory
from tracking.run import OVERWRITE_ARGUMENT, open_run

COMMAND = "merge.restore"
TRAJECTORY_ARGUMENT = {"help": "output directory of a run of train.grpo or train.sft with keep_trajectory"}
START_ARGUMENT = {
    "help": "the checkpoint that the run began from, folder or hub id, if it is no longer where the run found it",
    "check": check_checkpoint,
}


@dataclass(frozen=True, kw_only=True)
class RestoreArguments:
    """Which step is restored, and where it is written."""

    trajectory: str = field(metadata=TRAJECTORY_ARGUMENT)
    step: int = field(metadata={"help": "the kept step, such as 20"})
    output_dir: str = field(
        metadata={"help": "output directory; the checkpoint is written to its subfolder checkpoint/"}
    )
    start: str | None = field(default=None, metadata=START_ARGUMENT)
    overwrite: bool = field(default=False, metadata=OVERWRITE_ARGUMENT)


def check_place(directory: Path, trajectory: Trajectory) -> None:
    """Rejects an output directory that would hold the run or its start, or lie inside one of them.

    Raises:
        ValueError: naming both folders.
    """
    place = directory.resolve()
    for folder in (trajectory.directory.resolve(), trajectory.start.directory.resolve()):
        if place.is_relative_to(folder) or folder.is_relative_to(place):
            raise ValueError(f"--output-dir {directory} and {folder} are nested; choose another folder")


def write_weights(trajectory: Trajectory, weights: Checkpoint, checkpoint: Path, *, rollout: Path | None) -> None:
    """Writes weights of a trajectory's model as a checkpoint with the start's files, names and dtypes.

    Args:
        weights: the tensors.
        checkpoint: the folder; what an attempt left there that was killed before it was recorded is removed.
        rollout: the `rollout.json` of the run that made them; None if there is none. The start's is left out.

    Raises:
        ValueError: if the start has changed; no checkpoint is written.
    """
    shutil.rmtree(checkpoint, ignore_errors=True)
    start = open_checkpoint(trajectory.start.directory)
    check_room(checkpoint.parent, sum(stored.num_bytes for stored in start.tensors.values()))
    trajectory.check_start()
    with partial_directory(checkpoint) as partial:
        write_like(partial, start=start, weights=weights)
        (partial / ROLLOUT_FILE).unlink(missing_ok=True)
        if rollout is not None and rollout.is_file():
            shutil.copyfile(rollout, partial / ROLLOUT_FILE)


def restore(trajectory: Trajectory, step: int, directory: Path, *, overwrite: bool = False) -> Path:
    """Writes the weights after a step into a run directory.

    Returns:
        The folder of the checkpoint.

    Raises:
        ValueError: if the step was not kept, a file is damaged, or the start has changed; no checkpoint is written.
    """
    check_place(directory, trajectory)
    restored = trajectory.at(step)
    checkpoint = directory / CHECKPOINT_DIR
    settings = {"step": step, "fingerprint": restored.fingerprint()}
    with open_run(directory, command=COMMAND, settings=settings, overwrite=overwrite) as run:
        if run.finished:
            return checkpoint
        rollout = trajectory.directory / "final" / ROLLOUT_FILE
        write_weights(trajectory, restored, checkpoint, rollout=rollout)
    return checkpoint


def main(argv: list[str] | None = None) -> None:
    (arguments,) = parse_arguments(argv, RestoreArguments, description=__doc__, check_inputs=True)
    trajectory = open_trajectory(Path(arguments.trajectory), arguments.start)
    checkpoint = restore(trajectory, arguments.step, Path(arguments.output_dir), overwrite=arguments.overwrite)
    record = trajectory.at(arguments.step).record
    print(
        f"step {record.step}: {record.num_changed:,} elements in {len(record.tensors)} tensors differ from the start; "
        "all are proved by their sha256"
    )
    print(f"checkpoint: {checkpoint}")


if __name__ == "__main__":
    run_command(main)
