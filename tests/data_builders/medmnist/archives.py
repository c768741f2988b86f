"""Writes small files as MedMNIST publishes them: its keys, dtypes, label shapes and compression."""

from pathlib import Path
from typing import Any

import numpy as np

from data_builders.medmnist.sets import SETS, Labels

RGB_SETS = ("pathmnist", "dermamnist", "retinamnist", "bloodmnist")
"""`n_channels` 3 in `medmnist/info.py`; the other eight are grey."""


def medmnist_arrays(name: str, *, size: int = 28, per_class: int = 3, seed: int = 0) -> dict[str, np.ndarray]:
    """Returns the six arrays of a set; no two pictures are equal."""
    rng = np.random.default_rng([seed, *name.encode()])
    medical_set = SETS[name]
    num_names = len(medical_set.names)
    arrays = {}
    for split, times in (("train", 2), ("val", 1), ("test", 1)):
        num = per_class * times * num_names
        shape = (num, size, size, 3) if name in RGB_SETS else (num, size, size)
        arrays[f"{split}_images"] = rng.integers(0, 256, shape, dtype=np.uint8)
        if medical_set.labels == Labels.FINDINGS:
            labels = np.zeros((num, num_names), np.uint8)
            labels[np.arange(num), np.arange(num) % num_names] = 1
            labels[:, 0] |= rng.integers(0, 2, num, dtype=np.uint8)
            labels[:per_class] = 0
        else:
            labels = rng.permutation(np.arange(num, dtype=np.uint8) % num_names).reshape(num, 1)
        arrays[f"{split}_labels"] = labels
    return arrays


def write_medmnist(directory: Path, name: str, *, size: int = 28, stored: bool = False, **options: Any) -> Path:
    """Writes a set under its published name, deflated as the published files unless `stored`."""
    path = directory / (f"{name}.npz" if size == 28 else f"{name}_{size}.npz")
    (np.savez if stored else np.savez_compressed)(path, **medmnist_arrays(name, size=size, **options))
    return path
