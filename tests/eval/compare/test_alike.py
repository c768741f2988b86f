"""What is said where models were not evaluated alike, or where a folder is not an evaluation."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest

from eval.compare.alike import check_alike, read_evaluation
from eval.statistics.pairing import Entry
from tracking.run import open_run

SETTINGS: dict[str, Any] = {
    "model": "m", "model_fingerprint": "f", "tasks": {"test": "abc"}, "conditions": ["given"], "system_prompt": None,
    "max_new_tokens": 32, "generation": {"max_new_tokens": 32, "eos_token_id": 2}, "batch_size": 128,
    "dtype": "float32", "sampling": {"num_samples": 1, "temperature": 0.0}, "pixels": {"max_pixels": 100},
}  # fmt: skip


def write_evaluation(directory: Path, *, command: str = "eval.run", **changes: Any) -> Path:
    with open_run(directory, command=command, settings={**SETTINGS, **changes}) as run:
        run.note(tasks={"test": "outputs/pocket/data/data:test"})
    return directory


def refusal(tmp_path: Path, **changes: Any) -> str:
    """Returns what is said of a second model whose evaluation had other settings."""
    first, second = write_evaluation(tmp_path / "sft"), write_evaluation(tmp_path / "full", **changes)
    with pytest.raises(ValueError) as refused:
        check_alike([Entry("sft", None, first), Entry("full", 0, second)])
    return str(refused.value)


def test_every_differing_setting_is_named_with_the_arguments_that_mend_it(tmp_path: Path) -> None:
    said = refusal(
        tmp_path, max_new_tokens=2048, generation={"max_new_tokens": 2048, "eos_token_id": 7}, dtype="auto",
        sampling={"num_samples": 16, "temperature": 1.0}, pixels={"max_pixels": 50}, conditions="by ability",
    )  # fmt: skip
    assert "sft and full@0 were evaluated with different " in said
    assert "max_new_tokens: 32 and 2048" in said and "generation" not in said and "eos_token_id" not in said
    assert "dtype: 'float32' and 'auto'" in said
    assert "run eval.run for full@0 again with " in said
    for flag in (
        "--max-new-tokens 32", "--dtype float32", "--num-samples 1", "--temperature 0.0", "--max-pixels 100",
        "--conditions given",
    ):  # fmt: skip
        assert flag in said
    assert "--batch-size" not in said


def test_the_configuration_of_the_first_is_offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["eval.run", "--config", "configs/pocket/eval.yaml", "--model", "m"])
    said = refusal(tmp_path, batch_size=16)
    assert "with --batch-size 128, or with --config configs/pocket/eval.yaml as sft was" in said


def test_an_argument_that_the_first_went_without_is_to_be_left_out(tmp_path: Path) -> None:
    assert "again without --system-prompt" in refusal(tmp_path, system_prompt="Think.")


def test_other_prompts_are_told_as_such(tmp_path: Path) -> None:
    said = refusal(tmp_path, tasks={"test": "abd"}, dtype="auto")
    assert "asked different prompts" in said and "--tasks outputs/pocket/data/data:test" in said


def test_every_argument_that_is_offered_is_one_of_the_command() -> None:
    from dataclasses import fields

    from eval.compare.alike import FLAGS
    from eval.run import ARGUMENTS

    known = {field.name.replace("_", "-") for arguments in ARGUMENTS for field in fields(arguments)}
    assert set(FLAGS.values()) <= known


def test_what_is_not_an_evaluation_is_named_with_the_one_that_was_meant(tmp_path: Path) -> None:
    inside = write_evaluation(tmp_path / "study" / "eval" / "sft")
    with pytest.raises(ValueError, match=r"does not exist; expected an output directory of eval\.run"):
        read_evaluation(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=re.escape(f"did you mean {inside}?")):
        read_evaluation(inside.parent)
    (inside / "figures").mkdir()
    with pytest.raises(ValueError, match=re.escape(f"did you mean {inside}?")):
        read_evaluation(inside / "figures")
    trained = write_evaluation(tmp_path / "arm", command="train.grpo")
    (trained / "final").mkdir()
    with pytest.raises(ValueError, match=rf"written by train\.grpo; expected .*eval\.run --model {trained}/final"):
        read_evaluation(trained)
