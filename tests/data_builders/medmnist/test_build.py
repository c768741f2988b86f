"""Do all twelve 2D sets in their published layouts become prompts that agree with the labels in the file?"""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_builders import build
from data_builders.medmnist.pictures import encode_png
from data_builders.medmnist.sets import SETS, Labels
from data_builders.prompt_sets.prompts import Prompt, read_prompts
from data_builders.validate.command import main as validate
from eval.grading import CORRECT, grade
from tests.data_builders.medmnist.archives import RGB_SETS, medmnist_arrays, write_medmnist

SPLITS = {"train": "rl", "val": "validation", "test": "test"}


def run(output_dir: Path, *sources: Path, **options: Any) -> Path:
    flags = [word for name, value in options.items() for word in (f"--{name}", *map(str, np.atleast_1d(value)))]
    build.main(["medmnist", "--output-dir", str(output_dir), "--source", *map(str, sources), *flags])
    return output_dir / "data"


def product(data: Path) -> dict[str, bytes]:
    return {str(path.relative_to(data)): path.read_bytes() for path in sorted(data.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def all_sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """All sets at 28 pixels, two of them stored without compression, and the prompts about them."""
    folder = tmp_path_factory.mktemp("medmnist")
    for number, name in enumerate(SETS):
        write_medmnist(folder, name, stored=number < 2)
    np.savez(folder / "organmnist3d.npz", train_images=np.zeros((1, 28, 28, 28), np.uint8))
    data = run(folder / "out", folder, forms=["choice", "yes_no"], balance=False)
    return folder, data


def label_of(prompt: Prompt, arrays: dict[str, np.ndarray]) -> set[str]:
    """The names of the labels that the file gives the picture of a prompt."""
    assert prompt.meta is not None
    medical_set = SETS[prompt.meta["set"]]
    label = arrays[f"{prompt.meta['split']}_labels"][prompt.meta["index"]]
    numbers = np.flatnonzero(label) if medical_set.labels == Labels.FINDINGS else label
    return {medical_set.names[number] for number in numbers}


@pytest.mark.parametrize("name", SETS)
def test_prompts_say_what_the_file_says(name: str, all_sets: tuple[Path, Path]) -> None:
    _, data = all_sets
    arrays, medical_set = medmnist_arrays(name), SETS[name]
    for split, own in SPLITS.items():
        prompts = [prompt for prompt in read_prompts(data, own) if (prompt.meta or {})["set"] == name]
        assert {prompt.answer_kind for prompt in prompts} == {"choice", "yes_no"}
        for prompt in prompts:
            assert prompt.meta is not None
            assert (prompt.meta["split"], prompt.meta["modality"]) == (split, medical_set.modality)
            applies = label_of(prompt, arrays)
            findings = prompt.meta.get("findings")
            assert findings is None if medical_set.labels != Labels.FINDINGS else set(findings) == applies
            if prompt.answer_kind == "choice":
                assert [option for option in prompt.choices if option in applies] == [prompt.answer]
                assert prompt.meta["class"] == prompt.answer
                assert all(
                    f"({letter}) {text}" in prompt.question
                    for letter, text in zip("ABCDEFGHIJ", prompt.choices, strict=False)
                )
                if medical_set.labels == Labels.GRADES:
                    assert prompt.choices == medical_set.names
                else:
                    assert len(prompt.choices) == min(4, len(medical_set.names))
            else:
                named = [each for each in medical_set.names if f"“{each}”" in prompt.question]
                named = named or [each for each in medical_set.names if f"grade {each}?" in prompt.question]
                assert (prompt.answer == "yes") == (named[0] in applies)
        shown = np.asarray(Image.open(data / prompts[0].images[0]))
        assert (prompts[0].meta or {})["index"] == int(Path(prompts[0].images[0]).stem)
        assert np.array_equal(shown, arrays[f"{split}_images"][(prompts[0].meta or {})["index"]])
        assert shown.shape == ((28, 28, 3) if name in RGB_SETS else (28, 28))
    unbalanced = {"choice": len(arrays["train_labels"]), "yes_no": len(arrays["train_labels"])}
    if medical_set.labels == Labels.FINDINGS:
        unbalanced["choice"] = int(arrays["train_labels"].sum())
    prompts = [prompt for prompt in read_prompts(data, "rl") if (prompt.meta or {})["set"] == name]
    assert Counter(prompt.answer_kind for prompt in prompts) == unbalanced


def test_validate_accepts_the_set_and_names_what_is_wrong_with_a_changed_one(
    all_sets: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, data = all_sets
    validate([str(data.parent)])
    assert "no defects in 1 set of" in capsys.readouterr().out
    report = json.loads((data / "build_report.json").read_text())
    assert report["not_read"] == ["organmnist3d.npz"]
    assert report["sets"]["chestmnist"]["splits"]["rl"]["without_findings"] == 3
    single = run(tmp_path / "one", folder / "breastmnist.npz")
    prompts = [json.loads(line) for line in (single / "test.jsonl").read_text().splitlines()]
    prompts[0]["answer"] = "cyst"
    train = json.loads((single / "rl.jsonl").read_text().splitlines()[0])["images"][0]
    (single / prompts[1]["images"][0]).write_bytes((single / train).read_bytes())
    (single / prompts[2]["images"][0]).write_bytes(b"none")
    (single / "test.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    with pytest.raises(RuntimeError, match=r"6 defects of 4 kinds"):
        validate([str(single)])
    written = capsys.readouterr().out
    assert all(kind in written for kind in ("wrong_answer", "shared_picture", "broken_picture", "changed_file"))


def test_the_same_seed_gives_the_same_bytes_with_any_number_of_threads(
    all_sets: tuple[Path, Path], tmp_path: Path
) -> None:
    folder, _ = all_sets
    source = folder / "dermamnist.npz"
    one = product(run(tmp_path / "one", source, num_threads=1))
    assert one == product(run(tmp_path / "two", source, num_threads=3))
    other = product(run(tmp_path / "other", source, seed=1))
    assert other["rl.jsonl"] != one["rl.jsonl"]


def test_balance_asks_about_each_class_as_often_as_about_the_rarest(tmp_path: Path) -> None:
    arrays = medmnist_arrays("octmnist", per_class=6)
    arrays["train_labels"][:] = 3
    arrays["train_labels"][:14] = np.repeat([[0], [1], [2]], [4, 4, 6], axis=0)
    np.savez_compressed(tmp_path / "octmnist.npz", **arrays)  # type: ignore[arg-type]
    data = run(tmp_path / "out", tmp_path, forms=["choice", "yes_no"])
    prompts = read_prompts(data, "rl")
    by_class = Counter((prompt.answer_kind, (prompt.meta or {})["class"]) for prompt in prompts)
    assert set(by_class.values()) == {4} and len(by_class) == 8
    assert Counter(prompt.answer for prompt in prompts if prompt.answer_kind == "yes_no") == {"yes": 8, "no": 8}
    capped = read_prompts(run(tmp_path / "capped", tmp_path, per_class=2), "test")
    assert Counter(prompt.answer for prompt in capped) == dict.fromkeys(SETS["octmnist"].names, 2)


def test_responses_name_the_class_and_are_right(tmp_path: Path) -> None:
    for name in ("bloodmnist", "chestmnist"):
        write_medmnist(tmp_path, name, per_class=3)
    forms = ["choice", "yes_no"]
    plain = read_prompts(run(tmp_path / "plain", tmp_path, forms=forms), "rl")
    prompts = read_prompts(run(tmp_path / "out", tmp_path, forms=forms, responses="true"), "rl")
    assert [replace(prompt, response=None) for prompt in prompts] == plain
    for prompt in prompts:
        assert prompt.response is not None and prompt.meta is not None
        graded = grade(prompt.response, prompt.answer, prompt.answer_kind, prompt.choices)
        assert graded.status == CORRECT
        denied = prompt.meta["set"] == "chestmnist" and prompt.answer == "no"
        assert f"<think>{'no ' if denied else ''}{prompt.meta['class']}</think>" in prompt.response


def test_findings_are_asked_about_equally_often_with_as_many_no_as_yes(tmp_path: Path) -> None:
    write_medmnist(tmp_path, "chestmnist", per_class=4)
    prompts = read_prompts(run(tmp_path / "out", tmp_path, forms=["yes_no"]), "rl")
    counts = Counter(((prompt.meta or {})["class"], prompt.answer) for prompt in prompts)
    assert len(counts) == 28 and len(set(counts.values())) == 1


def test_a_training_picture_with_the_pixels_of_a_held_out_one_is_left_out(tmp_path: Path) -> None:
    arrays = medmnist_arrays("pneumoniamnist")
    arrays["train_images"][:2] = arrays["test_images"][:2]
    arrays["val_images"][0] = arrays["test_images"][3]
    np.savez_compressed(tmp_path / "pneumoniamnist.npz", **arrays)  # type: ignore[arg-type]
    data = run(tmp_path / "out", tmp_path, balance=False)
    assert {(p.meta or {})["index"] for p in read_prompts(data, "rl")} == set(range(2, len(arrays["train_images"])))
    assert 0 not in {(p.meta or {})["index"] for p in read_prompts(data, "validation")}
    report = json.loads((data / "build_report.json").read_text())["sets"]["pneumoniamnist"]["splits"]
    assert [report[split]["num_copies_of_held_out"] for split in ("rl", "validation", "test")] == [2, 1, 0]


@pytest.mark.slow
def test_larger_pictures_are_stored_as_published(tmp_path: Path) -> None:
    for name in SETS:
        write_medmnist(tmp_path, name, size=224, per_class=1)
    data = run(tmp_path / "out", tmp_path, balance=False)
    for prompt in read_prompts(data, "test"):
        assert prompt.meta is not None
        arrays = medmnist_arrays(prompt.meta["set"], size=224, per_class=1) if prompt.meta["index"] == 0 else {}
        if arrays:
            assert np.array_equal(np.asarray(Image.open(data / prompt.images[0])), arrays["test_images"][0])
    assert len(list((data / "images").iterdir())) == 12


@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (7, 4, 3), (28, 28, 3)])
def test_a_png_has_the_same_pixels(shape: tuple[int, ...]) -> None:
    from io import BytesIO

    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    for each in (pixels, pixels[::-1], np.zeros_like(pixels)):
        assert np.array_equal(np.asarray(Image.open(BytesIO(encode_png(each)))), each)
