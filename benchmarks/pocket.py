"""How long does the pocket study take, and what does it find? Runs it from the start; writes time, memory and scores.

    python -m benchmarks.pocket    (make bench)

Writes `benchmarks/results/pocket.json`: commit, command, hardware, seconds per stage, CPU seconds and peak memory of
all its processes together, the scores, the comparisons, and the variances that `eval.power` measures in them. The time
is that of `make pocket` after installation.
"""

import argparse
import json
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from eval.statistics.components import measured_variations
from eval.statistics.pairing import ACCURACY
from tracking.command import REPOSITORY_ROOT, run_command
from tracking.product import write_text
from tracking.run import git_state, hardware, read_run
from tracking.tables import read_table

RESULT = REPOSITORY_ROOT / "benchmarks" / "results" / "pocket.json"
CONFIG = "configs/pocket/necessity.yaml"
SAMPLING_INTERVAL_S = 0.5
POOLED_COLUMNS = [
    "ability", "metric", "arm", "against", "n", "num_seeds", "difference", "low", "high", "p", "p_holm", "family",
    "detectable", "equivalent_within",
    "gain_kept", "gain_kept_low", "gain_kept_high",
]  # fmt: skip


class MemoryWatch:
    """Samples the resident memory of a process and all its descendants, shared pages counted once (PSS)."""

    def __init__(self, pid: int) -> None:
        self.peak_bytes = 0
        self._root = psutil.Process(pid)
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while self._root.is_running():
            total = 0
            try:
                for process in (self._root, *self._root.children(recursive=True)):
                    total += process.memory_full_info().pss
            except psutil.Error:
                pass  # a process ended between being listed and being read
            self.peak_bytes = max(self.peak_bytes, total)
            time.sleep(SAMPLING_INTERVAL_S)


def cpu_seconds() -> float:
    """Returns the CPU time, user and system, of all processes that this one started and that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def table_rows(path: Path) -> list[dict[str, Any]]:
    """Returns a table as rows of plain values, empty cells as None."""
    rows: list[dict[str, Any]] = json.loads(read_table(path).to_json(orient="records", double_precision=6))
    return rows


def measure(config: str, output_dir: Path) -> dict[str, Any]:
    """Runs a study from nothing and returns what is published of it."""
    command = ["python", "-m", "train.necessity", "--config", config]
    begin, cpu_begin_s = time.monotonic(), cpu_seconds()
    process = subprocess.Popen(
        [sys.executable, *command[1:], "--output_dir", str(output_dir), "--overwrite"], cwd=REPOSITORY_ROOT
    )
    watch = MemoryWatch(process.pid)
    if process.wait():
        raise RuntimeError(
            f"{' '.join(command)} failed with exit status {process.returncode}; its logs are in {output_dir / 'logs'}"
        )
    seconds = time.monotonic() - begin
    run = read_run(output_dir)
    table = read_table(output_dir / "comparison.csv")
    comparison = table_rows(output_dir / "comparison.csv")
    pooled = [{key: row[key] for key in POOLED_COLUMNS} for row in comparison if row["seed"] == "pooled"]
    return {
        "command": " ".join(command),
        "git": git_state(),
        "date": run["attempts"][-1]["start"],
        "hardware": hardware(),
        "versions": run["attempts"][-1]["versions"],
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds() - cpu_begin_s, 1),
        "peak_memory_gib": round(watch.peak_bytes / 2**30, 2),
        "seconds_per_job": run["attempts"][-1]["seconds_per_job"],
        "scores": table_rows(output_dir / "scores.csv"),
        "comparison_pooled": pooled,
        "variances": [asdict(own) for own in measured_variations(table, metric=ACCURACY)],
    }


def main(
    measure: Callable[[str, Path], dict[str, Any]] = measure,
    *,
    config: str = CONFIG,
    output_dir: str = "outputs/benchmark",
    result: Path = RESULT,
    description: str | None = __doc__,
) -> None:
    """Measures what the flags say, and writes it down."""
    parser = argparse.ArgumentParser(description=(description or "").split("\n")[0])
    parser.add_argument("--config", default=config, help="YAML of the study to run")
    parser.add_argument("--output-dir", type=Path, default=Path(output_dir), help="folder of the study")
    parser.add_argument("--result", type=Path, default=result, help="JSON file to write")
    arguments = parser.parse_args()
    measured = measure(arguments.config, arguments.output_dir)
    write_text(arguments.result, json.dumps(measured, indent=1) + "\n")
    print(f"{measured['seconds']:.0f} s, {measured['peak_memory_gib']} GiB: {arguments.result}")


if __name__ == "__main__":
    run_command(main)
