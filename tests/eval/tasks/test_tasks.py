"""Named benchmarks as tasks: their rows in the hub's own columns, their images, their golds, and what is refused."""

import json
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_builders.prompt_sets.prompts import Prompt, prompts_fingerprint, write_prompts
from eval.grading import CORRECT, INCORRECT, grade
from eval.tasks import TASKS, open_task
from eval.tasks.mathverse import listed_choices
from tracking.command import REPOSITORY_ROOT

SHARED = REPOSITORY_ROOT.parent / "shared" / "data"


def published(name: str) -> Path:
    if not (SHARED / name).is_file():
        pytest.skip(f"{SHARED / name} is not here: the published problems are no part of the repository")
    return SHARED / name


def picture(seed: int, size: tuple[int, int] = (37, 23)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    data = BytesIO()
    image.save(data, format=kind)
    return data.getvalue()


def mathvista_row(number: int, **changes: Any) -> dict[str, Any]:
    """A row in the columns of AI4Math/MathVista, without its image."""
    metadata = {
        "category": "general-vqa", "context": "photo", "grade": "not applicable", "img_height": 23, "img_width": 37,
        "language": "english", "skills": ["counting"], "source": "own", "split": "testmini", "task": "vqa",
    }  # fmt: skip
    return {
        "pid": str(number), "question": f"How many are there in {number} ?", "image": f"images/{number}.png",
        "choices": None, "unit": None, "precision": None, "answer": str(number), "question_type": "free_form",
        "answer_type": "integer", "metadata": metadata, "query": "",
    } | changes  # fmt: skip


def mathvision_row(number: int, **changes: Any) -> dict[str, Any]:
    """A row in the columns of MathLLMs/MathVision."""
    return {
        "id": str(number), "question": f"Which one is it in {number}?\n<image1>", "options": [], "answer": "7",
        "image": f"images/{number}.png", "solution": None, "level": 2, "subject": "counting",
    } | changes  # fmt: skip


def mathverse_row(number: int, **changes: Any) -> dict[str, Any]:
    """A row in the columns of AI4Math/MathVerse."""
    question = "Angle A is 80. How large is B?\nChoices:\nA:40°\nB:60°\nC:120°"
    return {
        "sample_index": str(number), "problem_index": str(number // 5), "problem_version": "Text Dominant",
        "question": question, "image": f"images/{number}.png", "answer": "B", "question_type": "multi-choice",
        "metadata": {"split": "testmini", "source": "own", "subject": "Plane Geometry", "subfield": "Angle"},
        "query_wo": "", "query_cot": "", "question_for_eval": question,
    } | changes  # fmt: skip


def write_parquet(path: Path, rows: list[dict[str, Any]], column: str, kind: str = "PNG") -> Path:
    """Writes rows as the hub has them: with an image feature, its bytes in the file."""
    from datasets import Dataset
    from datasets import Image as ImageFeature

    path.parent.mkdir(parents=True, exist_ok=True)
    filled = [row | {column: {"bytes": encoded(picture(n), kind), "path": None}} for n, row in enumerate(rows)]
    Dataset.from_list(filled).cast_column(column, ImageFeature()).to_parquet(path)
    return path


def write_json(path: Path, rows: list[dict[str, Any]], *, images: bool = True) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({str(number): row for number, row in enumerate(rows)}))
    for number, row in enumerate(rows if images else []):
        (path.parent / row["image"]).parent.mkdir(exist_ok=True)
        picture(number).save(path.parent / row["image"])
    return path


def prompts(name: str, tmp_path: Path, **options: Any) -> list[Prompt]:
    return open_task(name, cache_dir=tmp_path / "cache", **options).prompts


def only(name: str, tmp_path: Path, **options: Any) -> Prompt:
    (prompt,) = prompts(name, tmp_path, **options)
    return prompt


def status(prompt: Prompt, answer: str) -> str:
    return grade(
        f"<answer>{answer}</answer>", prompt.answer, prompt.answer_kind, prompt.choices, prompt.precision
    ).status


def test_mathvista_testmini_measures_vision_and_vision_to_reasoning_and_every_gold_is_right(tmp_path: Path) -> None:
    found = prompts(f"mathvista:{published('mathvista_testmini.json')}", tmp_path, with_images=False)
    assert Counter(prompt.ability for prompt in found) == {"vision": 460, "vision-to-reasoning": 540}
    assert Counter(prompt.answer_kind for prompt in found) == {"choice": 540, "number": 458, "list": 2}
    assert all(status(prompt, prompt.answer) == CORRECT for prompt in found)
    assert len({prompt.id for prompt in found}) == 1000


@pytest.mark.parametrize(("name", "num_prompts"), [("gsm8k", 1319), ("math500", 500)])
def test_sets_of_text_are_whole(name: str, num_prompts: int, tmp_path: Path) -> None:
    task = open_task(f"{name}:{published(f'{name}_test.jsonl')}", cache_dir=tmp_path)
    assert len(task.prompts) == num_prompts
    assert {prompt.ability for prompt in task.prompts} == {"reasoning"}


def test_what_the_form_of_an_answer_depends_on_stands_in_mathvistas_question(tmp_path: Path) -> None:
    rows = [
        mathvista_row(1, unit="years"),
        mathvista_row(2, answer_type="float", precision=2.0, answer="0.25"),
        mathvista_row(3, answer_type="list", answer="[1, 2]"),
        mathvista_row(4, question_type="multi_choice", answer_type="text", choices=["left", "right"], answer="right"),
    ]
    whole, decimal, several, choice = prompts(f"mathvista:{write_json(tmp_path / 'a.json', rows)}", tmp_path)
    assert whole.question == "How many are there in 1 ? (unit: years)\nAnswer with a whole number."
    assert status(whole, "1 years") == CORRECT
    assert decimal.question.endswith("\nAnswer with a number, given to 2 decimal places.")
    assert (status(decimal, "0.2501"), status(decimal, "0.26")) == (CORRECT, INCORRECT)
    assert several.answer_kind == "list"
    assert choice.question.endswith("\nChoices:\n(A) left\n(B) right\nAnswer with the letter of the right choice.")
    assert (status(choice, "B"), status(choice, "right"), status(choice, "A")) == (CORRECT, CORRECT, INCORRECT)


def test_rows_of_the_hub_and_a_copy_with_files_of_images_are_the_same_questions_and_pixels(tmp_path: Path) -> None:
    rows = [mathvista_row(number) for number in range(20)]
    hub = open_task(
        f"mathvista:{write_parquet(tmp_path / 'a.parquet', rows, 'decoded_image')}", cache_dir=tmp_path / "c"
    )
    copy = open_task(f"mathvista:{write_json(tmp_path / 'copy' / 'testmini.json', rows)}", cache_dir=tmp_path / "c")
    assert [(p.id, p.question, p.answer) for p in hub.prompts] == [(p.id, p.question, p.answer) for p in copy.prompts]
    for number, (ours, theirs) in enumerate(zip(hub.prompts, copy.prompts, strict=True)):
        for task, prompt in ((hub, ours), (copy, theirs)):
            with Image.open(task.directory / prompt.images[0]) as image:
                assert np.array_equal(np.asarray(image), np.asarray(picture(number)))
    assert hub.facts["num_images"] == copy.facts["num_images"] == 20


def test_images_may_stand_beside_the_folder_of_the_file(tmp_path: Path) -> None:
    write_json(tmp_path / "testmini.json", [mathvista_row(1)])
    (tmp_path / "data").mkdir()
    (tmp_path / "testmini.json").rename(tmp_path / "data" / "testmini.json")
    task = open_task(f"mathvista:{tmp_path / 'data'}", cache_dir=tmp_path / "cache")
    assert (task.directory / task.prompts[0].images[0]).is_file()


def test_missing_images_are_counted_and_named(tmp_path: Path) -> None:
    path = write_json(tmp_path / "testmini.json", [mathvista_row(number) for number in range(3)])
    (tmp_path / "images" / "1.png").unlink()
    with pytest.raises(
        ValueError, match=r"1 of 3 images are missing, the first is .*1\.png; unpack images\.zip .*MathVista"
    ):
        open_task(f"mathvista:{path}", cache_dir=tmp_path / "cache")
    assert len(prompts(f"mathvista:{path}", tmp_path, with_images=False)) == 3


def test_transparent_pictures_are_laid_on_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    rows = [mathvista_row(1, decoded_image={"bytes": encoded(image), "path": None})]
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    task = open_task(f"mathvista:{tmp_path / 'a.parquet'}", cache_dir=tmp_path / "cache")
    with Image.open(task.directory / task.prompts[0].images[0]) as stored:
        assert stored.mode == "RGB"
        assert stored.getcolors() == [(64, (255, 255, 255))]


def test_a_letter_of_mathvision_stands_for_the_option_in_its_place_whatever_the_texts_are(tmp_path: Path) -> None:
    options = ["E", "D", "C", "B", "A"]
    prompt = only(
        f"mathvision:{write_json(tmp_path / 'a.json', [mathvision_row(1, options=options, answer='A')])}", tmp_path
    )
    assert prompt.answer == "E"
    prompt = only(
        f"mathvision:{write_json(tmp_path / 'a.json', [mathvision_row(1, options=list('ABCDE'), answer='D')])}",
        tmp_path,
    )
    assert "\nChoices: A, B, C, D, E\n" in prompt.question
    assert (status(prompt, "D"), status(prompt, "(D)"), status(prompt, "E")) == (CORRECT, CORRECT, INCORRECT)
    row = mathvision_row(1, options=["GDA", "ADG", "GAD", "GAG"], answer="D")
    prompt = only(f"mathvision:{write_json(tmp_path / 'a.json', [row])}", tmp_path)
    assert (prompt.answer, status(prompt, "D"), status(prompt, "GDA")) == ("GAG", CORRECT, INCORRECT)
    with pytest.raises(ValueError, match=r"answer is 'F'; expected one of A, B, C, D"):
        prompts(f"mathvision:{write_json(tmp_path / 'a.json', [row | {'answer': 'F'}])}", tmp_path)


@pytest.mark.parametrize(
    ("gold", "kind", "right", "wrong"),
    [
        ("140", "number", "140", "14"),
        ("2.5", "number", "5/2", "2.05"),
        ("C", "choice", "(C)", "B"),
        (r"\frac{3\sqrt{3}}{2}", "math", r"\frac{3}{2}\sqrt{3}", r"\frac{3}{2}"),
        ("y=2x+1", "math", "y = 1 + 2x", "y=2x"),
        ("isosceles", "text", "Isosceles.", "equilateral"),
    ],
)  # fmt: skip
def test_free_answers_are_graded_by_what_the_gold_is(
    gold: str, kind: str, right: str, wrong: str, tmp_path: Path
) -> None:
    for name, row in (
        ("mathvision", mathvision_row(1, answer=gold)),
        ("mathverse", mathverse_row(1, question="How much?", question_type="free-form", answer=gold)),
    ):
        prompt = only(f"{name}:{write_json(tmp_path / f'{name}.json', [row])}", tmp_path)
        assert prompt.answer_kind == kind
        assert (status(prompt, right), status(prompt, wrong)) == (CORRECT, INCORRECT)


def test_the_test_split_of_mathvision_and_testmini_lie_in_one_folder_and_do_not_mix(tmp_path: Path) -> None:
    write_parquet(
        tmp_path / "data" / "test-00000-of-00001-a.parquet", [mathvision_row(n) for n in range(5)], "decoded_image"
    )
    write_parquet(tmp_path / "data" / "testmini-00000-of-00001-b.parquet", [mathvision_row(2)], "decoded_image")
    assert len(prompts(f"mathvision:{tmp_path}", tmp_path)) == 5
    assert only(f"mathvision-testmini:{tmp_path}", tmp_path).id == "2"


def test_the_versions_of_a_problem_of_mathverse_are_a_cluster_and_vision_only_asks_what_the_figure_asks(
    tmp_path: Path,
) -> None:
    versions = ["Text Dominant", "Text Lite", "Vision Intensive", "Vision Dominant", "Vision Only"]
    rows = [
        mathverse_row(n, problem_version=version, **({"question": ""} if version == "Vision Only" else {}))
        for n, version in enumerate(versions)
    ]
    found = prompts(f"mathverse:{write_parquet(tmp_path / 'testmini.parquet', rows, 'image')}", tmp_path)
    assert [prompt.meta["version"] for prompt in found if prompt.meta] == versions
    assert {prompt.meta["cluster"] for prompt in found if prompt.meta} == {"0"}
    assert {prompt.choices for prompt in found} == {("40°", "60°", "120°")}
    assert (
        found[-1].question
        == "Answer the question that stands in the image.\nAnswer with the letter of the right choice."
    )
    for prompt in found:
        assert (status(prompt, "B"), status(prompt, "60"), status(prompt, "40°")) == (CORRECT, CORRECT, INCORRECT)


@pytest.mark.parametrize(
    ("question", "choices"),
    [
        ("Find x.\nChoices:\nA: $2 x$\nB: a line\nthat goes on\nC.3", ("$2 x$", "a line\nthat goes on", "3")),
        ("Find x.\nChoice:\n(A) 1\n(B) 2", ("1", "2")),
        ("Find x.\nChoices:\nA:1\nC:2", ()),
        ("Find x.\nChoices:\nA:1\nB:", ()),
        ("In triangle A: 3, B: 4. Find x.", ()),
    ],
)
def test_options_are_read_from_a_question_where_they_are_listed_whole(question: str, choices: tuple[str, ...]) -> None:
    assert listed_choices(question) == choices


def test_a_choice_whose_options_cannot_be_read_is_known_by_its_letter(tmp_path: Path) -> None:
    row = mathverse_row(1, question="Find x.", question_for_eval="Find x.")
    prompt = only(f"mathverse:{write_json(tmp_path / 'a.json', [row])}", tmp_path)
    assert (prompt.answer, prompt.choices, prompt.answer_kind) == ("B", (), "choice")
    assert (status(prompt, "B"), status(prompt, "C")) == (CORRECT, INCORRECT)


def test_a_benchmark_is_read_from_the_hub_at_the_commit_its_module_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    cached = tmp_path / "hub" / "datasets--AI4Math--MathVista" / "snapshots"
    other = "0123456789abcdef0123456789abcdef01234567"
    for commit, num_rows in ((TASKS["mathvista"].revision, 3), (other, 2)):
        rows = [mathvista_row(number) for number in range(num_rows)]
        write_parquet(cached / commit / "data" / "testmini-00000-of-00001-7.parquet", rows, "decoded_image")
        write_parquet(cached / commit / "data" / "test-00000-of-00002-6.parquet", rows, "decoded_image")
    task = open_task("mathvista", cache_dir=tmp_path / "cache")
    assert len(task.prompts) == 3
    assert task.facts["source"] == f"AI4Math/MathVista@{TASKS['mathvista'].revision}"
    assert len(prompts(f"mathvista@{other}", tmp_path)) == 2
    with pytest.raises(
        ValueError, match=r"dataset openai/gsm8k@\w+ is not a local folder and not completely in the cache"
    ):
        open_task("gsm8k", cache_dir=tmp_path / "cache")


def test_a_task_has_another_fingerprint_when_a_word_or_a_pixel_is_another(tmp_path: Path) -> None:
    def fingerprint() -> str:
        return open_task(f"mathvista:{tmp_path / 'a.json'}", cache_dir=tmp_path / "cache").fingerprint

    write_json(tmp_path / "a.json", [mathvista_row(1), mathvista_row(2)])
    first = fingerprint()
    assert fingerprint() == first
    picture(99).save(tmp_path / "images" / "2.png")
    second = fingerprint()
    write_json(tmp_path / "a.json", [mathvista_row(1), mathvista_row(2, answer="3")])
    assert len({first, second, fingerprint()}) == 3


def test_a_pixel_inside_of_a_row_counts_too(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    found = set()
    for seed in (1, 1, 2):
        row = mathvista_row(1) | {"decoded_image": {"bytes": encoded(picture(seed)), "path": "1.png"}}
        pq.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
        found.add(open_task(f"mathvista:{tmp_path / 'a.parquet'}", cache_dir=tmp_path / "cache").fingerprint)
    assert len(found) == 2


def test_several_processes_may_open_one_task_at_once(tmp_path: Path) -> None:
    rows = [mathvista_row(number) for number in range(30)]
    path = write_parquet(tmp_path / "a.parquet", rows, "decoded_image", "JPEG")
    with ThreadPoolExecutor(4) as pool:
        tasks = list(pool.map(lambda _: open_task(f"mathvista:{path}", cache_dir=tmp_path / "cache"), range(4)))
    assert len({task.fingerprint for task in tasks}) == 1
    assert len(list((tmp_path / "cache" / "mathvista" / "images").iterdir())) == 30


def test_a_stored_picture_that_was_deleted_is_stored_again(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", [mathvista_row(1)], "decoded_image")
    first = open_task(f"mathvista:{path}", cache_dir=tmp_path / "cache")
    shutil.rmtree(first.directory / "images")
    assert open_task(f"mathvista:{path}", cache_dir=tmp_path / "cache").fingerprint == first.fingerprint


def test_a_prompt_set_is_a_task_under_the_name_of_its_split(tmp_path: Path) -> None:
    write_prompts(
        tmp_path, "test", [Prompt(id="a", ability="reasoning", question="1 + 1", answer="2", answer_kind="number")]
    )
    task = open_task(f"{tmp_path}:test", cache_dir=tmp_path / "cache")
    assert (task.name, len(task.prompts), task.directory) == ("test", 1, tmp_path)
    assert task.fingerprint == prompts_fingerprint(tmp_path, "test")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"metadata": {"category": "vqa"}}, "row 1: category is 'vqa'; expected one of general-vqa, math-targeted-vqa"),
        ({"metadata": {"task": "vqa"}}, "row 1: 'category' is missing"),
        ({"answer": ""}, "row 1: prompt '1': answer is ''"),
        ({"image": None}, "mathvista 1: no image in decoded_image or image"),
        (
            {"decoded_image": {"bytes": b"\x89PNG\r\n\x1a\ncut", "path": None}},
            "mathvista 1: the image cannot be decoded",
        ),
        ({"precision": "some"}, "row 1: invalid literal"),
    ],
)
def test_a_damaged_row_is_named(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist([mathvista_row(1) | changes]), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=said):
        open_task(f"mathvista:{tmp_path / 'a.parquet'}", cache_dir=tmp_path / "cache")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.json", "[{", "a.json: not JSON"),
        ("a.json", "3", "contains a int; expected a list of rows"),
        ("a.json", "[[1]]", "row 1: a list; expected a row"),
        ("a.json", "[]", "is empty; expected the problems of mathvista"),
        ("a.jsonl", '{"pid": "1"}', "has no column 'question'; a row has pid"),
        ("a.jsonl", "{}\n{", "a.jsonl has no column 'pid'"),
        ("a.parquet", "PAR1", "a.parquet is not readable as Parquet"),
        ("a.txt", "", "a.txt is none of .parquet, .jsonl, .json"),
    ],
)
def test_a_damaged_file_is_named(name: str, content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=said):
        open_task(f"mathvista:{tmp_path / name}", cache_dir=tmp_path / "cache")


def test_one_problem_twice_is_refused(tmp_path: Path) -> None:
    path = write_json(tmp_path / "a.json", [mathvista_row(1), mathvista_row(1)])
    with pytest.raises(ValueError, match="id '1' appears twice"):
        open_task(f"mathvista:{path}", cache_dir=tmp_path / "cache")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mathvsta", r"task 'mathvsta' is unknown; .*did you mean 'mathvista'\?"),
        (
            "mathvista:nowhere",
            "nowhere does not exist; expected a file or folder with the problems of AI4Math/MathVista",
        ),
        ("mathvista@main:a.json", "names a revision and a copy; name one of them"),
    ],
)
def test_a_task_that_is_none_is_said_in_one_line(name: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        open_task(name, cache_dir=tmp_path)


def test_a_folder_without_the_benchmarks_files_is_told_their_names(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"contains none of testmini\.parquet, testmini\.json; name the file, or download"
    ):
        open_task(f"mathverse:{tmp_path}", cache_dir=tmp_path)
