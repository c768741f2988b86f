"""An adapter is evaluated as its merge is, the base is recorded, and a comparison names other bases."""

import json
import shutil
from pathlib import Path

import pytest

from eval.compare.command import base_doubts
from eval.replies.engines import check_vllm
from eval.replies.subject import open_subject
from eval.run import evaluate, main
from eval.statistics.pairing import Entry
from merge.splice import main as splice
from models.checkpoint import open_checkpoint
from models.pocket import PocketShape, write_pocket_checkpoint
from tests.eval.test_run import arguments, records, write_prompt_set
from tests.models.adapters.making import edit_config, write_adapter


@pytest.fixture(scope="module")
def prompt_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_prompt_set(tmp_path_factory.mktemp("prompts") / "set")


@pytest.fixture(scope="module")
def adapter(pocket_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(pocket_checkpoint, tmp_path_factory.mktemp("adapters") / "adapter", std=0.2)


@pytest.fixture(scope="module")
def evaluated(adapter: Path, prompt_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return evaluate(arguments(adapter, prompt_set, tmp_path_factory.mktemp("run") / "adapter"))


def replies(directory: Path) -> dict[str, str]:
    return {row["key"]: row["response"] for row in records(directory)}


def test_an_adapter_answers_as_its_written_merge(
    pocket_checkpoint: Path, adapter: Path, evaluated: Path, prompt_set: Path, tmp_path: Path
) -> None:
    whole = ["--pattern", "a:a:a", "--donor", f"a={adapter}", "--rest", "a"]
    splice([*whole, "--output-dir", str(tmp_path / "merged")])
    written = evaluate(arguments(tmp_path / "merged" / "checkpoint", prompt_set, tmp_path / "written"))
    base = evaluate(arguments(pocket_checkpoint, prompt_set, tmp_path / "base"))
    assert replies(evaluated) == replies(written) != replies(base)


def test_the_run_records_adapter_and_base(pocket_checkpoint: Path, adapter: Path, evaluated: Path) -> None:
    run = json.loads((evaluated / "run.json").read_text())
    told = run["attempts"][-1]["adapter"]
    assert told["base"] == str(pocket_checkpoint) and told["num_updates"] == 14
    assert told["base_fingerprint"] == open_checkpoint(pocket_checkpoint).fingerprint()
    assert told["applied"] == "merged in fp32, rounded once to the stored dtype"
    assert run["settings"]["model_fingerprint"] == open_subject(str(adapter)).fingerprint


def test_another_base_can_be_named_and_a_comparison_says_so(
    pocket_checkpoint: Path, adapter: Path, evaluated: Path, prompt_set: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    write_pocket_checkpoint(tmp_path / "other", shape=PocketShape(), seed=3)
    moved = Path(shutil.copytree(adapter, tmp_path / "moved"))
    output_dir = tmp_path / "out"
    run = ["--model", str(moved), "--tasks", f"{prompt_set}:test", "--output_dir", str(output_dir)]
    same = ["--max_new_tokens", "8", "--batch_size", "4", "--dtype", "float32"]
    edit_config(moved, base_model_name_or_path="gone/at/all")
    with pytest.raises(ValueError, match=r"its base model is not here .*; name it with --base"):
        main([*run, *same])
    assert not output_dir.exists()
    edit_config(moved, base_model_name_or_path=str(pocket_checkpoint))
    main([*run, *same, "--base", str(tmp_path / "other")])
    assert "whose weights are not those of" in "".join(capsys.readouterr())
    entries = [Entry("here", None, evaluated), Entry("there", None, output_dir)]
    (doubt,) = base_doubts(entries)
    assert "different bases" in doubt and str(tmp_path / "other") in doubt
    assert base_doubts(entries[:1]) == []


def test_vllm_refuses_an_adapter_with_the_way_out(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eval.replies.engines.importlib.util.find_spec", lambda name: name)
    with pytest.raises(ValueError, match="reads a checkpoint, not an adapter; write its merge first: python -m merge"):
        check_vllm(open_subject(str(adapter)))


def test_a_probe_reads_an_adapter_as_its_merge(adapter: Path) -> None:
    model, _ = open_subject(str(adapter)).load(dtype="float32", attn_implementation="sdpa")
    from models.adapters.opening import open_model

    merged = open_model(str(adapter))
    assert all(parameter.equal(merged.tensor(name)) for name, parameter in model.named_parameters())
