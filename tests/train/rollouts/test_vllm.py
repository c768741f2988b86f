"""GRPO with a real vLLM in the trainer's process, on a CPU: what its engine sees, and runs that are killed.

Also the seams of TRL and vLLM: where a test fails after an upgrade, `train/rollouts/vllm.py` says what it relies on.
"""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from models.checkpoint import open_checkpoint
from models.layout import layout_of
from tests.train.rollouts.vllm_runs import environment, flags, record, train  # noqa: F401
from tracking.command import REPOSITORY_ROOT
from train.freezing.freeze import FreezeArguments, plan_freeze
from train.verify import main as verify

pytestmark = pytest.mark.vllm


def weights(directory: Path) -> dict[str, bytes]:
    checkpoint = open_checkpoint(directory)
    return {name: bytes(checkpoint.data(name)) for name in checkpoint.tensors}


@pytest.fixture(scope="module")
def whole_run(trained_pocket: Path, pocket_prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps on mixed batches with `mid` frozen, undisturbed."""
    directory = tmp_path_factory.mktemp("whole") / "run"
    train(*flags(trained_pocket, pocket_prompts, directory, freeze="mid", max_steps=6))
    return directory


def test_pictures_and_text_in_one_batch_are_seen_alike_and_the_weights_are_those_of_the_trainer(
    whole_run: Path, trained_pocket: Path
) -> None:
    """In float32 the order of sums differs, and the share of the tokens of pictures, which vLLM may not sample."""
    table = pd.read_csv(whole_run / "metrics.csv")
    for kind in ("text", "images"):
        assert table[f"rollout_gap/{kind}"].notna().any()
        assert table[f"rollout_gap/{kind}"].max() < 1e-3
    found = record(whole_run)
    assert found["engine"].startswith("vllm ")
    assert (found["engine_dtype"], found["trainer_dtype"]) == ("float32", "float32")
    layout = layout_of(trained_pocket)
    sync = found["weight_sync"]
    num_trained = len(plan_freeze(layout, FreezeArguments(freeze=["mid"])).trainable)
    # All at first, then what trains and eight of what does not.
    assert sync["num_syncs"] == 6
    assert sync["num_compared"] == len(layout.parameters) + 5 * (num_trained + 8)
    assert sync["sent_bytes"] < sync["whole_bytes"]
    assert not (whole_run / "final" / ".partial").exists()
    verify(["--start", str(trained_pocket), "--end", str(whole_run / "final"), "--frozen", "mid"])


def test_a_killed_run_continues_to_the_weights_of_an_undisturbed_one(
    whole_run: Path, trained_pocket: Path, pocket_prompts: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "run"
    argv = flags(trained_pocket, pocket_prompts, directory, freeze="mid", max_steps=6)
    process = subprocess.Popen([sys.executable, "-m", "train.grpo", *argv], cwd=REPOSITORY_ROOT)
    try:
        until = time.monotonic() + 300
        while not (directory / "checkpoints" / "checkpoint-2").exists():
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    assert not (directory / "final").exists()
    train(*argv)
    assert weights(directory / "final") == weights(whole_run / "final")
    before, after = (pd.read_csv(path / "metrics.csv")["reward"].tolist() for path in (whole_run, directory))
    assert before == after


def test_another_seed_draws_other_replies(trained_pocket: Path, pocket_prompts: Path, tmp_path: Path) -> None:
    """vLLM seeds the process by its rank alone; the order of prompts is fixed here, so that only draws can differ."""
    rewards = []
    for seed in (3, 4):
        directory = tmp_path / str(seed)
        train(*flags(trained_pocket, pocket_prompts, directory, seed=seed, shuffle=False, max_steps=2))
        rewards.append(pd.read_csv(directory / "metrics.csv")["completions/mean_length"].tolist())
    assert rewards[0] != rewards[1]
