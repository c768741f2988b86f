"""Runs with kept steps, made without training: from tensors given per step."""

from collections.abc import Mapping
from pathlib import Path

import torch

from merge.trajectories.store import TrajectoryWriter
from models.checkpoint import open_checkpoint
from tests.models.damage import write_tensors
from tracking.run import open_run


def keep_steps(
    folder: Path, start: dict[str, torch.Tensor], steps: Mapping[int, Mapping[str, torch.Tensor]], name: str = "run"
) -> Path:
    """Writes a start's tensors into FOLDER/start and the steps of a run into FOLDER/NAME; returns the latter.

    Tensors are named as on disk.
    """
    write_tensors(folder / "start", start)
    opened = open_checkpoint(folder / "start")
    with open_run(folder / name, command="train.grpo", settings={"start": str(folder / "start")}):
        writer = TrajectoryWriter(folder / name, opened, known={}, resume_step=0)
        for step, changed in steps.items():
            named = {opened.family.canonical(tensor): values for tensor, values in changed.items()}
            file = writer.open_step(step, named)
            for tensor, values in named.items():
                file.add(tensor, values.contiguous().flatten().view(torch.uint8).numpy().data)
            writer.close_step(file)
    return folder / name
