"""Do the repository's GPU tests pass? Runs pytest in a separate process and records each result immediately.

Also a plugin of pytest (`-p benchmarks.gpu.testing`) that writes a line per test to the file named by the environment
variable `GPU_TEST_RESULTS`.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.records import Figures
from benchmarks.gpu.shapes import Shapes
from tracking.command import REPOSITORY_ROOT

RESULTS = "GPU_TEST_RESULTS"
MARK = "pytest.mark.gpu"
MODES = "tests/train/test_modes.py"
"""Trains in every mode and takes minutes, so it is a separate step."""
REHEARSED = "batches_are_halved"
"""Tests run in the rehearsal instead of the GPU tests, whose files are only imported."""
MAX_CHARACTERS = 4000
"""Length kept from the end of a failure."""


def pytest_runtest_logreport(report: Any) -> None:
    """Records a test's result: of its call, or of its set-up if that failed."""
    if report.when == "call" or not report.passed:
        outcome = report.outcome if report.when == "call" or report.skipped else "error"
        row = {"test": report.nodeid, "outcome": outcome, "seconds": round(report.duration, 3)}
        if not report.passed:
            row["message"] = report.longreprtext[-MAX_CHARACTERS:] if not report.skipped else str(report.longrepr[-1])
        _append(row)


def pytest_collectreport(report: Any) -> None:
    """Records a file that cannot be collected."""
    if report.failed:
        _append({"test": report.nodeid, "outcome": "error", "message": report.longreprtext[-MAX_CHARACTERS:]})


def _append(row: dict[str, Any]) -> None:
    with Path(os.environ[RESULTS]).open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def marked_files() -> list[str]:
    """Returns the test files with GPU tests."""
    tests = REPOSITORY_ROOT / "tests"
    found = [path for path in tests.rglob("test_*.py") if MARK in path.read_text(encoding="utf-8")]
    return sorted(path.relative_to(REPOSITORY_ROOT).as_posix() for path in found)


def run_pytest(figures: Figures, files: Sequence[str], chosen: Sequence[str], work_dir: Path) -> None:
    """Runs the selected tests of some files and records every result while they run.

    Raises:
        RuntimeError: if a test fails, or none was found.
    """
    results = work_dir / "results.jsonl"
    results.write_text("")
    command = [
        sys.executable, "-m", "pytest", *files, *chosen, "-p", "benchmarks.gpu.testing", "-p", "no:cacheprovider",
        "-q", "--basetemp", str(work_dir / "pytest"),
    ]  # fmt: skip
    paths = [str(REPOSITORY_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, RESULTS: str(results), "PYTHONPATH": os.pathsep.join(paths)}
    figures.note(command=["python", *command[1:-2]])
    process = subprocess.Popen(command, cwd=REPOSITORY_ROOT, env=environment, stdout=sys.stderr)
    num_noted = 0
    while True:
        try:
            status: int | None = process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            status = None
        rows = [json.loads(line) for line in results.read_text().splitlines(keepends=True) if line.endswith("\n")]
        if len(rows) > num_noted or status is not None:
            num_noted = len(rows)
            figures.note(**count(rows), tests=rows)
        if status is not None:
            break
    found = count(rows)
    if found["num_failed"] or found["num_errors"] or status:
        failed = [row["test"] for row in rows if row["outcome"] in ("failed", "error")]
        raise RuntimeError(f"pytest ended with exit status {status}; not passed: {', '.join(failed) or 'see the log'}")


def count(rows: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Returns how many tests had each outcome."""
    outcomes = {"passed": "num_passed", "failed": "num_failed", "error": "num_errors", "skipped": "num_skipped"}
    return {name: sum(row["outcome"] == outcome for row in rows) for outcome, name in outcomes.items()}


def run(figures: Figures, shapes: Shapes, work_dir: Path) -> None:
    """The step `tests`."""
    files = [file for file in marked_files() if file != MODES]
    figures.note(files=files)
    run_pytest(figures, files, chosen_for(shapes, REHEARSED), work_dir)


def run_modes(figures: Figures, shapes: Shapes, work_dir: Path) -> None:
    """The step `modes`."""
    figures.note(files=[MODES])
    run_pytest(figures, [MODES], chosen_for(shapes, "every_pair_of_factors"), work_dir)


def chosen_for(shapes: Shapes, rehearsed: str) -> list[str]:
    """Returns the flags that select the tests."""
    return ["-m", "gpu"] if shapes.device == "cuda" else ["-m", "not gpu and not slow", "-k", rehearsed]
