"""A small study whose arms differ in what they train on: GRPO by modality, on selected prompts, and supervised."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from data_builders.prompt_sets.prompts import read_prompts, write_prompts
from models.checkpoint import open_checkpoint
from tests.train.test_grpo import SETTINGS as GRPO
from tests.train.test_sft import SETTINGS as SFT
from train.necessity import main

pytestmark = pytest.mark.slow

ARMS = ("full", "data-all", "data-chest-x-ray", "data-boundary", "sft-chest-x-ray-freeze-mid")


@pytest.fixture(scope="module")
def study(warm_checkpoint: Path, tiny_prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study's folder: five arms of two steps, every other prompt a chest X-ray.

    The start is almost always right; at this temperature it is so only sometimes, and rewards differ.
    """
    from dataclasses import replace

    folder = tmp_path_factory.mktemp("by_data")
    (folder / "prompts").mkdir()
    (folder / "prompts" / "images").symlink_to(tiny_prompts / "images")
    for split in ("sft", "rl", "test"):
        prompts = read_prompts(tiny_prompts, split)
        looks = [{"modality": ("negative", "Chest X-Ray")[number % 2]} for number in range(len(prompts))]
        marked = [replace(each, meta=meta) for each, meta in zip(prompts, looks, strict=True)]
        write_prompts(folder / "prompts", split, marked)
    short = {"max_steps": 2, "logging_steps": 1, "save_steps": 2}
    answers = {"max_new_tokens": 10, "batch_size": 64, "dtype": "float32"}
    files: dict[str, dict[str, Any]] = {
        "grpo": {**GRPO, **short, "temperature": 1.6}, "sft": {**SFT, **short}, "eval": answers,
        "boundary": {**answers, "num_samples": 16, "temperature": 1.6, "balance": "modality"},
    }  # fmt: skip
    for name, values in files.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(values))
    settings = {
        "output_dir": str(folder / "study"), "sft_checkpoint": str(warm_checkpoint),
        "prompts": str(folder / "prompts"), "modalities": ["Chest X-Ray"], "seeds": [0], "always_freeze": ["vision"],
        "arms": ["full", "data-all", "each-data", "data-boundary", "each-sft:freeze-mid"],
        "grpo_config": str(folder / "grpo.yaml"), "sft_arm_config": str(folder / "sft.yaml"),
        "boundary_config": str(folder / "boundary.yaml"), "eval_config": str(folder / "eval.yaml"),
    }  # fmt: skip
    (folder / "study.yaml").write_text(yaml.safe_dump(settings))
    main(["--config", str(folder / "study.yaml")])
    return folder / "study"


def weights(study: Path, arm: str) -> dict[str, bytes]:
    checkpoint = open_checkpoint(study / "arms" / f"{arm}-seed0" / "final")
    return {name: bytes(checkpoint.data(name)) for name in checkpoint.tensors}


def run_of(study: Path, arm: str) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((study / "arms" / f"{arm}-seed0" / "run.json").read_text())
    return state


def test_every_arm_trains_on_its_part_by_its_method(study: Path) -> None:
    runs = {arm: run_of(study, arm) for arm in ARMS}
    assert {arm: run["command"] for arm, run in runs.items()} == {
        arm: "train.sft" if arm.startswith("sft-") else "train.grpo" for arm in ARMS
    }
    xray = ["modality=Chest X-Ray"]
    chosen = {arm: run["settings"].get("select") for arm, run in runs.items()}
    assert chosen == {arm: xray if "chest-x-ray" in arm else None for arm in ARMS}
    assert runs["data-boundary"]["settings"]["prompts"] == str(study / "boundary" / "data")
    reports = {arm: json.loads((study / "arms" / f"{arm}-seed0" / "data_report.json").read_text()) for arm in ARMS}
    assert [reports[arm]["num_prompts"] for arm in ("full", "data-all", "data-chest-x-ray")] == [11, 11, 5]
    kept = read_prompts(study / "boundary" / "data", "rl")
    assert reports["data-boundary"]["num_prompts"] == len(kept) < 11
    cells = pd.read_csv(study / "boundary" / "balance.csv")
    assert cells["num_kept"].nunique() == 1 and cells["num_kept"].sum() == len(kept)


def test_all_prompts_are_the_arm_full_and_a_part_is_another_run(study: Path) -> None:
    full = weights(study, "full")
    assert weights(study, "data-all") == full
    others = [weights(study, arm) for arm in ARMS[2:]]
    assert all(other != full for other in others)


def test_a_crossed_arm_freezes_its_block(study: Path) -> None:
    proof = json.loads((study / "arms" / "sft-chest-x-ray-freeze-mid-seed0" / "freeze_report.json").read_text())
    changed = {row["block"]: row["changed_frac"] for row in proof["blocks"]}
    assert changed["mid"] == changed["vision"] == 0 < min(changed["early"], changed["late"])


def test_tables_and_report_have_every_arm(study: Path) -> None:
    scores = pd.read_csv(study / "scores.csv")
    assert {"sft", *ARMS} <= set(scores["model"] if "model" in scores else scores["arm"])
    page = (study / "report.html").read_text()
    assert all(arm in page for arm in ARMS) and "not trained" not in page
