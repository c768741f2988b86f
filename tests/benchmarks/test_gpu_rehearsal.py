"""The whole of the GPU measurements on the CPU, undisturbed and killed."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.schedule import choose_steps
from benchmarks.gpu.training import ARMS, VISITS
from tracking.command import REPOSITORY_ROOT

pytestmark = pytest.mark.slow


def start(python: Path, output_dir: Path, *words: str) -> "subprocess.Popen[str]":
    places = ["--output-dir", str(output_dir), "--work-dir", str(output_dir.parent)]  # a killed run leaves its folder
    command = [str(python), "-m", "benchmarks.gpu", *places, "--rehearse", *words]
    return subprocess.Popen(
        command,
        cwd=REPOSITORY_ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def read(output_dir: Path, step: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((output_dir / f"gpu_{step}.json").read_text())
    return record


def test_rehearsal_goes_through_every_step_and_leaves_a_file_of_each(warm_python: Path, tmp_path: Path) -> None:
    process = start(warm_python, tmp_path / "out", "--minutes", "30")
    said, _ = process.communicate(timeout=900)
    assert process.returncode == 0, said
    steps = [step.name for step in choose_steps([])]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(f"gpu_{name}.json" for name in steps)
    records = {name: read(tmp_path / "out", name) for name in steps}
    for name, record in records.items():
        assert record["status"] == "done", (name, record)
        assert record["hardware"]["versions"]["torch"] and record["git"].keys() == {"commit", "dirty"}
        assert record["seconds"] > 0 and record["command"] and record["date"]
    figures = {name: record["figures"] for name, record in records.items()}
    assert (figures["tests"]["num_passed"], figures["tests"]["num_failed"]) == (1, 0)
    assert [row["contender"] for row in figures["grpo"]["visits"]] == list(VISITS)
    arms = {row["contender"]: row for row in figures["grpo"]["arms"]}
    assert arms.keys() == ARMS.keys()
    assert all(row["num_steps"] and row["step_s"] > row["generate_s"] > 0 for row in arms.values())
    assert arms["only-late"]["forecast_peak_bytes"] < arms["full"]["forecast_peak_bytes"]
    assert figures["attention"]["largest_difference_from_eager"] < 1e-2
    assert all(row["largest_relative_error"] < 1e-8 for row in figures["deltas"]["spectra"][:1])
    assert figures["splice"]["num_equal_replies"] == figures["splice"]["num_distinct_replies"] == 8
    assert [row["num_equal_replies"] for row in figures["probes"]["probes"]] == [8, 8]
    trained = figures["rollouts"]["transformers"]
    assert trained["num_frozen_tensors_changed"] == 0 < trained["num_trained_tensors_changed"]
    assert figures["rollouts"]["vllm"] == "skipped: vllm is not installed" or figures["rollouts"]["vllm"]["steps"]
    for row in figures["sharing"]["models"]:
        assert row["out_of_memory"] is None and row["largest_logp_difference"] < 0.1
        assert row["passes_s"].keys() == row["generate_s"].keys() == {"plain TRL", "shared prompts"}
    assert [row["contender"] for row in figures["shapes_7b"]["passes"]] == ["only-late", "full"]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, "stopped"), (signal.SIGKILL, "running")])
def test_what_was_measured_before_a_stop_is_kept(
    warm_python: Path, tmp_path: Path, number: signal.Signals, status: str
) -> None:
    cold = number == signal.SIGKILL  # a group of processes holds no fork of another's
    process = start(Path(sys.executable) if cold else warm_python, tmp_path / "out", "--steps", "deltas")
    path = tmp_path / "out" / "gpu_deltas.json"
    deadline = time.monotonic() + 300
    while not (path.is_file() and "energy_and_floor_first_s" in json.loads(path.read_text()).get("figures", {})):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    if number == signal.SIGKILL:
        subprocess.run(["kill", "-KILL", "--", f"-{process.pid}"], check=True)  # with the step's own process
    else:
        process.send_signal(number)
    process.wait(timeout=60)
    record = read(tmp_path / "out", "deltas")
    assert record["status"] == status and record["figures"]["energy_and_floor_first_s"] > 0
    assert process.returncode == {"stopped": 143, "running": -9}[status]
