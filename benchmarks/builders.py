"""How fast are pairs built and validated? Pairs per second of each task, and peak memory as sets grow.

    OMP_NUM_THREADS=1 python -m benchmarks.builders
    OMP_NUM_THREADS=1 python -m benchmarks.builders --tasks ocr grounding --num-rounds 1

Every figure is that of a whole command as a person runs it, from its start to its end: `data_builders.build` with all
pictures written as PNG, the manifest and the flush to the disk, then `data_builders.validate` on what was built. Pairs
a second are pairs over those seconds, the median over rounds; `cpu_s` is the processor time that they took. The bars:
300 a second for ocr and grounding at 384 x 384 and 0.35 for counting at 480 x 320 with 36 samples a pixel, on two
cores.

Memory is that of all processes of a command together, shared pages counted once (PSS), at its peak; `memory` has it for
ocr sets of growing size. `flush_s` is the part of the largest build in which the finished folder is flushed to the
disk (`tracking/product.py`), measured apart on a copy of its files.

Writes `benchmarks/results/builders.json`.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.pocket import MemoryWatch
from tracking.command import REPOSITORY_ROOT, run_command
from tracking.product import partial_directory, write_text
from tracking.run import git_state, hardware

RESULT = REPOSITORY_ROOT / "benchmarks" / "results" / "builders.json"


class Case(NamedTuple):
    """What is built, and how many pairs a second it should be on two cores."""

    num_pairs: int
    flags: tuple[str, ...] = ()
    bar: float | None = None


CASES = {
    "ocr": Case(3000, ("--image-size", "384"), bar=300),
    "grounding": Case(3000, ("--image-size", "384"), bar=300),
    "counting": Case(16, bar=0.35),
    "recognition": Case(100),
    "pocket_pairs": Case(3000, ("--kinds", "counting", "sum", "colour", "shape", "place", "blank")),
}
MEMORY_CASE = "ocr"
MEMORY_SIZES = (100, 1000, 10_000)


def run_once(module: str, arguments: Sequence[str], *, num_workers: int) -> dict[str, float]:
    """Runs a command of this suite and measures it.

    Raises:
        RuntimeError: where it fails.
    """
    command = [sys.executable, "-m", module, *arguments, "--num-workers", str(num_workers)]
    begin, cpu_before = time.perf_counter(), _cpu_s_of_children()
    process = subprocess.Popen(command, cwd=REPOSITORY_ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    watch = MemoryWatch(process.pid)
    _, errors = process.communicate()
    seconds = time.perf_counter() - begin
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed with exit status {process.returncode}: {errors[-2000:]}")
    return {
        "seconds": round(seconds, 2),
        "cpu_s": round(_cpu_s_of_children() - cpu_before, 2),
        "peak_memory_mib": round(watch.peak_bytes / 2**20, 1),
    }


def _cpu_s_of_children() -> float:
    """Returns the processor time of all commands that have ended, their own processes included."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def build(task: str, num_pairs: int, output_dir: Path, *, num_workers: int) -> dict[str, float]:
    """Builds a set in a new folder.

    Nothing is removed before the last round: for five seconds after, ext4 looks for each new file which inodes were
    deleted recently, which took a quarter of the builders' time.
    """
    arguments = [task, *CASES[task].flags, "--num-pairs", str(num_pairs), "--output-dir", str(output_dir)]
    return run_once("data_builders.build", arguments, num_workers=num_workers)


def measure_speed(task: str, directory: Path, *, num_rounds: int, num_workers: int) -> dict[str, Any]:
    """Returns a row: how many pairs of a task are built and validated a second."""
    case = CASES[task]
    rounds: dict[str, list[dict[str, float]]] = {"build": [], "validate": []}
    for number in range(num_rounds):
        output_dir = directory / f"{task}-{number}"
        rounds["build"].append(build(task, case.num_pairs, output_dir, num_workers=num_workers))
        rounds["validate"].append(run_once("data_builders.validate", [str(output_dir)], num_workers=num_workers))
    files = [path for path in (output_dir / "data").rglob("*") if path.is_file()]
    return {
        "task": task,
        "flags": " ".join(case.flags),
        "num_pairs": case.num_pairs,
        "num_files": len(files),
        "mib": round(sum(path.stat().st_size for path in files) / 2**20, 2),
        "bar_pairs_per_s": case.bar,
        **{
            f"{name}_pairs_per_s": round(case.num_pairs / float(np.median([row["seconds"] for row in rows])), 2)
            for name, rows in rounds.items()
        },
        "rounds": rounds,
    }


def measure_memory(directory: Path, *, num_workers: int) -> list[dict[str, Any]]:
    """Returns a row a set size: peak memory while it is built and validated."""
    rows = []
    for num_pairs in MEMORY_SIZES:
        output_dir = directory / f"memory-{num_pairs}"
        built = build(MEMORY_CASE, num_pairs, output_dir, num_workers=num_workers)
        validated = run_once("data_builders.validate", [str(output_dir)], num_workers=num_workers)
        rows.append(
            {
                "task": MEMORY_CASE,
                "num_pairs": num_pairs,
                **{f"build_{name}": value for name, value in built.items()},
                **{f"validate_{name}": value for name, value in validated.items()},
            }
        )
    return rows


def measure_flush(directory: Path) -> dict[str, float]:
    """Copies the largest set and returns how long its flush to the disk takes."""
    source = directory / f"memory-{MEMORY_SIZES[-1]}" / "data"
    copy = directory / "flushed"
    with partial_directory(copy) as partial:
        shutil.copytree(source, partial, dirs_exist_ok=True)
        num_files = sum(path.is_file() for path in partial.rglob("*"))
        begin = time.perf_counter()
    return {"num_files": num_files, "flush_s": round(time.perf_counter() - begin, 2)}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output", type=Path, default=RESULT, help="JSON file to write")
    parser.add_argument("--tasks", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--num-rounds", type=int, default=3, help="number of runs of each task")
    parser.add_argument("--num-workers", type=int, default=2, help="number of processes that build, and that validate")
    parser.add_argument("--skip-memory", action="store_true", help="do not measure memory on sets of growing size")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        rows = []
        for task in arguments.tasks:
            row = measure_speed(task, directory, num_rounds=arguments.num_rounds, num_workers=arguments.num_workers)
            rows.append(row)
            bar = f" (bar {row['bar_pairs_per_s']:g})" if row["bar_pairs_per_s"] else ""
            print(f"{task}: {row['build_pairs_per_s']:g} pairs/s built{bar}, {row['validate_pairs_per_s']:g} validated")
        memory = [] if arguments.skip_memory else measure_memory(directory, num_workers=arguments.num_workers)
        flush = {} if arguments.skip_memory else measure_flush(directory)
    result = {
        "command": "python -m benchmarks.builders",
        "git": git_state(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": hardware(),
        "num_workers": arguments.num_workers,
        "rows": rows,
        "memory": memory,
        "flush": flush,
    }
    write_text(arguments.output, json.dumps(result, indent=1) + "\n")
    for row in memory:
        print(
            f"{row['num_pairs']} {row['task']} pairs: {row['build_peak_memory_mib']:.0f} MiB to build, "
            f"{row['validate_peak_memory_mib']:.0f} MiB to validate"
        )
    print(f"written: {arguments.output}")


if __name__ == "__main__":
    run_command(main)
