"""Replies of every harness, from files that the harnesses wrote (`benchmarks/harness_files`), imported and used."""

import importlib
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from eval.compare.command import main as compare
from eval.grading import CORRECT, INCORRECT, UNSCORED
from eval.regrade import main as regrade
from eval.support.command import main as support
from tracking.command import REPOSITORY_ROOT
from tracking.records import read_records
from tracking.run import read_run

FILES = REPOSITORY_ROOT / "tests" / "eval" / "harnesses" / "files"
CASES = json.loads((REPOSITORY_ROOT / "benchmarks" / "harness_files" / "cases.json").read_text())
TRUTH = {"base": {"w0", "w2", "w3", "w5"}, "tuned": {"w0", "w1", "w2", "w3", "w4", "w5", "w6", "w7"}}
"""Word problems that a model solved, by hand."""


def run_import(*words: str) -> None:
    importlib.import_module("eval.import").main(list(words))


def files_of(harness: str, model: str, pattern: str) -> Path:
    """Returns the one file of a harness with this name."""
    (found,) = (FILES / harness / model).rglob(pattern)
    return found


def imported(tmp_path: Path, harness: str, model: str, pattern: str, *words: str) -> Path:
    output_dir = tmp_path / harness / model
    run_import(str(files_of(harness, model, pattern)), *words, "--output-dir", str(output_dir))
    return output_dir


WORDS = {"lm_eval": "samples_own_words_*.jsonl", "lmms_eval": "*own_words*.jsonl", "inspect": "{}_own_words.json"}
SHAPES = {
    "lm_eval": "samples_own_shapes_*.jsonl", "lmms_eval": "*own_shapes*.jsonl", "inspect": "{}_own_shapes.json",
    "vlmevalkit": "{}_OwnShapes.tsv",
}  # fmt: skip


@pytest.mark.parametrize("harness", WORDS)
def test_word_problems_are_graded_by_what_the_replies_say(tmp_path: Path, harness: str) -> None:
    for model, solved in TRUTH.items():
        output_dir = imported(tmp_path, harness, model, WORDS[harness].format(model))
        records = read_records(output_dir / "records.jsonl")
        assert [record["response"] for record in records] == [case[model] for case in CASES["words"]]
        assert {record["answer_kind"] for record in records} == {"number"}
        right = {
            case["id"] for case, record in zip(CASES["words"], records, strict=True) if record["status"] == CORRECT
        }
        assert right == solved
        assert read_run(output_dir)["settings"]["max_new_tokens"] == 64


@pytest.mark.parametrize("harness", SHAPES)
def test_prompts_about_one_picture_form_a_cluster(tmp_path: Path, harness: str) -> None:
    output_dir = imported(tmp_path, harness, "base", SHAPES[harness].format("base"))
    records = read_records(output_dir / "records.jsonl")
    clusters = [record["cluster"] for record in records]
    assert None not in clusters
    assert [clusters.index(cluster) for cluster in clusters] == [0, 0, 2, 2, 4, 4]
    assert {record["answer_kind"] for record in records} == {"choice"}
    assert records[0]["choices"] == ["a square", "a circle", "a triangle", "a star"]
    assert records[0]["gold"] == "a circle"


@pytest.mark.parametrize("harness", SHAPES)
@pytest.mark.cases_slow
def test_imports_are_regraded_and_compared_as_evaluations_are(
    tmp_path: Path, harness: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = {model: imported(tmp_path, harness, model, SHAPES[harness].format(model)) for model in TRUTH}
    before = (folders["base"] / "records.jsonl").read_bytes()
    regrade(list(map(str, folders.values())))
    assert (folders["base"] / "records.jsonl").read_bytes() == before, "the grader is the same"
    out = tmp_path / "comparison"
    compare(
        [*(f"{model}={folder}" for model, folder in folders.items()), "--baseline", "base", "--output-dir", str(out)]
    )
    (row,) = pd.read_csv(out / "comparison.csv").query("metric == 'accuracy' and seed == 'pooled'").to_dict("records")
    assert (row["n"], row["num_clusters"]) == (6, 3)
    assert row["mean"] == pytest.approx(1.0)
    flips = pd.read_csv(out / "transitions.csv")
    assert set(flips["kind"]) == {"wrong->right"}
    assert CASES["shapes"][4]["question"] in (out / "comparison.html").read_text(), "the questions are shown"
    capsys.readouterr()


def test_verdicts_of_every_filter_are_compared_and_explained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output_dir = imported(tmp_path, "lm_eval", "tuned", WORDS["lm_eval"])
    verdicts = pd.read_csv(output_dir / "verdicts.csv").set_index("metric")
    assert set(verdicts.index) == {"exact_match, strict-match", "exact_match, flexible-extract"}
    strict = verdicts.loc["exact_match, strict-match"]
    assert (strict["n"], strict["ours_only"], strict["harness_only"]) == (8, 4, 0), "w1, w3, w4 and w5 have no ####"
    differ = pd.read_csv(output_dir / "disagreements.csv")
    last = differ[differ["metric"].str.endswith("flexible-extract")].set_index("key")
    assert last.loc["own_words/4", "harness_answer"] == "9", "the last number of the reply"
    assert last.loc["own_words/4", "extracted"] != last.loc["own_words/4", "harness_answer"]
    said = capsys.readouterr().out
    assert "another answer read" in said
    assert "lm-eval, tuned: 8 replies" in said


def test_options_read_by_their_first_letter_are_found(tmp_path: Path) -> None:
    output_dir = imported(tmp_path, "lmms_eval", "tuned", SHAPES["lmms_eval"])
    differ = pd.read_csv(output_dir / "disagreements.csv").set_index("key")
    assert differ.loc["own_shapes/3", "harness_answer"] == "B", "of `Blue.`"
    assert differ.loc["own_shapes/3", "extracted"].rstrip(".") == "Blue"


def test_a_table_divided_by_a_field_has_a_row_per_value(tmp_path: Path) -> None:
    output_dir = imported(tmp_path, "vlmevalkit", "base", SHAPES["vlmevalkit"].format("base"), "--group-by", "category")
    scores = pd.read_csv(output_dir / "scores.csv").set_index("ability")
    assert scores["n"].to_dict() == {"colour": 3, "shape": 3}


def test_excel_tables_hold_what_the_text_tables_hold(tmp_path: Path) -> None:
    pytest.importorskip("openpyxl", reason="openpyxl reads .xlsx files (the extra `vlmevalkit`)")
    text = imported(tmp_path / "tsv", "vlmevalkit", "base", "base_OwnShapes.tsv")
    excel = imported(tmp_path / "xlsx", "vlmevalkit", "base", "base_OwnShapes.xlsx")
    assert (text / "records.jsonl").read_bytes() == (excel / "records.jsonl").read_bytes()
    assert read_run(excel)["settings"]["model"] == "base"
    judged = imported(tmp_path / "hit", "vlmevalkit", "base", "base_OwnShapes_exact_matching_result.xlsx")
    assert pd.read_csv(judged / "verdicts.csv")["metric"].tolist() == ["hit"]


def test_eval_logs_hold_what_their_json_holds(tmp_path: Path) -> None:
    pytest.importorskip("inspect_ai", reason="inspect-ai reads .eval files (the extra `inspect`)")
    for task in ("own_words", "own_shapes"):
        archive = imported(tmp_path / "eval", "inspect", "base", f"base_{task}.eval", "--overwrite", "true")
        text = imported(tmp_path / "json", "inspect", "base", f"base_{task}.json", "--overwrite", "true")
        assert (archive / "records.jsonl").read_bytes() == (text / "records.jsonl").read_bytes()


def test_a_reply_at_its_limit_is_said_to_be_cut(tmp_path: Path) -> None:
    output_dir = imported(tmp_path, "inspect", "base", WORDS["inspect"].format("base"))
    assert read_records(output_dir / "records.jsonl")[-1]["finish_reason"] == "length"
    assert pd.read_csv(output_dir / "scores.csv")["at_limit_frac"].tolist() == [1 / 8]


def test_the_same_import_does_nothing_and_another_file_is_refused(tmp_path: Path) -> None:
    output_dir = imported(tmp_path, "lm_eval", "base", WORDS["lm_eval"])
    before = {path: path.stat().st_mtime_ns for path in output_dir.glob("*.csv")}
    imported(tmp_path, "lm_eval", "base", WORDS["lm_eval"])
    assert {path: path.stat().st_mtime_ns for path in output_dir.glob("*.csv")} == before
    with pytest.raises(ValueError, match="was made with"):
        run_import(str(files_of("lm_eval", "tuned", WORDS["lm_eval"])), "--output-dir", str(output_dir))


def test_replies_of_two_harnesses_are_not_compared(tmp_path: Path) -> None:
    folders = [
        imported(tmp_path, harness, "base", SHAPES[harness].format("base")) for harness in ("lm_eval", "lmms_eval")
    ]
    with pytest.raises(ValueError, match="was asked by lm-eval and b by lmms-eval"):
        compare([f"a={folders[0]}", f"b={folders[1]}", "--baseline", "a", "--output-dir", str(tmp_path / "out")])


def plain(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps({"question": "2 + 2?", "gold": "4", **row}) + "\n" for row in rows))
    return path


def test_models_asked_other_prompts_are_not_compared(tmp_path: Path) -> None:
    for model, question in (("a", "2 + 2?"), ("b", "1 + 3?")):
        file = plain(tmp_path / f"{model}.jsonl", {"id": "1", "response": "4", "question": question})
        run_import(str(file), "--task", "sums", "--output-dir", str(tmp_path / model))
    with pytest.raises(ValueError, match="asked different prompts: import replies of b to the prompts of a"):
        compare(
            [f"a={tmp_path / 'a'}", f"b={tmp_path / 'b'}", "--baseline", "a", "--output-dir", str(tmp_path / "out")]
        )


def test_several_samples_serve_pass_at_k(tmp_path: Path) -> None:
    for model, replies in (("a", ("4", "5", "5", "5")), ("b", ("4", "4", "5", "4"))):
        rows = [
            {"id": str(own), "sample": sample, "response": reply}
            for own in range(3)
            for sample, reply in enumerate(replies)
        ]
        file = plain(tmp_path / f"{model}.jsonl", *rows)
        run_import(str(file), "--task", "sums", "--output-dir", str(tmp_path / model))
    out = tmp_path / "support"
    support([f"a={tmp_path / 'a'}", f"b={tmp_path / 'b'}", "--baseline", "a", "--output-dir", str(out)])
    table = pd.read_csv(out / "support.csv").query("metric == 'pass@k' and k == 1").set_index("model")
    assert table["value"].to_dict() == {"a": 0.25, "b": 0.75}


def test_failures_of_the_harness_stay_unscored_when_graded_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "m_T.tsv"
    table.write_text("index\tquestion\tanswer\tprediction\thit\n1\t2 + 2?\t4\t4\t1\n"
                     "2\t2 + 3?\t5\tFailed to obtain answer via API.\t0\n")  # fmt: skip
    run_import(str(table), "--output-dir", str(tmp_path / "out"))
    assert "left unscored: 1 × Failed to obtain answer" in capsys.readouterr().out
    for _ in range(2):
        records = read_records(tmp_path / "out" / "records.jsonl")
        assert [record["status"] for record in records] == [CORRECT, UNSCORED]
        regrade([str(tmp_path / "out")])


def test_regrading_an_import_renews_its_disagreements(tmp_path: Path) -> None:
    rows = [{"id": "1", "response": "4", "correct": True}, {"id": "2", "response": "5", "correct": False}]
    run_import(str(plain(tmp_path / "a.jsonl", *rows)), "--output-dir", str(tmp_path / "out"))
    place = tmp_path / "out" / "records.jsonl"
    records = read_records(place)
    records[0]["status"] = INCORRECT  # as a faulty grader would have it
    place.write_text("".join(json.dumps(record) + "\n" for record in records))
    regrade([str(tmp_path / "out")])
    assert pd.read_csv(tmp_path / "out" / "disagreements.csv").empty
    assert read_records(place)[0]["status"] == CORRECT


def test_replies_that_excel_cut_stay_unscored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("openpyxl", reason="openpyxl reads .xlsx files (the extra `vlmevalkit`)")
    rows = [("4", "The answer is 4."), ("5", "9 " * 20_000 + "The answer is 5."), ("6", "")]
    table = pd.DataFrame(
        [
            {"index": place, "question": "?", "answer": gold, "prediction": text}
            for place, (gold, text) in enumerate(rows)
        ]
    )
    with pytest.warns(UserWarning, match="truncated"):  # as pandas writes it for VLMEvalKit
        table.to_excel(tmp_path / "m_T.xlsx", index=False)
    run_import(str(tmp_path / "m_T.xlsx"), "--output-dir", str(tmp_path / "out"))
    records = read_records(tmp_path / "out" / "records.jsonl")
    assert [record["status"] for record in records] == [CORRECT, UNSCORED, INCORRECT]
    assert "1 × cut at the 32,767 characters" in capsys.readouterr().out


def test_samples_of_a_log_that_ended_in_an_error_stay_unscored(tmp_path: Path) -> None:
    log = json.loads(files_of("inspect", "tuned", "tuned_own_words.json").read_text())
    log["samples"][0] |= {
        "error": {"message": "RuntimeError('no memory')\nmore"},
        "output": {"choices": []},
        "scores": {},
    }
    (tmp_path / "log.json").write_text(json.dumps(log))
    run_import(str(tmp_path / "log.json"), "--output-dir", str(tmp_path / "out"))
    records = read_records(tmp_path / "out" / "records.jsonl")
    assert [record["status"] for record in records] == [UNSCORED, *[CORRECT] * 7]
    assert records[0]["no_reply"] == "the sample ended in an error: RuntimeError('no memory')"
    assert pd.read_csv(tmp_path / "out" / "scores.csv")["num_unscored"].tolist() == [1]


def test_epochs_are_samples(tmp_path: Path) -> None:
    log = json.loads(files_of("inspect", "tuned", "tuned_own_words.json").read_text())
    log["samples"] += [{**sample, "epoch": 2} for sample in log["samples"]]
    (tmp_path / "log.json").write_text(json.dumps(log))
    run_import(str(tmp_path / "log.json"), "--output-dir", str(tmp_path / "out"))
    assert pd.read_csv(tmp_path / "out" / "scores.csv")[["n", "num_samples"]].to_numpy().tolist() == [[8, 2]]
    assert pd.read_csv(tmp_path / "out" / "verdicts.csv")["n"].tolist() == [16], "each epoch has its own verdict"
