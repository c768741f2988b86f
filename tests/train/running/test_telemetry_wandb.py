"""Weights & Biases, offline: what its file holds is what the trainer logged, in the run directory, under one id."""

import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from transformers import PrinterCallback

from models.layout import Layout
from models.loading import load_model, load_processor
from train.freezing.freeze import FreezeArguments, apply_freeze, count_blocks, plan_freeze
from train.running.data import DataArguments, build_dataset, load_prompts, training_order
from train.running.reporting import FREEZE_TABLE, FreezeTable, wandb_run
from train.running.telemetry import Telemetry
from train.running.telemetry_arguments import TelemetryArguments
from train.running.validation import prompts_per_eval_batch, validation_sets

BLOCK_BYTES = 32_768
HEADER_BYTES = 7


def wandb_records(path: Path) -> Iterator[Any]:
    """Reads a `.wandb` file: protocol buffers in LevelDB's log format, after a header of seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, offset, parts = path.read_bytes(), HEADER_BYTES, b""
    while offset + HEADER_BYTES <= len(content):
        left = BLOCK_BYTES - offset % BLOCK_BYTES
        if left < HEADER_BYTES:
            offset += left
            continue
        _, size, kind = struct.unpack("<IHB", content[offset : offset + HEADER_BYTES])
        parts += content[offset + HEADER_BYTES : offset + HEADER_BYTES + size]
        offset += HEADER_BYTES + size
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def history(path: Path) -> list[dict[str, str]]:
    """Returns what was logged, its values as JSON."""
    return [
        {".".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
        for record in wandb_records(path)
        if record.WhichOneof("record_type") == "history"
    ]


def ours() -> dict[str, str]:
    """Returns the environment, but for the address of W&B's own process, which W&B leaves there."""
    return {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_") and name != "WANDB_SERVICE"]:
        monkeypatch.delenv(name)
    for name in ("WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))


@pytest.mark.slow
@pytest.mark.usefixtures("clean_environment")
def test_wandb_holds_every_row_in_the_run_directory_and_a_continued_run_keeps_its_id(
    pocket_checkpoint: Path, pocket_layout: Layout, tiny_prompts: Path, tmp_path: Path
) -> None:
    from trl import SFTConfig, SFTTrainer

    from train.running.watched import WatchedTrainer

    class WatchedSFTTrainer(SFTTrainer, WatchedTrainer):
        pass

    data = DataArguments(prompts=str(tiny_prompts), split="sft")
    prompts = load_prompts(data, with_response=True)
    plan = plan_freeze(pocket_layout, FreezeArguments(freeze=["mid"]))
    directory = tmp_path / "run"
    before = ours()

    def attempt() -> list[dict[str, Any]]:
        config = SFTConfig(
            output_dir=str(directory / "checkpoints"), report_to="wandb", max_steps=2, per_device_train_batch_size=4,
            per_device_eval_batch_size=2, eval_strategy="steps", eval_steps=2, logging_steps=1, save_strategy="no",
            bf16=False, gradient_checkpointing=False, use_cpu=True, disable_tqdm=True,
        )  # fmt: skip
        model = load_model(pocket_checkpoint)
        apply_freeze(model, plan)
        sets, _ = validation_sets(prompts, data, batch_size=prompts_per_eval_batch(config), with_response=True)
        order = training_order(len(prompts), 8, seed=0)
        trainer = WatchedSFTTrainer(
            model,
            args=config,
            train_dataset=build_dataset(prompts, order, data, with_response=True),
            eval_dataset=sets,
            processing_class=load_processor(pocket_checkpoint),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.watch(Telemetry(plan, TelemetryArguments(telemetry_steps=1)))
        trainer.add_callback(FreezeTable(plan, directory))
        with wandb_run(config.report_to, directory):
            trainer.train()
        return list(trainer.state.log_history)

    logged = attempt()
    assert ours() == before
    (file,) = directory.rglob("*.wandb")
    rows = history(file)
    numbers = [{k: float(v) for k, v in row.items() if k.startswith(("train/", "eval/"))} for row in rows]
    by_step = {
        step: {k: v for row in numbers if row.get("train/global_step") == step for k, v in row.items()}
        for step in (1, 2)
    }
    assert "eval/vision_mean_token_accuracy" in by_step[2] and "eval/reasoning_mean_token_accuracy" in by_step[2]
    assert by_step[2]["eval/vision_num_prompts"] == 6 and by_step[2]["eval/reasoning_num_prompts"] == 4
    assert {name for name in by_step[1] if "_norm/" in name} >= {"train/grad_norm/late", "train/update_norm/vision"}
    for row in logged[:-1]:
        for name, value in row.items():
            if name not in ("step", "epoch"):
                spelled = f"eval/{name.removeprefix('eval_')}" if name.startswith("eval_") else f"train/{name}"
                assert by_step[row["step"]][spelled] == pytest.approx(value), name
    assert rows[0]["freeze_table._type"] == '"table-file"'
    (media,) = directory.rglob("freeze_table_*.table.json")
    shown, table = json.loads(media.read_text()), pd.read_csv(directory / FREEZE_TABLE, keep_default_na=False)
    assert shown["columns"] == list(table.columns) and shown["data"] == table.to_numpy().tolist()
    assert dict(zip(table["block"], table["state"], strict=True)) == {
        count.block: count.state for count in count_blocks(plan)
    }

    attempt()
    files = list(directory.rglob("*.wandb"))
    assert len(files) == 2 and len({path.name for path in files}) == 1
    assert not list(tmp_path.glob("wandb")) and not Path("wandb").exists()


@pytest.mark.usefixtures("clean_environment")
def test_what_the_user_set_stays_and_an_error_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    monkeypatch.setenv("WANDB_PROJECT", "mine")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with pytest.raises(RuntimeError, match="broken"), wandb_run(["wandb"], tmp_path / "run"):
        assert os.environ["WANDB_PROJECT"] == "mine" and os.environ["WANDB_MODE"] == "disabled"
        assert os.environ["WANDB_DIR"] == str(tmp_path / "run")
        wandb.init()
        raise RuntimeError("broken")
    assert wandb.run is None
    assert os.environ["WANDB_PROJECT"] == "mine" and "WANDB_DIR" not in os.environ


def test_without_wandb_nothing_is_written(tmp_path: Path) -> None:
    with wandb_run(["none"], tmp_path / "run"):
        pass
    assert not (tmp_path / "run").exists()
