"""Supervised training on a real pocket model: it learns, freezes, and continues after a kill."""

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from transformers import TrainerCallback

from models.checkpoint import open_checkpoint
from models.layout import Layout
from train.freezing.freeze import FreezeArguments, find_breaches, frozen_digests, plan_freeze
from train.running.callbacks import UNPROVED_DIR, MetricsRecorder
from train.sft import main

SETTINGS: dict[str, Any] = {
    "split": "sft", "max_steps": 6, "per_device_train_batch_size": 4, "learning_rate": 2.0e-3, "warmup_steps": 1,
    "lr_scheduler_type": "cosine", "logging_steps": 1, "save_steps": 3, "report_to": "none", "bf16": False,
    "gradient_checkpointing": False, "use_cpu": True, "seed": 1,
}  # fmt: skip


def flags(start: Path, prompt_set: Path, output_dir: Path, **changes: Any) -> list[str]:
    values = {**SETTINGS, "model_name_or_path": start, "prompts": prompt_set, "output_dir": output_dir, **changes}
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


def weights(directory: Path) -> dict[str, bytes]:
    checkpoint = open_checkpoint(directory)
    return {name: bytes(checkpoint.data(name)) for name in checkpoint.tensors}


@pytest.fixture(scope="module")
def whole_run(pocket_checkpoint: Path, tiny_prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run with the vision tower frozen: prompts with and without pictures, checkpoints at 3 and 6."""
    directory = tmp_path_factory.mktemp("sft") / "run"
    main(flags(pocket_checkpoint, tiny_prompts, directory, freeze="vision"))
    return directory


@pytest.mark.slow
def test_it_learns_and_what_is_frozen_stays(whole_run: Path, pocket_checkpoint: Path, pocket_layout: Layout) -> None:
    loss = pd.read_csv(whole_run / "metrics.csv")["loss"]
    assert len(loss) == SETTINGS["max_steps"] and loss.iloc[-1] < 0.8 * loss.iloc[0]
    start, final = open_checkpoint(pocket_checkpoint), open_checkpoint(whole_run / "final")
    plan = plan_freeze(pocket_layout, FreezeArguments(freeze=["vision"]))
    assert find_breaches(start, final, frozen_digests(start, plan.frozen)) == []
    assert sum(start.data(name) != final.data(name) for name in plan.trainable) > 0.9 * len(plan.trainable)
    report = json.loads((whole_run / "freeze_report.json").read_text())
    assert report["checkpoints"] == ["checkpoint-3", "checkpoint-6", "final"]
    assert {row["block"]: row["changed_frac"] for row in report["blocks"]}["vision"] == 0


class Killed(BaseException):
    """Ends a run in the middle of a step, past every handler."""


class KillAt(TrainerCallback):
    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 4:
            raise Killed


@pytest.mark.slow
def test_a_run_that_was_cut_off_ends_as_if_it_had_not_been(
    whole_run: Path, pocket_checkpoint: Path, tiny_prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = flags(pocket_checkpoint, tiny_prompts, tmp_path / "run", freeze="vision")
    with monkeypatch.context() as patch:
        patch.setattr(MetricsRecorder, "on_step_begin", KillAt.on_step_begin)
        with pytest.raises(Killed):
            main(command)
    # A kill leaves `running` behind, and a checkpoint that was being written.
    state = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps({**state, "status": "running"}))
    saved = tmp_path / "run" / "checkpoints"
    assert [path.name for path in saved.glob("checkpoint-*")] == ["checkpoint-3"]
    shutil.copytree(saved / "checkpoint-3", saved / UNPROVED_DIR / "checkpoint-5")
    main(command)
    assert sorted(path.name for path in saved.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-6"]
    assert weights(tmp_path / "run" / "final") == weights(whole_run / "final")
    ours, theirs = (pd.read_csv(path / "metrics.csv") for path in (tmp_path / "run", whole_run))
    pd.testing.assert_frame_equal(ours, theirs)


@pytest.mark.slow
def test_training_only_one_block_changes_that_block_alone(
    pocket_checkpoint: Path, pocket_layout: Layout, tiny_prompts: Path, tmp_path: Path
) -> None:
    main(
        flags(pocket_checkpoint, tiny_prompts, tmp_path / "run", train_only="late.mlp", max_steps=2, save_strategy="no")
    )
    start, final = open_checkpoint(pocket_checkpoint), open_checkpoint(tmp_path / "run" / "final")
    wanted = plan_freeze(pocket_layout, FreezeArguments(freeze=["late.mlp"])).frozen
    assert {name for name in start.tensors if start.data(name) != final.data(name)} == set(wanted)


@pytest.mark.slow
def test_a_checkpoint_in_the_hubs_spelling_is_trained_and_written_in_it(
    whole_run: Path, hub_spelling: Path, tiny_prompts: Path, tmp_path: Path
) -> None:
    main(flags(hub_spelling, tiny_prompts, tmp_path / "run", freeze="vision"))
    final = open_checkpoint(tmp_path / "run" / "final")
    start = open_checkpoint(hub_spelling)
    assert [stored.name_on_disk for stored in final.tensors.values()] == [
        s.name_on_disk for s in start.tensors.values()
    ]
    assert weights(tmp_path / "run" / "final") == weights(whole_run / "final")


@pytest.mark.slow
def test_prompts_without_any_picture_are_trained_on_too(
    pocket_checkpoint: Path, tiny_prompts: Path, tmp_path: Path
) -> None:
    main(
        flags(pocket_checkpoint, tiny_prompts, tmp_path / "run", abilities="reasoning", max_steps=2, save_strategy="no")
    )
    assert (tmp_path / "run" / "final" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"freeze": "visoin"}, "did you mean 'vision'"),
        ({"abilities": "sight"}, "no prompt of the ability 'sight'"),
        ({"max_steps": "-1", "num_train_epochs": "0.1", "per_device_train_batch_size": "4"}, "give no whole step"),
        ({"prompts": "no/such/folder"}, "no/such/folder is not a folder"),
        ({"prompt_style": "chatty"}, "prompt style 'chatty' is unknown"),
        ({"use_peft": "true", "use_dora": "true"}, "use_dora"),
    ],
)
def test_a_mistake_is_refused_before_anything_is_written(
    pocket_checkpoint: Path, tiny_prompts: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        main(flags(pocket_checkpoint, tiny_prompts, tmp_path / "run", **changes))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_prompts_without_responses_leave_nothing_behind(
    pocket_checkpoint: Path, tiny_prompts: Path, tmp_path: Path
) -> None:
    prompts = Path(shutil.copytree(tiny_prompts, tmp_path / "prompts"))
    rows = [json.loads(line) for line in (prompts / "sft.jsonl").read_text().splitlines()]
    rows[3].pop("response")
    (prompts / "sft.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match="prompt 'i3' has no response"):
        main(flags(pocket_checkpoint, prompts, tmp_path / "run"))
    assert not (tmp_path / "run").exists()
