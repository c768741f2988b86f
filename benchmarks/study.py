"""How long does the whole pocket study take, and how much memory? Runs it from the start and writes the figures.

    python -m benchmarks.study

Writes `benchmarks/results/study.json`: commit, command, hardware, seconds in all and per kind of job, CPU seconds and
peak memory of all its processes together, and the verdicts on the paper's statements. The time is that of `make study`
once set up.
"""

import json
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.pocket import MemoryWatch, cpu_seconds, table_rows
from benchmarks.pocket import main as run_benchmark
from tracking.command import REPOSITORY_ROOT, run_command
from tracking.run import RUN_FILE, git_state, hardware, read_run

RESULT = REPOSITORY_ROOT / "benchmarks" / "results" / "study.json"
CONFIG = "configs/pocket/study.yaml"


def seconds_per_kind(study: Path) -> dict[str, float]:
    """Returns the time that jobs of each kind worked, one after the other, as their `run.json` says."""
    total: dict[str, float] = {}
    for job in json.loads((study / "plan.json").read_text(encoding="utf-8"))["jobs"]:
        if (Path(job["output_dir"]) / RUN_FILE).is_file() and job["kind"] != "necessity":
            for attempt in read_run(Path(job["output_dir"]))["attempts"]:
                start, end = (datetime.fromisoformat(attempt[name]) for name in ("start", "end"))
                total[job["kind"]] = total.get(job["kind"], 0.0) + (end - start).total_seconds()
    return total


def measure(config: str, output_dir: Path) -> dict[str, Any]:
    """Runs a study from nothing and returns what is published of it.

    Raises:
        ValueError: where the folder is there already.
    """
    if output_dir.exists():
        raise ValueError(f"{output_dir} exists; remove it, or name another --output-dir")
    command = ["python", "-m", "slurm.launch", "--config", config, "--local"]
    begin, cpu_begin_s = time.monotonic(), cpu_seconds()
    process = subprocess.Popen([sys.executable, *command[1:], "--output-dir", str(output_dir)], cwd=REPOSITORY_ROOT)
    watch = MemoryWatch(process.pid)
    if process.wait():
        raise RuntimeError(f"{' '.join(command)} failed with exit status {process.returncode}")
    seconds = time.monotonic() - begin
    run = read_run(output_dir / "necessity")["attempts"][-1]
    return {
        "command": " ".join(command),
        "git": git_state(),
        "date": run["start"],
        "hardware": hardware(),
        "versions": run["versions"],
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds() - cpu_begin_s, 1),
        "peak_memory_gib": round(watch.peak_bytes / 2**30, 2),
        "num_jobs": len(json.loads((output_dir / "plan.json").read_text(encoding="utf-8"))["jobs"]),
        "seconds_per_kind": seconds_per_kind(output_dir),
        "statements": table_rows(output_dir / "claims" / "statements.csv"),
    }


def main() -> None:
    run_benchmark(measure, config=CONFIG, output_dir="outputs/benchmark_study", result=RESULT, description=__doc__)


if __name__ == "__main__":
    run_command(main)
