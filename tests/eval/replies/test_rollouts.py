"""Records of a model's rollouts: copied by an evaluation, compared by a comparison."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from data_builders.prompt_sets.prompts import Prompt, write_prompts
from eval import run
from eval.compare import command as compare
from eval.replies.rollouts import ROLLOUT_FILE, doubts, read_rollout
from models.pocket import PocketShape, write_pocket_checkpoint

GAP = {"mean": 0.004, "p99": 0.05, "rounding": 0.004, "num_steps": 40}


def rollout(**changes: Any) -> dict[str, Any]:
    known = {"engine": "vllm 0.31.0", "engine_dtype": "bfloat16", "trainer_dtype": "float32", "corrected": False}
    return {**known, "gap": {"text": GAP, "images": {**GAP, "mean": 0.01}}, **changes}


def scaled(factor: float, kind: str = "text") -> dict[str, Any]:
    gaps = {"text": GAP, "images": {**GAP, "mean": 0.01}}
    return {**gaps, kind: {**gaps[kind], "mean": factor * gaps[kind]["mean"]}}


TRANSFORMERS = rollout(engine="transformers 5.23.0", engine_dtype="float32", gap={})


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (rollout(), []),
        (rollout(gap=scaled(1.4)), []),
        (rollout(gap=scaled(1.6)), ["On prompts without pictures the engine was farther from the trainer in b"]),
        (rollout(gap=scaled(0.5, "images")), ["On prompts with pictures the engine was farther from the trainer in a"]),
        (rollout(gap=scaled(0.0)), ["in a than in b: a mean gap of 0.004 nats per token against 0;"]),
        (rollout(corrected=True), ["was corrected for in some models only: not corrected (a); corrected (b)"]),
        (rollout(engine_dtype="float32"), ["different engines: vllm 0.31.0 in bfloat16, trained in float32 (a)"]),
        (TRANSFORMERS, ["came from different engines"]),
    ],
)  # fmt: skip
def test_what_makes_a_comparison_open_to_doubt(other: dict[str, Any], said: list[str]) -> None:
    found = doubts({"a": rollout(), "b": other})
    assert len(found) == len(said)
    assert all(part in sentence for part, sentence in zip(said, found, strict=True))
    assert all("learned from different mixtures of samples" in sentence for sentence in found)


def test_gaps_that_change_nothing_are_not_compared() -> None:
    """In float32 they are of 1e-6, and one is twice another by chance."""
    one, other = ({"text": {**GAP, "mean": mean}} for mean in (1e-6, 4e-6))
    assert doubts({"a": rollout(gap=one), "b": rollout(gap=other)}) == []


def test_models_that_say_nothing_are_not_doubted() -> None:
    assert doubts({}) == doubts({"a": rollout()}) == []


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"engine": "vllm"}', json.dumps({**rollout(), "gap": {"text": {"mean": -1}}}),
                json.dumps(rollout(gap=scaled(-1.0)))],
)  # fmt: skip
def test_a_damaged_file_is_told_in_one_line(content: str, tmp_path: Path) -> None:
    assert read_rollout(tmp_path) is None
    (tmp_path / ROLLOUT_FILE).write_text(content)
    with pytest.raises(ValueError, match=r"rollout\.json.*(train again, or remove it)"):
        read_rollout(tmp_path)


@pytest.mark.slow
def test_an_evaluation_copies_it_and_a_comparison_tells_its_reader(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = [
        Prompt(id=f"p{number}", ability="reasoning", question="What is 1 ?", answer="1", answer_kind="number")
        for number in range(4)
    ]
    write_prompts(tmp_path, "test", prompts)
    entries = []
    for name, told in (("sft", None), ("full@0", rollout()), ("freeze-mid@0", rollout(gap=scaled(2.0)))):
        write_pocket_checkpoint(tmp_path / name, shape=PocketShape(num_layers=3), seed=0)
        if told is not None:
            (tmp_path / name / ROLLOUT_FILE).write_text(json.dumps(told))
        output_dir = tmp_path / f"eval-{name}"
        words = ["--model", str(tmp_path / name), "--tasks", f"{tmp_path}:test", "--output-dir", str(output_dir),
                 "--max-new-tokens", "4"]  # fmt: skip
        run.main(words)
        state = json.loads((output_dir / "run.json").read_text())
        assert state["attempts"][0]["rollout"] == told
        (tmp_path / name / ROLLOUT_FILE).unlink(missing_ok=True)
        run.main(words)  # it is no setting: the run is finished without it too
        entries.append(f"{name}={output_dir}")
    capsys.readouterr()
    words = [*entries, "--baseline", "sft", "--reference", "full", "--output-dir", str(tmp_path / "comparison")]
    for _ in range(2):
        compare.main(words)
        said = capsys.readouterr().out
        assert said.count("open to doubt: On prompts without pictures the engine was farther") == 1
    table = pd.read_csv(tmp_path / "comparison" / "rollouts.csv")
    assert table["model"].tolist() == ["full@0"] * 2 + ["freeze-mid@0"] * 2
    assert table["mean"].tolist() == [0.004, 0.01, 0.008, 0.01]
    page = (tmp_path / "comparison" / "comparison.html").read_text()
    assert "Open to doubt." in page and "0.008 nats per token against 0.004" in page
    compare.main([*entries[:2], "--baseline", "sft", "--output-dir", str(tmp_path / "alone")])
    assert "open to doubt" not in capsys.readouterr().out
    assert "Open to doubt." not in (tmp_path / "alone" / "comparison.html").read_text()
