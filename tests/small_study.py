"""The settings of a pocket study small enough for a test, from the shipped ones.

The study starts its jobs as new processes, which the tests' own `python` makes warm (`tests/warm.py`).
"""

from pathlib import Path
from typing import Any

import yaml

from tracking.command import REPOSITORY_ROOT

ARMS = ("full", "freeze-mid")
SEEDS = (0, 1)
SMALLER: dict[str, dict[str, Any]] = {
    "data": {
        "num_base": 320, "num_sft": 320, "num_rl": 60, "num_validation_per_ability": 4, "num_test_per_ability": 12,
    },
    "init": {"num_layers": 3},
    "base": {"max_steps": 20},
    "sft": {"max_steps": 40},  # enough that some sampled replies earn more than others, so that GRPO moves weights
    "grpo": {"max_steps": 4, "save_steps": 2, "per_device_train_batch_size": 16, "logging_steps": 1},
    "eval": {"batch_size": 8},
}  # fmt: skip
"""Configuration of a stage -> what a test's study has less of."""


def write_study_settings(directory: Path, **changes: Any) -> Path:
    """Writes the settings of a small study and of its stages into a new folder; returns the study's own file."""
    directory.mkdir()
    shipped = REPOSITORY_ROOT / "configs" / "pocket"
    study = yaml.safe_load((shipped / "necessity.yaml").read_text())
    for name, values in SMALLER.items():
        path = directory / f"{name}.yaml"
        path.write_text(yaml.safe_dump({**yaml.safe_load((shipped / f"{name}.yaml").read_text()), **values}))
        study[f"{name}_config"] = str(path)
    study |= {"arms": list(ARMS), "seeds": list(SEEDS), "num_parallel": 2, "warm_start": False, **changes}
    path = directory / "necessity.yaml"
    path.write_text(yaml.safe_dump(study))
    return path
