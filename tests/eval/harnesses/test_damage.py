"""Damaged and foreign files: one clear line each, and nothing written."""

import json
from pathlib import Path
from typing import Any

import pytest

from eval.harnesses.reading import read_files, recognise
from tests.eval.harnesses.test_import import FILES, files_of, run_import

LM_LINE: dict[str, Any] = {
    "doc_id": 0, "doc": {"question": "2 + 2?"}, "target": "4",
    "arguments": {"gen_args_0": {"arg_0": "2 + 2?", "arg_1": {}}},
    "resps": [["4"]], "filtered_resps": ["4"], "filter": "none", "metrics": ["exact_match"], "exact_match": 1.0,
}  # fmt: skip


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def refused(tmp_path: Path, *words: str | Path) -> str:
    """Returns the one line with which an import is refused."""
    output_dir = tmp_path / "out"
    with pytest.raises(ValueError) as raised:
        run_import(*map(str, words), "--output-dir", str(output_dir))
    assert not output_dir.exists(), "nothing is written"
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("harness", ["lm_eval", "lmms_eval"])
def test_a_samples_file_that_was_cut_names_its_line(tmp_path: Path, harness: str) -> None:
    whole = files_of(harness, "base", "*own_words*.jsonl")
    cut = tmp_path / whole.name
    cut.write_bytes(whole.read_bytes()[:-40])
    last = len(whole.read_bytes().splitlines())
    said = refused(tmp_path, cut)
    assert f"{whole.name}:{last}: not JSON" in said
    assert "the file ends in the middle of it" in said


@pytest.mark.parametrize("name", ["base_own_words.json", "base_own_words.eval"])
def test_a_log_that_was_cut_is_refused(tmp_path: Path, name: str) -> None:
    if name.endswith(".eval"):
        pytest.importorskip("inspect_ai", reason="inspect-ai reads .eval files (the extra `inspect`)")
    whole = files_of("inspect", "base", name)
    (tmp_path / name).write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    assert "copy it again" in refused(tmp_path, tmp_path / name)


def test_an_eval_log_without_its_reader_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "inspect_ai.log", None)
    said = refused(tmp_path, files_of("inspect", "base", "base_own_words.eval"))
    assert "needs the package inspect-ai" in said
    assert "inspect log convert --to json" in said


def test_an_excel_table_without_its_reader_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openpyxl", None)
    assert "needs the package openpyxl" in refused(tmp_path, files_of("vlmevalkit", "base", "base_OwnShapes.xlsx"))


def test_a_damaged_excel_table_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("openpyxl", reason="openpyxl reads .xlsx files (the extra `vlmevalkit`)")
    whole = files_of("vlmevalkit", "base", "base_OwnShapes.xlsx")
    (tmp_path / whole.name).write_bytes(whole.read_bytes()[:1000])
    assert "not readable as an Excel file" in refused(tmp_path, tmp_path / whole.name)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.tsv", "index\tquestion\tanswer\n0\tq\tA\n", "no field 'prediction'"),
        ("a.tsv", "index\tquestion\n", "the table has no rows"),
        ("a.jsonl", "", "is empty"),
        ("a.jsonl", '{"id": "1"}\n', "not recognised"),
        ("a.jsonl", "[1, 2]\n", "a JSON list; expected one object per line"),
        ("a.jsonl", '{"id": "1", "response": 7, "gold": "7"}\n', "response is 7; expected a text"),
        ("a.jsonl", '{"id": "1", "response": "7", "gold": "7", "answer_kind": "maths"}\n', "answer_kind is 'maths'"),
        ("a.jsonl", '{"id": "1", "response": "7", "gold": "7", "choices": "A"}\n', "expected a list of the options"),
        ("a.jsonl", '{"id": "1", "response": "7", "gold": "7", "correct": "no"}\n', "correct is 'no'"),
        ("a.jsonl", '{"id": "1", "response": "7", "gold": "7", "sample": "0"}\n', "expected a whole number"),
        ("a.jsonl", '{"id": "1", "response": "7", "gold": "7"}\n' * 2, "sample 0 of '1' occurs 2 times"),
        ("a.jsonl", '{"id": "1", "response": "7", "gold": ""}\n', "no reply can be graded: 1 × no gold answer"),
        ("a.json", '{"samples": []}', "not recognised"),
        ("a.json", '{"eval": {}, "samples": [], "status": "error"}', "the log has no samples (status 'error')"),
        ("a.json", "[", "not JSON"),
        ("a.txt", "hello", "not recognised"),
    ],
)
def test_what_is_no_file_of_a_harness_is_said_in_one_line(tmp_path: Path, name: str, content: str, said: str) -> None:
    (tmp_path / name).write_text(content)
    assert said in refused(tmp_path, tmp_path / name)


def test_a_line_without_a_field_is_named(tmp_path: Path) -> None:
    broken = {key: value for key, value in LM_LINE.items() if key != "resps"}
    path = lines(tmp_path / "samples_t_2026-01-01T00-00-00.0.jsonl", LM_LINE, broken)
    assert f"{path}:2: no field 'resps'" in refused(tmp_path, path)


def test_a_task_of_log_likelihoods_has_no_replies(tmp_path: Path) -> None:
    said = refused(tmp_path, files_of("lm_eval", "base", "samples_own_likelihoods_*.jsonl"))
    assert "scored by log-likelihoods of given answers" in said
    assert "output_type is generate_until" in said


def test_files_of_two_models_or_twice_the_same_task_are_refused(tmp_path: Path) -> None:
    base, tuned = (files_of("lm_eval", model, "samples_own_words_*.jsonl") for model in ("base", "tuned"))
    assert "not of one model" in refused(tmp_path, base, tuned)
    assert "is in two files" in refused(tmp_path, base, tuned, "--model", "both")
    shapes = files_of("lmms_eval", "base", "*own_shapes*.jsonl")
    assert "not of one harness" in refused(tmp_path, base, shapes, "--model", "both")


def test_a_file_read_as_another_harness_says_what_is_missing(tmp_path: Path) -> None:
    said = refused(tmp_path, files_of("lm_eval", "base", "samples_own_words_*.jsonl"), "--harness", "plain")
    assert "no field 'id'" in said
    assert "read as plain" in said


def test_options_that_the_files_cannot_fulfil_are_refused(tmp_path: Path) -> None:
    words = files_of("lm_eval", "base", "samples_own_words_*.jsonl")
    assert "has no such field; its fields are" in refused(tmp_path, words, "--cluster-by", "scene")
    assert "--group-by" in refused(tmp_path, words, "--group-by", "category")
    folder = FILES / "lm_eval" / "base"
    assert "have several tasks" in refused(tmp_path, words, files_of("lm_eval", "base", "samples_own_shapes_*.jsonl"),
                                           "--task", "one")  # fmt: skip
    assert recognise(next(folder.glob("samples_own_words_*"))) == "lm-eval"
    with pytest.raises(ValueError, match="holds none of"):
        read_files([str(tmp_path)])
