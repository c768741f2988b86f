"""What a user sees of `models.check`: for a good checkpoint, for a configuration alone, and for an unknown family."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from models.check.command import EXIT_FAILED, main
from models.check.files import check_processor_files
from models.check.guess import guess_groups, names_of, record_text
from models.check.outcome import FAILS, HOLDS
from models.check.small import make_small
from models.families import FAMILIES, QWEN2_5_VL, Family
from models.layout import layout_from_shapes, shapes_from_config

LLAMA: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 500, "tie_word_embeddings": False,
}  # fmt: skip


def lines_of(text: str) -> dict[str, str]:
    """The line of each check, by the check's name."""
    return {line.split()[0]: line for line in text.splitlines() if line and not line.startswith(" ")}


@pytest.mark.slow
def test_a_checkpoint_is_checked_line_by_line_and_in_json(
    qwen3_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "check.json"
    main(["--model", str(qwen3_checkpoint), "--output", str(report)])
    printed = capsys.readouterr().out
    written = json.loads(report.read_text())
    assert written["family"] == "qwen3"
    states = {row["check"]: row["state"] for row in written["checks"]}
    assert states.pop("swap") == "does not apply"
    assert set(states.values()) == {"holds"}
    lines = lines_of(printed)
    assert all(state in lines[check] for check, state in states.items())
    assert f"{len(written['checks'])} checks in" in printed and "1 do not apply, 0 do not hold" in printed


def test_a_configuration_alone_says_what_cannot_be_checked_and_a_wrong_record_fails(
    qwen3_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(qwen3_checkpoint / "config.json", tmp_path)
    whole = FAMILIES["qwen3"]
    without_norm = [region for region in whole.regions if region[0] != "norm"]
    record = Family(**{**whole.__dict__, "regions": tuple(without_norm)})
    monkeypatch.setitem(FAMILIES, "qwen3", record)
    with pytest.raises(SystemExit) as ended:
        main(["--model", str(tmp_path)])
    assert ended.value.code == EXIT_FAILED
    line = lines_of(capsys.readouterr().out)["placing"]
    assert "does not hold" in line and line.endswith("model.norm.weight")


@pytest.mark.slow
def test_an_unknown_family_gets_its_groups_and_a_record_to_start_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    with pytest.raises(SystemExit) as ended:
        main(["--model", str(tmp_path)])
    assert ended.value.code == EXIT_FAILED
    printed = capsys.readouterr().out
    assert "llama has no record in models/families.py" in printed and "docs/guides/your_architecture.md" in printed
    record = made_record(printed[printed.index("LLAMA = Family(") : printed.index("The next steps")])
    shapes, tied = shapes_from_config(LLAMA, auto_class=record.auto_class)
    layout = layout_from_shapes(record, shapes, tied=tied)
    assert (layout.num_layers, record.text_only) == (3, True)
    assert {parameter.region for parameter in layout} == {"llm", "embed", "norm", "head"}


def made_record(source: str) -> Family:
    """Returns the record that the command prints, as a reader would copy it."""
    made: dict[str, Any] = {"Family": Family}
    exec(source, made)
    record: Family = made["LLAMA"]
    return record


@pytest.mark.slow
def test_a_text_model_is_added_by_the_record_that_is_printed_and_nothing_else(
    pocket_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    values = {**LLAMA, "vocab_size": len(pocket_tokenizer), "eos_token_id": pocket_tokenizer.eos_token_id}
    LlamaForCausalLM(LlamaConfig(**values)).save_pretrained(tmp_path)
    pocket_tokenizer.save_pretrained(tmp_path)
    auto_class, names = names_of(values)
    record = made_record(record_text(values, auto_class, guess_groups(names)))
    monkeypatch.setitem(FAMILIES, "llama", record)
    main(["--model", str(tmp_path)])
    assert "16 hold, 1 do not apply, 0 do not hold" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ('{"model_type": "internvl_chat"}', "name the repository of the same model whose name ends in -hf"),
        ('{"model_type": "nonsense"}', "Transformers builds no model of the type 'nonsense'"),
        ('{"model_type": "Qwen2"}', "type 'Qwen2'; did you mean 'qwen2'"),
        ('{"model_type": "qwen2_5"}', "type 'qwen2_5'; did you mean 'qwen2_5_vl'"),
        (
            '{"model_type": "t5"}',
            "type 't5' with AutoModelForImageTextToText or AutoModelForCausalLM; expected a decoder",
        ),
        ('{"model_type": "clip"}', "type 'clip' with AutoModelForImageTextToText or AutoModelForCausalLM"),
        ('{"model_type": "llama", "hidden_act": "nope"}', "nope"),
        ('{"model_type": 3}', "model_type 3 is not supported"),
        ('{"hidden_size": 3}', "has no model_type"),
        ("{", "not readable as JSON"),
    ],
)
def test_what_is_no_configuration_of_a_model_is_one_line(config: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ValueError, match=message) as caught:
        main(["--model", str(tmp_path)])
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_a_guessed_record_of_a_model_that_sees_is_the_written_one(qwen3_vl_checkpoint: Path) -> None:
    """Qwen3-VL as if it had no record: every guess is that of its record."""
    auto_class, names = names_of(json.loads((qwen3_vl_checkpoint / "config.json").read_text()))
    record = FAMILIES["qwen3_vl"]
    assert auto_class == record.auto_class
    for group in guess_groups(names):
        members = [name for name in names if name.startswith(group.prefix)]
        assert {record.place(name)[0] for name in members} == {group.region}, group


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer.json", "{}", "cannot be loaded (KeyError: 'added_tokens')"),
        ("tokenizer.json", "[]", "tokenizer.json is a list; expected a JSON object"),
        ("tokenizer_config.json", "[", "tokenizer_config.json is not readable as JSON"),
        ("config.json", '"image_token_id": 99999', "config.json expects 99999 (image_token_id)"),
        ("processor_config.json", "5", "lacks preprocessor_config.json: no prompt can be read"),
        ("chat_template.jinja", "{% for", "its chat template (chat_template.jinja) cannot be rendered"),
        ("chat_template.jinja", "{{ messages[0].gone.too }}", "its chat template (chat_template.jinja) cannot be"),
        ("chat_template.jinja", "{{ messages[0]['role'] }}", None),
    ],
)
def test_files_that_can_read_no_prompt_fail(
    file: str, content: str, message: str | None, pocket_checkpoint: Path, tmp_path: Path
) -> None:
    for original in pocket_checkpoint.iterdir():
        (tmp_path / original.name).symlink_to(original)
    (tmp_path / file).unlink()
    if file == "config.json":
        whole = json.loads((pocket_checkpoint / file).read_text())
        content = json.dumps(whole | json.loads("{" + content + "}"))
    (tmp_path / file).write_text(content)
    outcome = check_processor_files(tmp_path, QWEN2_5_VL)
    assert outcome.state == (FAILS if message else HOLDS) and (message or "") in outcome.detail, str(outcome)


def test_the_copy_gets_no_adapter_and_its_reason_names_the_users_file(pocket_checkpoint: Path, tmp_path: Path) -> None:
    """An adapter beside a model is one finding, of its names: it says nothing about the architecture."""
    companions = tmp_path / "companions"
    companions.mkdir()
    for file in ("tokenizer_config.json", "processor_config.json", "chat_template.jinja"):
        shutil.copy(pocket_checkpoint / file, companions)
    (companions / "tokenizer.json").write_text("[]")
    (companions / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    config = json.loads((pocket_checkpoint / "config.json").read_text())
    small = make_small(config, QWEN2_5_VL, tmp_path / "work", companions=companions)
    assert small.no_prompts is not None and small.no_prompts.startswith(str(companions / "tokenizer.json"))
    assert not (small.directory / "adapter_config.json").exists()
    assert small.model is not None


def test_a_record_to_start_from_invents_no_head() -> None:
    """The head of a model without `lm_head` is among the groups that no guess places."""
    names = ["bert.encoder.layer.0.attention.weight", "bert.embeddings.word_embeddings.weight", "cls.predictions.bias"]
    record = record_text({"model_type": "bert"}, "AutoModelForCausalLM", guess_groups(names))
    assert '("?", "cls.predictions.bias")' in record or '("?", "cls.predictions.")' in record
    assert "lm_head" not in record and "no head was recognised" in record
