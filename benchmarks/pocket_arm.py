"""What does one arm of the pocket study cost? CPU time of this version against another checkout's, taken in turn.

    python -m benchmarks.pocket_arm --baseline-repo ../at-054f436 --study outputs/pocket

`--baseline-repo` is a checkout of the version to compare with, such as `git worktree add ../at-054f436 054f436`.
`--study` is a finished pocket study (`make pocket`), whose SFT checkpoint and prompts both versions get. Every round
runs the arm once with each version, in alternating order, as the study starts it: one thread, the baseline as a new
process, this version as a fork of a warm one. The imports of the warm process are paid once per study; they are listed
apart. CPU time is that of the arm and all its children, user and system. Ratios are taken within a round; their median
is given with a 95 % bootstrap interval. The largest differences between the two versions' `metrics.csv` are listed too.

Writes `benchmarks/results/pocket_arm.json`.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.freeze_cost import ratio
from data_builders.build import DATA_DIR
from tracking.command import REPOSITORY_ROOT, run_command
from tracking.jobs.starting import WarmProcess
from tracking.product import write_text
from tracking.run import git_state, hardware, read_run
from tracking.tables import read_table
from train import FINAL_DIR

RESULT = REPOSITORY_ROOT / "benchmarks" / "results" / "pocket_arm.json"
CONFIG = "configs/pocket/grpo.yaml"
NUM_ROUNDS = 5
BASELINE, OURS = "baseline", "ours"
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
"""As `make pocket` sets it with two jobs on two cores."""
POLL_S = 0.1
COMPARED = ("loss", "grad_norm", "reward", "entropy", "completions/mean_length")
"""Columns of `metrics.csv` whose differences are listed."""


class Arms:
    """Starts the arm with either version and measures it."""

    def __init__(self, study: Path, baseline: Path, freeze: list[str], scratch: Path) -> None:
        self._study, self._baseline, self._freeze, self._scratch = study, baseline, freeze, scratch
        self._environment = {**os.environ, **ONE_THREAD}
        self._environment.pop("PYTHONDONTWRITEBYTECODE", None)
        self.warm = WarmProcess(self._environment, scratch / "warm.log")
        while not self.warm.is_ready():
            if self.warm.has_ended:
                raise RuntimeError(f"the warm process did not start:\n{(scratch / 'warm.log').read_text()[-2000:]}")
            time.sleep(POLL_S)

    def words(self, directory: Path) -> list[str]:
        """Returns the arm's command line."""
        frozen = ["--freeze", *self._freeze] if self._freeze else []
        return [
            *("train.grpo", "--config", CONFIG),
            *("--model_name_or_path", str(self._study / "sft" / FINAL_DIR)),
            *("--prompts", str(self._study / "data" / DATA_DIR)),
            *("--seed", "0", "--partition", "thirds", *frozen, "--output_dir", str(directory)),
        ]

    def run(self, contender: str) -> dict[str, float]:
        """Runs the arm once and returns its CPU seconds and its duration."""
        directory, log_path = self._scratch / contender, self._scratch / f"{contender}.log"
        shutil.rmtree(directory, ignore_errors=True)
        words = self.words(directory)
        begin = time.monotonic()
        with log_path.open("wb") as log:
            if contender == OURS:
                forked = self.warm.fork(words, log)
                if forked is None:
                    raise RuntimeError("the warm process could not fork")
                pid = forked.pid
            else:
                pid = subprocess.Popen(
                    [sys.executable, "-m", *words], cwd=self._baseline, env=self._environment, stdout=log, stderr=log
                ).pid
            _, status, usage = os.wait4(pid, 0)
        wall_s = time.monotonic() - begin
        if status:
            raise RuntimeError(f"{contender} failed, status {status}:\n{log_path.read_text()[-2000:]}")
        return {"cpu_s": round(usage.ru_utime + usage.ru_stime, 2), "wall_s": round(wall_s, 2)}

    def differences(self) -> dict[str, float]:
        """Returns the largest difference of the logged numbers between the last runs of the two versions, by column."""
        ours, theirs = (read_table(self._scratch / name / "metrics.csv") for name in (OURS, BASELINE))
        return {column: float((ours[column] - theirs[column]).abs().max()) for column in COMPARED}


def end_warm(arms: Arms) -> float:
    """Ends the warm process and returns its CPU seconds: the imports."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    arms.warm.end()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(arms: Arms, num_rounds: int) -> dict[str, Any]:
    """Runs both versions in turn and returns the medians and the ratio."""
    measured: dict[str, list[dict[str, float]]] = {BASELINE: [], OURS: []}
    for number in range(num_rounds):
        for contender in (BASELINE, OURS) if number % 2 == 0 else (OURS, BASELINE):
            found = arms.run(contender)
            measured[contender].append(found)
            print(f"round {number + 1}, {contender}: {found['cpu_s']:.1f} s of CPU time", flush=True)
    cpu_s = {contender: [run["cpu_s"] for run in runs] for contender, runs in measured.items()}
    return {
        "num_rounds": num_rounds,
        "cpu_s": {contender: round(float(np.median(values)), 2) for contender, values in cpu_s.items()},
        "ratio": ratio(cpu_s[OURS], cpu_s[BASELINE]),
        "largest_difference": arms.differences(),
        "runs": measured,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--baseline-repo", type=Path, required=True, help="checkout of the version to compare with")
    parser.add_argument("--study", type=Path, default=Path("outputs/pocket"), help="folder of a finished pocket study")
    parser.add_argument("--freeze", nargs="*", default=[], help="block expressions that the arm freezes")
    parser.add_argument("--num-rounds", type=int, default=NUM_ROUNDS, help="runs of each version")
    parser.add_argument("--result", type=Path, default=RESULT, help="JSON file to write")
    arguments = parser.parse_args()
    study, baseline = arguments.study.resolve(), arguments.baseline_repo.resolve()
    for path in (study / "sft" / FINAL_DIR, study / "data" / DATA_DIR, baseline / CONFIG):
        if not path.exists():
            raise ValueError(f"{path} does not exist; expected a finished pocket study and a checkout of the suite")
    with tempfile.TemporaryDirectory() as scratch:
        arms = Arms(study, baseline, arguments.freeze, Path(scratch))
        try:
            found = measure(arms, arguments.num_rounds)
            versions = read_run(Path(scratch) / OURS)["attempts"][-1]["versions"]
        finally:
            imports_s = round(end_warm(arms), 2)
    result = {
        "command": "python -m benchmarks.pocket_arm",
        "arm": " ".join(["--freeze", *arguments.freeze]) if arguments.freeze else "full",
        "config": CONFIG,
        "git": git_state(),
        "baseline_commit": commit_of(baseline),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": hardware(),
        "versions": versions,
        **found,
        "imports_once_per_study_s": imports_s,
    }
    write_text(arguments.result, json.dumps(result, indent=1) + "\n")
    share, seconds = found["ratio"], found["cpu_s"]
    print(
        f"one arm: {seconds[OURS]:.1f} s of {seconds[BASELINE]:.1f} s of CPU time, {share['median']:.2f} "
        f"[{share['low']:.2f}, {share['high']:.2f}]; imports, once per study, {imports_s:.1f} s"
    )


def commit_of(repository: Path) -> str:
    """Returns the commit of a checkout."""
    found = subprocess.run(
        ["git", "-C", str(repository), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    )
    return found.stdout.strip()


if __name__ == "__main__":
    run_command(main)
