"""A frozen block that trains: the run fails, and where only the calibration could notice, its verdict is wrong."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.necessary_block.answers import count_replies
from benchmarks.necessary_block.start import open_layers
from benchmarks.necessary_block.studies import STAGES, Workplace
from tests.conftest import flags
from tracking.command import REPOSITORY_ROOT
from train import FINAL_DIR
from train.freezing.freeze import FreezePlan, apply_freeze

pytestmark = pytest.mark.slow

ALWAYS = ["--always_freeze", "vision", "projector", "embed", "norm"]
FROZEN = ["--freeze", "mid"]


@pytest.fixture(scope="module")
def work(warm_python: Path, made_once: Callable[[str, Callable[[Path], object]], Path]) -> Workplace:
    """The starts, built by the command."""

    def build(folder: Path) -> None:
        words = ["-m", "benchmarks.necessary_block", "--build-only", "true", "--output-dir", str(folder)]
        done = subprocess.run([warm_python, *words], cwd=REPOSITORY_ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    return Workplace(directory=made_once("necessary-block", build))


def train(work: Workplace, output_dir: Path, *words: str, **changes: Any) -> None:
    """Trains from the start in which `mid` is necessary, as its study does."""
    from train.grpo import main

    values = {
        "config": REPOSITORY_ROOT / STAGES / "grpo.yaml", "model_name_or_path": work.placed("mid", "sft"),
        "prompts": work.prompts, "seed": 0, "output_dir": output_dir, **changes,
    }  # fmt: skip
    main([*flags(**values), *ALWAYS, *words])


def answer(work: Workplace, model: Path, output_dir: Path) -> None:
    from eval.run import main

    values = {"model": model, "tasks": f"{work.prompts}:test", "output_dir": output_dir, "limit": 40}
    main(["--config", str(REPOSITORY_ROOT / STAGES / "eval.yaml"), *flags(**values)])


def test_a_frozen_block_that_trains_fails_its_run(
    work: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgetful(model: torch.nn.Module, plan: FreezePlan) -> None:
        apply_freeze(model, plan)
        model.get_parameter("model.language_model.layers.2.self_attn.o_proj.weight").requires_grad_(True)

    monkeypatch.setattr("train.running.stage.apply_freeze", forgetful)
    with pytest.raises(RuntimeError, match=r"1 frozen tensors changed during training, the first is .*o_proj"):
        train(work, tmp_path / "run", *FROZEN, max_steps=2)
    assert not (tmp_path / "run" / FINAL_DIR).exists()


def test_an_arm_that_trains_the_block_it_should_freeze_is_not_blind_and_called_wrong(
    work: Workplace, tmp_path: Path
) -> None:
    label = "freeze-mid-seed0"
    for name, words in (("sound", FROZEN), ("broken", [])):
        train(work, tmp_path / "arms" / name, *words)
        answer(work, tmp_path / "arms" / name / FINAL_DIR, tmp_path / name / "eval" / label)
        assert open_layers(tmp_path / "arms" / name / FINAL_DIR) == [2, 3]
    assert count_replies(tmp_path / "sound", "mid", label).is_right
    broken = count_replies(tmp_path / "broken", "mid", label)
    assert not broken.is_right and broken.estimate > 2
    shutil.rmtree(tmp_path / "arms")
