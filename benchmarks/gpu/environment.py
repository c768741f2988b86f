"""Is this machine suitable for the measurements? Missing requirements are reported in one line, before measuring."""

import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.schedule import NEEDED, Step
from tracking.command import REPOSITORY_ROOT
from tracking.run import LIBRARIES, hardware

GIB = 2**30
WHEELS = "benchmarks/gpu/wheels.txt"
FACTS_TIMEOUT_S = 120


@dataclass(frozen=True, kw_only=True)
class Room:
    """Required free space, in GiB."""

    disk: float
    memory: float
    gpu: float
    """With less, the step grpo uses fewer layers, and a note is printed."""


ROOM = Room(disk=40, memory=40, gpu=70)
ROOM_TO_REHEARSE = Room(disk=1, memory=2, gpu=0)


def missing_modules(names: Iterable[str]) -> list[str]:
    """Returns the modules that cannot be found; none is imported."""
    return sorted(name for name in set(names) if importlib.util.find_spec(name) is None)


def check_modules(steps: Sequence[Step]) -> None:
    """Raises if a step would fail because of a missing package.

    Raises:
        ValueError: naming the modules, where to get them, and the steps that go without.
    """
    missing = missing_modules([*NEEDED, *(name for step in steps for name in step.needs)])
    if not missing:
        return
    without = [step.name for step in steps if not set(step.needs) & set(missing)]
    way_out = f", or --steps {' '.join(without)}" if without and not set(NEEDED) & set(missing) else ""
    raise ValueError(
        f"missing modules: {', '.join(missing)}; install them (without network as wheels: the commands stand in "
        f"{WHEELS}){way_out}"
    )


def read_facts(environment: Mapping[str, str]) -> dict[str, Any]:
    """Returns facts about torch and the GPU from a separate process, so that the GPU is free afterwards.

    Raises:
        ValueError: if torch cannot be imported or fails on the GPU.
    """
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu.environment"], cwd=REPOSITORY_ROOT, env=dict(environment),
        capture_output=True, text=True, check=False, timeout=FACTS_TIMEOUT_S,
    )  # fmt: skip
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["(nothing was said)"])[-1]
        raise ValueError(f"torch does not work here: {last}")
    facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return facts


def find_facts() -> dict[str, Any]:
    """Returns versions, and name, memory and driver of the GPU, after checking a small product."""
    import torch

    facts: dict[str, Any] = {**hardware(), "cuda": torch.version.cuda, "versions": {}}
    for name in LIBRARIES:
        try:
            facts["versions"][name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            facts["versions"][name] = None
    facts["versions"]["torch"] = torch.__version__
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        ones = torch.ones(256, 256, device="cuda", dtype=torch.bfloat16)
        assert float((ones @ ones)[0, 0]) == 256, "a product of ones is wrong on this GPU"
        facts |= {"gpu_memory_gib": total / GIB, "gpu_free_gib": free / GIB, "driver": _driver()}
        facts["gpu_capability"] = list(torch.cuda.get_device_capability())
    return facts


def _driver() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip().splitlines()[0] if done.returncode == 0 and done.stdout.strip() else None


def check_machine(facts: Mapping[str, Any], room: Room, *, work_dir: Path, rehearse: bool) -> list[str]:
    """Returns warnings.

    Raises:
        ValueError: for problems that would make steps fail.
    """
    if not rehearse and not facts["gpus"]:
        raise ValueError(
            "torch finds no GPU; look at nvidia-smi and CUDA_VISIBLE_DEVICES, or try everything out on the CPU with "
            "--rehearse"
        )
    disk = shutil.disk_usage(work_dir).free / GIB
    if disk < room.disk:
        raise ValueError(f"{work_dir} has {disk:.0f} GiB free, {room.disk:.0f} are needed; name another --work-dir")
    memory = available_memory_gib()
    if memory < room.memory:
        raise ValueError(f"{memory:.0f} GiB of memory are free, {room.memory:.0f} are needed; end other processes")
    if not rehearse and facts["gpu_free_gib"] < room.gpu:
        return [
            f"{facts['gpu_free_gib']:.0f} GiB of the GPU are free, {room.gpu:.0f} are meant: grpo takes fewer layers"
        ]
    return []


def available_memory_gib() -> float:
    """Returns the available memory."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) * 1024 / GIB


def check_writable(directory: Path) -> None:
    """Creates a folder and writes to it.

    Raises:
        ValueError: if that is not possible.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise ValueError(f"{directory} cannot be written to ({error.strerror}); name another folder") from error


def child_environment(*, rehearse: bool) -> dict[str, str]:
    """Returns the environment for child processes."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    if rehearse:
        environment |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    return environment


if __name__ == "__main__":
    print(json.dumps(find_facts()))
