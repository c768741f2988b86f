"""Does `train.grpo` run from checkpoint to checkpoint, and what does vLLM change? Two steps of `only-late` at 3B.

Each run is the command itself in a separate process: loading, rollouts, training, the checkpoint and the proof of
freezing. Rollouts come from Transformers and, if it is installed, from colocated vLLM.
"""

import csv
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.records import Figures
from benchmarks.gpu.shapes import SFT, Shapes, prepare
from benchmarks.gpu.training import ARMS, fixed_length, grpo_words
from tracking.command import REPOSITORY_ROOT

ARM = "only-late"
NUM_STEPS = 2
VLLM = [
    *("--use_vllm", "true", "--vllm_mode", "colocate"),
    *("--vllm_gpu_memory_utilization", "0.3", "--vllm_max_model_length", "2048"),
    *("--vllm_importance_sampling_correction", "false"),
]
COLUMNS = ("step_time", "loss", "grad_norm", "completions/mean_length")
"""Of `metrics.csv`."""
GAPS = ("sampling/", "rollout_")
"""Prefixes of additional columns: the gap between vLLM's log-probabilities and the trainer's."""


def free_port() -> int:
    """Returns a free port.

    TRL (1.16) takes the first free one of four and binds it only after the model is loaded: two runs collide.
    """
    with socket.socket() as listener:
        listener.bind(("", 0))
        return int(listener.getsockname()[1])


def train(words: list[str], output_dir: Path) -> dict[str, Any]:
    """Runs the command and reads its output files.

    Raises:
        RuntimeError: with the end of its output, if it fails.
    """
    begin = time.perf_counter()
    command = [sys.executable, "-m", "train.grpo", *words, "--output_dir", str(output_dir), *ARMS[ARM]]
    environment = {**os.environ, "MASTER_PORT": str(free_port())}
    done = subprocess.run(
        command, cwd=REPOSITORY_ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        check=False,
    )  # fmt: skip
    seconds = time.perf_counter() - begin
    if done.returncode:
        end = "\n".join(done.stdout.splitlines()[-40:])
        raise RuntimeError(f"train.grpo ended with exit status {done.returncode}:\n{end}")
    with (output_dir / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    report = json.loads((output_dir / "freeze_report.json").read_text())
    changed = {
        state: [bool(t["num_changed"]) for t in report["tensors"] if t["frozen"] is state] for state in (True, False)
    }
    final_bytes = sum(file.stat().st_size for file in (output_dir / "final").glob("*.safetensors"))
    shutil.rmtree(output_dir)  # frees disk space
    return {
        "seconds": seconds,
        "steps": [{name: row[name] for name in row if name in COLUMNS or name.startswith(GAPS)} for row in rows],
        "num_frozen_tensors": len(changed[True]),
        "num_frozen_tensors_changed": sum(changed[True]),
        "num_trained_tensors": len(changed[False]),
        "num_trained_tensors_changed": sum(changed[False]),
        "final_gib": final_bytes / 2**30,
    }


def run(figures: Figures, shapes: Shapes, work_dir: Path) -> None:
    """The step `rollouts`."""
    figures.note(arm=ARM, **prepare(work_dir, shapes))
    words = grpo_words(shapes, work_dir / SFT, work_dir, num_steps=NUM_STEPS)
    figures.note(transformers=train([*words, *fixed_length(shapes)], work_dir / "rollouts-transformers"))
    if importlib.util.find_spec("vllm") is None:
        figures.note(vllm="skipped: vllm is not installed")
        return
    sleeps = ["--vllm_enable_sleep_mode", str(shapes.device == "cuda")]  # vLLM supports it only on GPUs
    figures.note(vllm=train([*words, *VLLM, *sleeps], work_dir / "rollouts-vllm"))
