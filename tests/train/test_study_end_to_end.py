"""A shortened pocket study through every stage, undisturbed and killed in each of them."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from tests.small_study import ARMS, SEEDS
from tracking.command import REPOSITORY_ROOT

pytestmark = pytest.mark.slow

TABLES = ("scores.csv", "comparison.csv", "deltas/layers.csv", "deltas/blocks.csv")
KILL_POINTS: dict[str, Callable[[Path], bool]] = {
    "data": lambda study: is_running(study / "data"),
    "init": lambda study: is_running(study / "init"),
    "base": lambda study: is_running(study / "base"),
    "sft": lambda study: is_running(study / "sft"),
    "an arm, at its beginning": lambda study: is_running(study / "arms" / "full-seed0"),
    "an arm, after its first checkpoint": lambda study: has_bytes(study / "arms" / "full-seed0" / "proofs.jsonl"),
    "an evaluation, at its beginning": lambda study: is_running(study / "eval" / "sft"),
    "an evaluation, after its first answers": lambda study: has_bytes(study / "eval" / "sft" / "records.jsonl"),
    "the deltas": lambda study: is_running(study / "deltas"),
    "the comparison": lambda study: is_running(study / "comparison"),
    "the report": lambda study: has_bytes(study / "figures" / "gains.png"),
}
"""Stage -> whether a study has come to it."""


def start_study(python: Path, config: Path, output_dir: Path) -> "subprocess.Popen[str]":
    command = [python, "-m", "train.necessity", "--config", config, "--output_dir", output_dir]
    return subprocess.Popen(command, cwd=REPOSITORY_ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish_study(python: Path, config: Path, output_dir: Path) -> str:
    process = start_study(python, config, output_dir)
    output, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors
    return output


def kill_when(python: Path, config: Path, output_dir: Path, reached: Callable[[Path], bool]) -> None:
    """Starts the study and sends SIGKILL to its own process, as soon as it has begun and come to a point."""
    before = num_attempts(output_dir)
    process = start_study(python, config, output_dir)
    deadline = time.monotonic() + 300
    while num_attempts(output_dir) == before or running_pid(output_dir) is None or not reached(output_dir):
        assert process.poll() is None, f"the study ended before it was killed: {process.communicate()}"
        assert time.monotonic() < deadline, "the study never reached the point where it was to be killed"
        time.sleep(0.01)
    study = running_pid(output_dir)
    assert study is not None
    os.kill(study, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def num_attempts(directory: Path) -> int:
    try:
        return len(json.loads((directory / "run.json").read_text())["attempts"])
    except (OSError, json.JSONDecodeError):
        return 0


def is_running(directory: Path) -> bool:
    """True where a command is at work in this directory now, not only in an attempt that was killed."""
    pid = running_pid(directory)
    return pid is not None and is_alive(pid)


def running_pid(directory: Path) -> int | None:
    """Returns the process of the last attempt, where `run.json` says that it runs."""
    try:
        state = json.loads((directory / "run.json").read_text())
    except (OSError, json.JSONDecodeError):
        return None
    return int(state["attempts"][-1]["pid"]) if state["status"] == "running" else None


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def has_bytes(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


@pytest.fixture(scope="module")
def config(pocket_study: Path) -> Path:
    return pocket_study.parent / "settings" / "necessity.yaml"


@pytest.fixture(scope="module")
def undisturbed(pocket_study: Path) -> Path:
    """A study that ran from beginning to end."""
    return pocket_study


def test_every_arm_and_seed_is_proved_frozen_in_every_saved_checkpoint(undisturbed: Path) -> None:
    for arm in ARMS:
        for seed in SEEDS:
            report = json.loads((undisturbed / "arms" / f"{arm}-seed{seed}" / "freeze_report.json").read_text())
            assert report["checkpoints"] == ["checkpoint-2", "checkpoint-4", "final"]
            assert report["num_breaches"] == 0
            frozen = [tensor for tensor in report["tensors"] if tensor["frozen"]]
            assert len(frozen) == (0 if arm == "full" else 12)
            assert all(tensor["sha256_start"] == tensor["sha256_end"] for tensor in frozen)
            assert all(tensor["num_changed"] > 0 for tensor in report["tensors"] if not tensor["frozen"])


def test_tables_hold_every_model_seed_and_ability_on_identical_samples(undisturbed: Path) -> None:
    scores = pd.read_csv(undisturbed / "scores.csv")
    assert len(scores) == 3 * (2 + len(ARMS) * len(SEEDS))
    assert set(scores["n"] + scores["num_unscored"]) == {12}
    comparison = pd.read_csv(undisturbed / "comparison.csv")
    assert set(comparison["against"]) == {"sft", "full"}
    assert {"pooled", "0", "1"} == set(comparison["seed"].dropna().astype(str)) - {"nan"}


def test_a_frozen_block_has_a_delta_of_exactly_zero(undisturbed: Path) -> None:
    blocks = pd.read_csv(undisturbed / "deltas" / "blocks.csv")
    frozen = blocks[(blocks["phase"] == "freeze-mid") & (blocks["block"] == "mid")]
    assert list(frozen["energy"]) == [0.0, 0.0]
    assert (blocks[blocks["phase"] == "full"]["energy"] > 0).all()


def test_report_is_one_file_with_every_arm_and_figure(undisturbed: Path) -> None:
    page = (undisturbed / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 4
    assert 'src="http' not in page and 'href="http' not in page
    for arm in ARMS:
        assert arm in page


def test_the_same_command_on_a_finished_study_does_nothing(warm_python: Path, config: Path, undisturbed: Path) -> None:
    before = {
        path: path.stat().st_mtime_ns for path in undisturbed.rglob("*") if path.is_file() and path.name != ".lock"
    }
    finish_study(warm_python, config, undisturbed)
    after = {
        path: path.stat().st_mtime_ns for path in undisturbed.rglob("*") if path.is_file() and path.name != ".lock"
    }
    assert after == before


def test_killed_in_every_stage_it_ends_with_the_tables_of_an_undisturbed_study(
    warm_python: Path, config: Path, undisturbed: Path, tmp_path: Path
) -> None:
    output_dir = tmp_path / "killed"
    for reached in KILL_POINTS.values():
        kill_when(warm_python, config, output_dir, reached)
    finish_study(warm_python, config, output_dir)
    for table in TABLES:
        assert (output_dir / table).read_bytes() == (undisturbed / table).read_bytes(), table
    for arm in ARMS:
        for seed in SEEDS:
            name = Path("arms") / f"{arm}-seed{seed}"
            ours, theirs = (
                json.loads((top / name / "freeze_report.json").read_text()) for top in (output_dir, undisturbed)
            )
            assert ours["tensors"] == theirs["tensors"]
    attempts = json.loads((output_dir / "run.json").read_text())["attempts"]
    assert len(attempts) == len(KILL_POINTS) + 1


def test_children_do_not_outlive_a_killed_study(config: Path, tmp_path: Path) -> None:
    output_dir = tmp_path / "orphans"
    kill_when(Path(sys.executable), config, output_dir, KILL_POINTS["init"])
    child = running_pid(output_dir / "init")
    assert child is not None
    deadline = time.monotonic() + 10
    while is_alive(child):
        assert time.monotonic() < deadline, f"process {child} still runs after its study was killed"
        time.sleep(0.05)
