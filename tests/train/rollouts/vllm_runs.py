"""What the tests of GRPO with a real vLLM share: settings, a run in this process, and an environment for each test."""

import gc
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SETTINGS: dict[str, Any] = {
    "split": "rl", "max_steps": 2, "per_device_train_batch_size": 32, "num_generations": 4, "max_completion_length": 24,
    "temperature": 0.7, "learning_rate": 1.0e-4, "beta": 0.0, "logging_steps": 1, "save_steps": 2, "report_to": "none",
    "bf16": False, "gradient_checkpointing": False, "use_cpu": True, "seed": 3,
    "use_vllm": True, "vllm_mode": "colocate",
}  # fmt: skip

LEFT_BEHIND = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "VLLM_ENABLE_V1_MULTIPROCESSING")


def flags(start: Path, prompts: Path, output_dir: Path, **changes: Any) -> list[str]:
    values = {**SETTINGS, "model_name_or_path": start, "prompts": prompts, "output_dir": output_dir, **changes}
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """TRL and vLLM leave variables behind: a launcher's, and that engines have no processes of their own.

    The engines of all tests of this file live in one process: each has a small cache, and goes with its trainer.
    """
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    for name in LEFT_BEHIND:
        monkeypatch.delenv(name, raising=False)
    yield
    for name in LEFT_BEHIND:
        os.environ.pop(name, None)


def train(*argv: str) -> None:
    from train.grpo import main

    try:
        main(list(argv))
    finally:
        gc.collect()


def record(directory: Path) -> Any:
    return json.loads((directory / "final" / "rollout.json").read_text())
