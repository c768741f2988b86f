"""Rows of other data sets than verl's: their columns, messages as text, images within messages, and why rows go."""

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_builders import build
from data_builders.prompt_sets.prompts import Prompt, read_prompts
from data_builders.rl.build import explain
from data_builders.rl.upstream import DROPPED, DefectError, read_answer, read_prompt
from data_builders.sources.columns import SCHEMAS, Columns, read_columns, value_of


def png(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (44, 60, 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(output_dir: Path, source: Path, *words: str) -> list[Prompt]:
    build.main(
        ["rl", "--output-dir", str(output_dir), "--source", str(source), "--validation_frac", "0", "--test_frac", "0",
         *words]
    )  # fmt: skip
    return sorted(read_prompts(output_dir / "data", "rl"), key=lambda prompt: prompt.question)


def report(output_dir: Path) -> dict[str, Any]:
    return dict(json.loads((output_dir / "data" / "build_report.json").read_text()))


EMBEDDED = {"bytes": png(1), "path": "1.png"}


@pytest.mark.parametrize(
    ("schema", "row", "facts"),
    [
        ("easyr1", {"problem": "<image>How long ?", "answer": "7", "images": [EMBEDDED]}, ("7", {}, "")),
        (
            "mmk12",
            {"id": "k12", "question": "How long ?", "answer": "7", "subject": "math", "image": EMBEDDED},
            ("7", {"id": "k12"}, "math"),
        ),
        (
            "virl39k",
            {"qid": "q1", "question": "<image>\nHow long ?", "answer": "\\boxed{7}", "image": ["images/1.png"],
             "source": "Processed", "category": "Geometry", "PassRate_7BBase": 0.5},
            ("7", {"qid": "q1"}, "Processed"),
        ),
    ],
)  # fmt: skip
def test_known_data_sets_are_read_by_their_own_columns(
    schema: str, row: dict[str, Any], facts: tuple[str, dict[str, Any], str], tmp_path: Path
) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.png").write_bytes(png(1))
    source = write_rows(tmp_path / "train.parquet", [row])
    (prompt,) = run(tmp_path / "out", source, "--schema", schema)
    answer, extra, data_source = facts
    assert (prompt.question, prompt.answer, len(prompt.images)) == ("How long ?", answer, 1)
    assert prompt.meta == {
        "row": "train.parquet#0", "data_source": data_source, **({"extra": extra} if extra else {}),
    }  # fmt: skip
    with pytest.raises(ValueError, match=rf"has no column 'prompt'; it has .*; use --schema .*{schema}"):
        run(tmp_path / "other", source)


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_columns_can_be_named_one_by_one_and_inside_each_other(suffix: str, tmp_path: Path) -> None:
    rows = [{"query": f"What is {n} + 1 ?", "label": {"text": str(n + 1)}, "origin": "mine"} for n in range(2)]
    source = write_rows(tmp_path / f"rows.{suffix}", rows)
    found = run(tmp_path / "out", source, "--columns", "prompt=query", "answer=label.text", "data_source=origin")
    assert [(p.question, p.answer) for p in found] == [("What is 0 + 1 ?", "1"), ("What is 1 + 1 ?", "2")]
    assert {p.id.partition("-")[0] for p in found} == {"mine"}
    with pytest.raises(
        ValueError, match=r"no column 'prompt'; it has query, label, origin; name the columns: --columns"
    ):
        run(tmp_path / "other", source)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--schema", "easyr2"], "schema 'easyr2' is not one of .*did you mean 'easyr1'"),
        (["--columns", "promt=a"], "columns 'promt=a': expected FIELD=NAME.*did you mean 'prompt'"),
        (["--columns", "prompt"], "columns 'prompt': expected FIELD=NAME"),
        (["--columns", "prompt=a", "prompt=b"], "a second name for prompt"),
    ],
)
def test_names_that_are_none_are_refused(words: list[str], said: str, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "a.jsonl", [{"prompt": "What ?", "reward_model": {"ground_truth": "1"}}])
    with pytest.raises(ValueError, match=said):
        run(tmp_path / "out", source, *words)
    assert not (tmp_path / "out").exists()


def test_a_value_may_be_inside_json_text_and_a_name_may_have_a_dot() -> None:
    assert value_of({"reward_model": '{"ground_truth": "[1, 2]"}'}, "reward_model.ground_truth") == "[1, 2]"
    assert value_of({"reward_model.ground_truth": 5}, "reward_model.ground_truth") == 5
    assert value_of({"reward_model": "no JSON"}, "reward_model.ground_truth") is None
    assert Columns().missing(["prompt", "reward_model.ground_truth"]) == []
    assert read_columns("virl39k", ["images=picture"]).images == "picture"
    assert set(SCHEMAS["verl"].top_level) >= {"prompt", "images", "reward_model", "extra_info", "data_source"}


MESSAGES = [{"role": "system", "content": "Be brief ."}, {"role": "user", "content": "<image>How long ?"}]


@pytest.mark.parametrize(
    ("text", "system"),
    [
        (json.dumps(MESSAGES), "Be brief ."),
        (json.dumps(MESSAGES, indent=2), "Be brief ."),
        (json.dumps(MESSAGES[1]), ""),
        (json.dumps([{"type": "image"}, {"type": "text", "text": "How long ?"}]), ""),
    ],
)
def test_messages_as_json_text_are_parsed(text: str, system: str) -> None:
    asked = read_prompt(text)
    assert (asked.question, asked.num_placeholders, asked.system) == ("How long ?", 1, system)


@pytest.mark.parametrize(
    "text",
    [
        str(MESSAGES),
        json.dumps(MESSAGES)[:-2],
        json.dumps([{"from": "human", "value": "How long ?"}]),
        '[{"role": "user", "content": "a"}, 3]',
    ],
)
def test_messages_as_text_that_cannot_be_read_are_refused_and_are_never_the_question(text: str) -> None:
    with pytest.raises(DefectError) as raised:
        read_prompt(text)
    assert raised.value.reason == "unreadable_row"


@pytest.mark.parametrize("text", ["[1, 2] is which list ?", "{x : x > 2} has how many elements ?", "[] is empty ?"])
def test_a_question_that_begins_with_a_bracket_is_a_question(text: str) -> None:
    assert read_prompt(text).question == text


def test_images_may_be_in_the_messages_parts(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(png(1))
    (tmp_path / "2.png").write_bytes(png(2))
    forms: list[list[dict[str, Any]]] = [
        [{"type": "image", "image": "1.png"}],
        [{"type": "image_url", "image_url": {"url": "1.png"}}],
        [{"type": "image", "path": "1.png"}, {"type": "image", "path": "2.png"}],
    ]
    rows = [
        {
            "prompt": [{"role": "user", "content": [*parts, {"type": "text", "text": f"Which {number} ?"}]}],
            "reward_model": {"ground_truth": str(number)},
        }
        for number, parts in enumerate(forms)
    ]
    rows.append({**rows[0], "images": ["2.png"], "reward_model": {"ground_truth": "9"}})  # a column has precedence
    rows.append(
        {
            "prompt": [{"role": "user", "content": [*forms[0], {"type": "image"}, {"type": "text", "text": "Two ?"}]}],
            "reward_model": {"ground_truth": "8"},
        }
    )
    found = run(tmp_path / "out", write_rows(tmp_path / "a.jsonl", rows))
    assert [(p.answer, len(p.images)) for p in found if p.question != "Which 0 ?"] == [("1", 1), ("2", 2)]
    first, second = (next(p for p in found if p.answer == answer) for answer in ("0", "9"))
    assert first.question == second.question == "Which 0 ?" and first.images != second.images
    assert report(tmp_path / "out")["dropped"]["image_count"]["examples"] == {"a.jsonl#4": "2 <image>, 1 images"}


def test_columns_as_json_text_are_parsed(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(png(1))
    row = {
        "prompt": "<image> How long ?", "images": '["1.png"]', "reward_model": '{"ground_truth": "7"}',
        "extra_info": '{"index": 3}',
    }  # fmt: skip
    (prompt,) = run(tmp_path / "out", write_rows(tmp_path / "a.jsonl", [row]))
    assert (prompt.answer, len(prompt.images)) == ("7", 1)
    assert prompt.meta is not None and prompt.meta["extra"] == {"index": 3}


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (r"\boxed{7}", "7"),
        (r" \boxed{\frac{1}{2}} ", r"\frac{1}{2}"),
        (r"\boxed{1} or \boxed{2}", r"\boxed{1} or \boxed{2}"),
        (r"x = \boxed{7}", r"x = \boxed{7}"),
        (r"\boxed{}", r"\boxed{}"),
        ("7", "7"),
    ],
)
def test_a_box_around_the_whole_answer_is_taken_out(written: str, read: str) -> None:
    assert read_answer(written) == read


def test_rows_without_the_column_are_named_with_the_columns_they_have(tmp_path: Path) -> None:
    whole = {"prompt": "What is 1 + 1 ?", "reward_model": {"ground_truth": "2"}}
    rows = [whole, {"problem": "What ?", "answer": "3"}, {"prompt": None, "reward_model": {"ground_truth": "4"}}]
    run(tmp_path / "out", write_rows(tmp_path / "a.jsonl", rows))
    assert report(tmp_path / "out")["dropped"]["no_question"]["examples"] == {
        "a.jsonl#1": "no 'prompt'; the row has problem, answer",
        "a.jsonl#2": "no 'prompt'; the row has prompt, reward_model",
    }


def test_every_reason_is_printed_with_its_meaning_and_the_option_that_helps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = {"prompt": "What is 1 + 1 ?", "reward_model": {"ground_truth": "2"}}
    rows = [
        whole, {**whole, "prompt": "How long ?", "images": ["gone.png"]},
        {**whole, "prompt": "<image>How long ?", "images": ["gone.png"]}, {**whole, "reward_model": {}}, whole,
    ]  # fmt: skip
    source = write_rows(tmp_path / "a.jsonl", rows)
    run(tmp_path / "out", source)
    said = capsys.readouterr().out
    for reason, name, way_out in (
        ("image_count", "a.jsonl#1", "--allow_missing_placeholders true keeps"),
        ("missing_image", "a.jsonl#2", "--image_root names the folder"),
        ("no_answer", "a.jsonl#3", "--columns answer=NAME"),
        ("duplicate", "a.jsonl#4", ""),
    ):
        (line,) = [line for line in said.splitlines() if line.startswith(f"dropped, {reason}: 1 of the rows")]
        assert f"such as {name}; {DROPPED[reason]}" in line and way_out in line
    with pytest.raises(
        ValueError, match=r"none of 1 rows .*: missing_image 1 \(the image's file does not exist; --image"
    ):
        run(tmp_path / "none", write_rows(tmp_path / "b.jsonl", [rows[2]]))


def test_each_reason_has_a_meaning() -> None:
    assert all(explain(reason).startswith(meaning) for reason, meaning in DROPPED.items())
