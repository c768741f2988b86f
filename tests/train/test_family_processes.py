"""Families under DDP, ZeRO-2 and ZeRO-3: one GRPO step with a block frozen. One launch serves all cases."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.freezing import MODES, deepspeed_settings
from models.checkpoint import open_checkpoint
from models.families import FAMILIES
from models.layout import layout_of
from tests.families_page import ENGINES, expect_engines, family_checkpoint
from tracking.command import REPOSITORY_ROOT
from train.freezing.freeze import FreezeArguments, plan_freeze

ELSEWHERE = {
    "qwen2_5_vl": "tests/train/test_modes.py",
    "qwen3_5": "tests/train/test_float32.py",
    "internvl": "tests/train/sharing/test_tiled_engines.py",
}
"""Families that other tests train under the same engines."""
HERE = [family for family in FAMILIES if family not in ELSEWHERE]
TIMEOUT_S = 600
COMMON: dict[str, Any] = {
    "split": "rl", "max_steps": 1, "per_device_train_batch_size": 4, "num_generations": 4, "max_completion_length": 6,
    "learning_rate": 1e-3, "weight_decay": 0.1, "beta": 0.0, "logging_steps": 1, "save_strategy": "no",
    "dtype": "float32", "bf16": False, "use_cpu": True, "report_to": "none",
    "gradient_checkpointing": False, "freeze": "mid",
    "rewards": "tests.train.family_runs:spread", "ddp_timeout": 300,
}  # fmt: skip


def words_of(family: str, engine: str, start: Path, prompts: Path, work: Path) -> list[str]:
    abilities = "reasoning" if FAMILIES[family].text_only else "vision"
    values = {**COMMON, "model_name_or_path": start, "prompts": prompts, "abilities": abilities,
              "output_dir": work / family / engine}  # fmt: skip
    if zero := MODES[engine]:
        path = work / f"{engine}.json"
        path.write_text(json.dumps(deepspeed_settings(zero)))
        values["deepspeed"] = path
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


@pytest.fixture(scope="module")
def starts(request: pytest.FixtureRequest) -> dict[str, Path]:
    return {family: Path(request.getfixturevalue(family_checkpoint(family))) for family in HERE}


@pytest.mark.slow
@pytest.mark.usefixtures("warm_children")
def test_families_keep_a_frozen_block_and_train_the_others(
    starts: dict[str, Path], tiny_prompts: Path, tmp_path: Path
) -> None:
    cases = [(family, engine) for engine in ENGINES for family in HERE]
    words = [words_of(family, engine, starts[family], tiny_prompts, tmp_path) for family, engine in cases]
    (tmp_path / "cases.json").write_text(json.dumps(words))
    script = Path(__file__).with_name("family_runs.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script),
               str(tmp_path / "cases.json")]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(REPOSITORY_ROOT)}
    done = subprocess.run(
        command, cwd=REPOSITORY_ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert done.returncode == 0, done.stderr[-6000:]
    for family, engine in cases:
        start, final = open_checkpoint(starts[family]), open_checkpoint(tmp_path / family / engine / "final")
        plan = plan_freeze(layout_of(start.directory), FreezeArguments(freeze=["mid"]))
        assert all(final.data(name) == start.data(name) for name in plan.frozen), (family, engine)
        still = [name for name in plan.trainable if final.data(name) == start.data(name)]
        assert not still, (family, engine, still[:3])
        report = json.loads((tmp_path / family / engine / "freeze_report.json").read_text())
        assert report["num_breaches"] == 0, (family, engine)
    for family in HERE:
        expect_engines(family, *ENGINES)
