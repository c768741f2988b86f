"""Freezing in Qwen3-VL, Qwen3.5, InternVL and text-only Qwen2: planned, trained, resumed, verified as in the others."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from eval.replies.rollouts import ROLLOUT_FILE
from models.checkpoint import open_checkpoint
from models.layout import layout_of
from models.loading import load_model, load_processor
from train.freezing.freeze import FreezeArguments, count_blocks, plan_freeze
from train.grpo import main
from train.sft import main as sft
from train.verify import EXIT_BREACH
from train.verify import main as verify

COMMON: dict[str, Any] = {
    "lr_scheduler_type": "constant", "report_to": "none", "bf16": False, "use_cpu": True, "seed": 3,
}  # fmt: skip
SFT: dict[str, Any] = {
    "split": "sft", "max_steps": 25, "per_device_train_batch_size": 11, "learning_rate": 4e-3, "save_strategy": "no",
    "gradient_checkpointing": False,
}  # fmt: skip
GRPO: dict[str, Any] = {
    "split": "rl", "max_steps": 2, "per_device_train_batch_size": 16, "num_generations": 4, "max_completion_length": 14,
    "learning_rate": 1e-3, "beta": 0.0, "logging_steps": 1, "save_steps": 1, "freeze": "mid",
}  # fmt: skip
OF_FAMILY: dict[str, dict[str, Any]] = {
    "qwen2": {"abilities": "reasoning"}, "qwen3_vl": {}, "qwen3_5": {}, "internvl": {}, "gemma4": {},
}  # fmt: skip
"""A text-only model takes the prompts without pictures."""
ALWAYS_FROZEN = {"gemma4": {"audio"}}
BLOCKS = {
    "qwen2": ("early", "late", "embed", "norm", "head"),
    "qwen3_vl": ("early", "late", "vision", "projector", "embed", "norm"),
    "internvl": ("early", "late", "vision", "projector", "embed", "norm", "head"),
    "qwen3_5": ("early", "late", "vision", "projector", "embed", "norm"),
    "gemma4": ("early", "late", "vision", "projector", "embed", "ple", "norm"),
}


def flags(start: Path, prompts: Path, output_dir: Path, *settings: dict[str, Any]) -> list[str]:
    values: dict[str, Any] = {"model_name_or_path": start, "prompts": prompts, "output_dir": output_dir, **COMMON}
    for more in settings:
        values |= more
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


@pytest.fixture(scope="module", params=["qwen2", "qwen3_vl", "qwen3_5", "internvl", "gemma4"])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def untrained(family: str, request: pytest.FixtureRequest) -> Path:
    return Path(request.getfixturevalue(f"{family}_checkpoint"))


@pytest.fixture(scope="module")
def start(family: str, untrained: Path, tiny_prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The random checkpoint after a short SFT: it is sometimes right, so that rewards differ."""
    directory = tmp_path_factory.mktemp(f"{family}-sft") / "run"
    sft(flags(untrained, tiny_prompts, directory, SFT, OF_FAMILY[family]))
    return directory / "final"


@pytest.fixture(scope="module")
def run(family: str, start: Path, tiny_prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps of GRPO with `mid` frozen."""
    directory = tmp_path_factory.mktemp(f"{family}-grpo") / "run"
    main(flags(start, tiny_prompts, directory, GRPO, OF_FAMILY[family]))
    return directory


def test_the_plan_counts_every_parameter_once(family: str, untrained: Path) -> None:
    plan = plan_freeze(layout_of(untrained), FreezeArguments(freeze=["mid"]))
    counts = {count.block: count for count in count_blocks(plan)}
    always = ALWAYS_FROZEN.get(family, set())
    assert set(counts) == {*BLOCKS[family], "mid", *always}
    assert sum(count.num_elements for count in counts.values()) == load_model(untrained).num_parameters()
    assert {block for block, count in counts.items() if count.state == "frozen"} == {"mid", *always}


def test_verify_proves_and_finds_a_breach(
    family: str, untrained: Path, tmp_path: Path, flipped: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    end = Path(shutil.copytree(untrained, tmp_path / "end"))
    frozen = ["mid", "head"] if family == "qwen2" else ["mid", "vision", "projector"]
    plan = plan_freeze(layout_of(untrained), FreezeArguments(freeze=frozen), leave_some=False)
    arguments = ["--start", str(untrained), "--end", str(end), "--frozen", *frozen]
    flipped(end, plan.trainable[-1])
    verify(arguments)
    assert f"proof: all {len(plan.frozen)} tensors" in capsys.readouterr().out
    for victim in (plan.frozen[0], plan.frozen[-1]):
        flipped(end, victim)
        with pytest.raises(SystemExit) as exit_info:
            verify(arguments)
        assert exit_info.value.code == EXIT_BREACH
        assert f"breach: {victim}\n" in capsys.readouterr().out
        flipped(end, victim)


@pytest.mark.slow
def test_grpo_keeps_what_is_frozen_and_trains_every_other_block(
    family: str, start: Path, run: Path, tmp_path: Path
) -> None:
    layout = layout_of(start)
    before, after = open_checkpoint(start), open_checkpoint(run / "final")
    plan = plan_freeze(layout, FreezeArguments(freeze=["mid"]))
    assert all(before.data(name) == after.data(name) for name in plan.frozen)
    for block in BLOCKS[family]:
        members = plan_freeze(layout, FreezeArguments(freeze=[block])).frozen
        assert any(before.data(name) != after.data(name) for name in members), f"{block} did not train"
    verify(["--start", str(start), "--end", str(run / "final"), "--frozen", "mid"])
    report = json.loads((run / "freeze_report.json").read_text())
    assert (report["num_breaches"], report["checkpoints"]) == (0, ["checkpoint-1", "checkpoint-2", "final"])
    assert [tensor["name"] for tensor in report["tensors"]] == list(layout.parameters)


@pytest.mark.slow
def test_final_is_written_as_the_start_is_and_loads(untrained: Path, start: Path, run: Path) -> None:
    spelled = [(stored.name_on_disk, stored.shape) for stored in open_checkpoint(untrained).tensors.values()]
    files = {path.name for path in untrained.iterdir()}
    for directory, own in ((start, set()), (run / "final", {ROLLOUT_FILE})):
        assert [
            (stored.name_on_disk, stored.shape) for stored in open_checkpoint(directory).tensors.values()
        ] == spelled
        assert {path.name for path in directory.iterdir()} == files | own
    assert load_model(run / "final").num_parameters() == load_model(untrained).num_parameters()
    assert type(load_processor(run / "final")) is type(load_processor(untrained))


@pytest.mark.slow
def test_every_ability_is_validated_while_training(
    family: str, untrained: Path, tiny_prompts: Path, tmp_path: Path
) -> None:
    validation = {"validation_split": "test", "eval_strategy": "steps", "eval_steps": 1, "max_steps": 1}
    batches = {"per_device_eval_batch_size": 4, "num_generations_eval": 1}
    main(flags(untrained, tiny_prompts, tmp_path / "grpo", GRPO, OF_FAMILY[family], validation, batches))
    sft_batches = {"per_device_eval_batch_size": 4, "logging_steps": 1}
    sft(flags(untrained, tiny_prompts, tmp_path / "sft", SFT, OF_FAMILY[family], validation, sft_batches))
    abilities = ["reasoning"] if family == "qwen2" else ["reasoning", "vision"]
    for ability in abilities:
        (grpo_row,) = pd.read_csv(tmp_path / "grpo" / "metrics.csv").to_dict("records")
        (sft_row,) = pd.read_csv(tmp_path / "sft" / "metrics.csv").to_dict("records")
        assert grpo_row[f"eval_{ability}_num_prompts"] == 4 and grpo_row[f"eval_{ability}_rewards/accuracy/mean"] == 0
        assert sft_row[f"eval_{ability}_num_prompts"] == 4 and sft_row[f"eval_{ability}_loss"] > 0


@pytest.mark.slow
def test_a_run_continued_from_its_checkpoint_ends_the_same(
    family: str, start: Path, run: Path, tiny_prompts: Path, tmp_path: Path
) -> None:
    directory = Path(shutil.copytree(run, tmp_path / "run"))
    shutil.rmtree(directory / "final")
    shutil.rmtree(directory / "checkpoints" / "checkpoint-2")
    state = json.loads((directory / "run.json").read_text())
    (directory / "run.json").write_text(json.dumps({**state, "status": "running"}))
    main(flags(start, tiny_prompts, directory, GRPO, OF_FAMILY[family]))
    assert len(json.loads((directory / "run.json").read_text())["attempts"]) == 2
    one, other = open_checkpoint(run / "final"), open_checkpoint(directory / "final")
    assert all(one.data(name) == other.data(name) for name in one.tensors)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "prompt 'i0' has images, and the model is text-only"),
        ({"abilities": "reasoning", "always_freeze": "vision"}, "'vision': qwen2 is a text-only model without vision"),
    ],
)
def test_what_needs_a_tower_is_refused_for_a_text_model_before_anything_is_written(
    qwen2_checkpoint: Path, tiny_prompts: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        main(flags(qwen2_checkpoint, tiny_prompts, tmp_path / "run", GRPO, changes))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
