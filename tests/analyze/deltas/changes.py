"""Checkpoints that differ from another in a known way, and what the command makes of them."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from analyze.deltas.command import main
from models.checkpoint import open_checkpoint
from models.layout import layout_of
from models.shards import write_safetensors

Change = Callable[[str, torch.Tensor], torch.Tensor]
SPELLED = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


def rewrite(source: Path, target: Path, change: Change) -> Path:
    """Copies a checkpoint, each tensor (by its canonical name) as `change` returns it."""
    shutil.copytree(source, target)
    checkpoint = open_checkpoint(source)
    changed = {
        stored.name_on_disk: change(name, checkpoint.tensor(name)) for name, stored in checkpoint.tensors.items()
    }
    entries = [(name, SPELLED[tensor.dtype], tuple(tensor.shape)) for name, tensor in changed.items()]
    write_safetensors(
        target / "model.safetensors",
        entries,
        lambda name: changed[name].contiguous().flatten().view(torch.uint8).numpy().tobytes(),
    )
    return target


def nudge(seed: int, *, share: float = 1.0, size: float = 0.01, spare: str = "nothing", only: str = "") -> Change:
    """Adds noise to a share of the elements of the tensors whose names hold `only` and not `spare`."""
    generator = torch.Generator().manual_seed(seed)

    def change(name: str, tensor: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(tensor.shape, generator=generator) * size
        chosen = torch.rand(tensor.shape, generator=generator) < share
        if only not in name or spare in name:
            return tensor
        return torch.where(chosen, tensor.float() + noise, tensor.float()).to(tensor.dtype)

    return change


def add(deltas: dict[str, torch.Tensor]) -> Change:
    """Adds a matrix to each tensor whose name ends as said."""

    def change(name: str, tensor: torch.Tensor) -> torch.Tensor:
        own = [delta for end, delta in deltas.items() if name.endswith(end)]
        return (tensor + own[0].to(tensor.dtype)).contiguous() if own else tensor

    return change


def fp64(directory: Path, name: str) -> np.ndarray:
    return open_checkpoint(directory).tensor(name).double().numpy()


def difference(start: Path, end: Path) -> dict[str, np.ndarray]:
    """Returns end - start of every parameter."""
    return {name: fp64(end, name) - fp64(start, name) for name in layout_of(start).parameters}


def deltas(output_dir: Path, *words: object, measures: str = "energy", num_threads: int = 1) -> dict[str, pd.DataFrame]:
    """Runs the command and returns its tables by name."""
    command = [*words, "--output_dir", output_dir, "--num_threads", num_threads, "--measures", *measures.split()]
    main([str(word) for word in command])
    tables = {path.stem: pd.read_csv(path) for path in sorted(output_dir.glob("*.csv"))}
    if (output_dir / "spectra.parquet").exists():
        tables["spectra"] = pd.read_parquet(output_dir / "spectra.parquet")
    return tables
