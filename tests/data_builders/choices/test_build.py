"""Do the published layouts become prompts, and is it said what was dropped and why?"""

import csv
import json
import pickle
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_builders import build
from data_builders.choices.layouts import find_layout
from data_builders.prompt_sets.prompts import Prompt, read_prompts
from data_builders.validate.command import main as validate


def picture(path: Path, number: int) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (56, 56, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, format="PNG")
    return path.name


def run(output_dir: Path, *sources: Path, **options: Any) -> Path:
    flags = [word for name, value in options.items() for word in (f"--{name}", *map(str, np.atleast_1d(value)))]
    build.main(["choices", "--output-dir", str(output_dir), "--source", *map(str, sources), *flags])
    return output_dir / "data"


def by_row(data: Path, split: str) -> dict[int, Prompt]:
    return {int((prompt.meta or {})["row"].rpartition("#")[2]): prompt for prompt in read_prompts(data, split)}


def dropped(data: Path) -> dict[str, list[str]]:
    report = json.loads((data / "build_report.json").read_text())
    return {reason: list(entry["examples"]) for reason, entry in report["dropped"].items()}


PMC_COLUMNS = (
    "Figure_path", "Question", "Answer", "Choice A", "Choice B", "Choice C", "Choice D", "Answer_label",
)  # fmt: skip
UPTAKE = ("A:Diffuse uptake", "B:Focal uptake", "C:No uptake", "D:Cannot determine")


def write_pmc(path: Path, rows: Sequence[Sequence[str]], columns: Sequence[str] = PMC_COLUMNS) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerows([columns, *rows])
    return path


def test_pmc_vqa(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [picture(tmp_path / "images" / f"PMC{number}_F1.jpg", number) for number in range(3)]
    ask = "What is the uptake, in words\nor more?"
    train = [
        (names[0], ask, "Focal uptake", *UPTAKE, "B"),
        (names[1], ask, "B:Focal uptake", *UPTAKE, "B"),
        (names[0], ask, "Focal uptake", *UPTAKE, "C"),
        (names[0], "Which?", "Something else", *UPTAKE, ""),
        (names[0], "Equal?", "Same", "A:Same", "B:same", "C:x", "D:y", "A"),
        ("PMC9_F9.jpg", "Missing?", "Focal uptake", *UPTAKE, "B"),
        (names[0], ask, "Focal uptake", *UPTAKE, "B"),
        (names[0], "Two options?", "No", "A: Yes", "B: No", "", "", "B"),
    ]
    write_pmc(tmp_path / "train.csv", train)
    write_pmc(tmp_path / "test.csv", [(names[2], ask, "No uptake", *UPTAKE, "C")])
    data = run(tmp_path / "out", tmp_path / "train.csv", tmp_path / "test.csv")
    prompts = by_row(data, "rl")
    assert set(prompts) == {0, 1, 7}
    assert prompts[0].choices == ("Diffuse uptake", "Focal uptake", "No uptake", "Cannot determine")
    assert (prompts[0].answer, prompts[0].answer_kind, prompts[1].answer) == ("Focal uptake", "choice", "Focal uptake")
    assert "(B) Focal uptake\n" in prompts[0].question and prompts[0].question.startswith(
        "What is the uptake, in words"
    )
    assert prompts[7].choices == ("Yes", "No")
    assert [prompt.answer for prompt in read_prompts(data, "test")] == ["No uptake"]
    assert dropped(data) == {
        "wrong_options": ["train.csv#4"],
        "answer_not_an_option": ["train.csv#3"],
        "conflicting_label": ["train.csv#2"],
        "missing_image": ["train.csv#5"],
        "duplicate": ["train.csv#6"],
    }
    assert "dropped, missing_image: 1 of the rows, such as train.csv#5" in capsys.readouterr().out
    validate([str(data)])
    shuffled = by_row(run(tmp_path / "other", tmp_path / "train.csv", shuffle_options=True, seed=3), "rl")
    assert {prompt.answer for prompt in shuffled.values()} == {"Focal uptake", "No"}
    assert any(shuffled[row].choices != prompts[row].choices for row in shuffled)
    again = run(tmp_path / "again", tmp_path / "train.csv", tmp_path / "test.csv")
    assert {path.relative_to(again): path.read_bytes() for path in again.rglob("*") if path.is_file()} == {
        path.relative_to(data): path.read_bytes() for path in data.rglob("*") if path.is_file()
    }


def test_pmc_vqa_of_version_2_and_copies_on_the_hub() -> None:
    assert (
        find_layout(["", "Figure_path", "Caption", "Question", "Choice A", "Choice B", "Answer", "split"]) == "pmc_vqa"
    )
    assert find_layout(["image", "question", "Anwser", "choice a", "choice b", "answer label"]) == "pmc_vqa"
    assert find_layout(["image", "question", "answer"]) == "question"
    assert find_layout(["picture", "question", "answer"]) is None


def slake_row(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "img_id": number, "img_name": f"xmlab{number}/source.jpg", "question": "Does the picture contain liver?",
        "answer": "Yes", "q_lang": "en", "location": "Abdomen", "modality": "CT", "answer_type": "CLOSED",
        "base_type": "vqa", "content_type": "Organ", "triple": ["vhead", "_", "_"], "qid": number,
    } | changes  # fmt: skip


def test_slake(tmp_path: Path) -> None:
    for number in range(2):
        picture(tmp_path / "imgs" / f"xmlab{number}" / "source.jpg", number)
    rows = [
        slake_row(0),
        slake_row(0, question="图像中有肝脏吗？", answer="有", q_lang="zh"),
        slake_row(0, question="What modality is used?", answer="CT", answer_type="OPEN"),
    ]
    (tmp_path / "train.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    (tmp_path / "validation.json").write_text(json.dumps([slake_row(1, answer="No")]))
    tables = (tmp_path / "train.json", tmp_path / "validation.json")
    data = run(tmp_path / "out", *tables)
    (prompt,) = read_prompts(data, "rl")
    assert (prompt.answer, prompt.answer_kind, prompt.choices) == ("yes", "yes_no", ())
    assert {"modality": "CT", "location": "Abdomen", "content_type": "Organ", "qid": 0}.items() <= (
        prompt.meta or {}
    ).items()
    assert [each.answer for each in read_prompts(data, "validation")] == ["no"]
    assert dropped(data) == {"other_language": ["train.json#1"], "open_answer": ["train.json#2"]}
    kept = by_row(run(tmp_path / "open", *tables, keep_open=True), "rl")
    assert (kept[2].answer, kept[2].answer_kind) == ("CT", "text")


def test_vqa_rad_keeps_the_split_of_its_rows_and_says_which_pictures_are_in_both(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(2):
        picture(tmp_path / "VQA_RAD Image Folder" / f"synpic{number}.jpg", number)
    rows = [
        {"qid": number, "phrase_type": phrase, "image_name": f"synpic{number % 2}.jpg", "image_organ": "CHEST",
         "question": f"is there an effusion on side {number}?", "question_type": "PRES", "answer": answer,
         "answer_type": "CLOSED "}
        for number, (phrase, answer) in enumerate(
            [("freeform", "Yes"), ("para", "no"), ("test_freeform", "No"), ("freeform", 3)]
        )
    ]  # fmt: skip
    table = tmp_path / "VQA_RAD Dataset Public.json"
    table.write_text(json.dumps(rows))
    data = run(tmp_path / "out", table)
    assert (set(by_row(data, "rl")), set(by_row(data, "test"))) == ({0, 1}, {2})
    assert by_row(data, "rl")[0].meta == {
        "row": f"{table.name}#0", "data_source": table.name, "organ": "CHEST", "question_type": "PRES",
        "phrase_type": "freeform", "qid": 0,
    }  # fmt: skip
    assert "1 training prompts show a picture of a held-out split, and are kept" in capsys.readouterr().out
    with pytest.raises(RuntimeError, match="1 defects of 1 kinds"):
        validate([str(data)])
    assert set(by_row(run(tmp_path / "apart", table, drop_shared=True), "rl")) == {1}


def test_path_vqa_as_parquet_and_as_pickle(tmp_path: Path) -> None:
    buffer = BytesIO()
    Image.fromarray(np.full((56, 56, 3), 9, np.uint8)).save(buffer, "PNG")
    rows = [
        {"image": {"bytes": buffer.getvalue(), "path": None}, "question": "is it granular?", "answer": "yes"},
        {"image": {"bytes": buffer.getvalue(), "path": None}, "question": "what is it?", "answer": "a cell"},
        {"image": {"bytes": b"none", "path": None}, "question": "is it red?", "answer": "no"},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train-00000-of-00001.parquet")
    picture(tmp_path / "images" / "val" / "val_0261.jpg", 1)
    pickled = [{"image": "val_0261", "question": "are nuclei lost?", "answer": "no"}]
    (tmp_path / "val_qa.pkl").write_bytes(pickle.dumps(pickled))
    data = run(tmp_path / "out", tmp_path / "train-00000-of-00001.parquet", tmp_path / "val_qa.pkl")
    assert list(by_row(data, "rl")) == [0] and [each.answer for each in read_prompts(data, "validation")] == ["no"]
    assert set(dropped(data)) == {"open_answer", "broken_image"}
    (tmp_path / "test_qa.pkl").write_bytes(pickle.dumps([{"image": Path("x"), "question": "?", "answer": "no"}]))
    with pytest.raises(ValueError, match="not a pickled list of plain mappings"):
        run(tmp_path / "refused", tmp_path / "test_qa.pkl")


@pytest.mark.parametrize("kind", ["I;16", "I", "F"])
def test_deep_pictures_keep_their_range_or_show_the_window(kind: str, tmp_path: Path) -> None:
    values = np.linspace(-1000, 1000, 56 * 56).reshape(56, 56) if kind != "I;16" else None
    values = np.linspace(0, 4095, 56 * 56).reshape(56, 56) if values is None else values
    pixels = np.rint(values).astype({"I;16": np.uint16, "I": np.int32, "F": np.float32}[kind])
    Image.fromarray(pixels).save(tmp_path / "scan.tif")
    rows = [{"image": "scan.tif", "question": "is it CT?", "answer": "yes"}]
    (tmp_path / "train.json").write_text(json.dumps(rows))

    def shown(name: str, **options: Any) -> np.ndarray:
        data = run(tmp_path / name, tmp_path / "train.json", **options)
        return np.asarray(Image.open(data / read_prompts(data, "rl")[0].images[0]))[..., 0].astype(int)

    low, high = pixels.min(), pixels.max()
    whole = np.rint((pixels.astype(float) - low) / (high - low) * 255)
    assert np.abs(shown("whole") - whole).max() <= 1
    windowed = np.rint(np.clip((pixels.astype(float) + 160) / 400, 0, 1) * 255)
    assert np.abs(shown("window", window=[-160, 240]) - windowed).max() <= 1


REFUSED = {
    "columns": ("train.json", '[{"picture": 1}]', "has the columns picture; expected those of pmc_vqa"),
    "no list": ("train.json", '{"rows": []}', "is a dict; expected a list of objects"),
    "no JSON": ("train.json", "[{", "not readable as JSON"),
    "empty": ("train.csv", "", "holds no rows"),
    "no Parquet": ("train.parquet", "none", "not readable as Parquet"),
    "other file": ("train.txt", "x", "is not a file of .csv"),
    "all dropped": (
        "train.json",
        '[{"image": "x.png", "question": "what?", "answer": "a cell"}]',
        "open_answer 1 (a free",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_such_table_is_refused_in_a_line(case: str, tmp_path: Path) -> None:
    name, content, expected = REFUSED[case]
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError) as error:
        run(tmp_path / "out", tmp_path / name)
    assert expected in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out" / "data").exists()
    with pytest.raises(ValueError, match="window is"):
        run(tmp_path / "out", tmp_path / name, window=[5, 1])
