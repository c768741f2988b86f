"""Are pictures in every published layout probed, and as a stream? MedMNIST's twelve 2D sets, and prompt sets."""

import tracemalloc
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_builders.medmnist.sets import SETS, Labels
from data_builders.prompt_sets.prompts import Prompt, write_prompts
from eval.tower.archives import read_npz
from eval.tower.groups import make_groups
from eval.tower.images import ImageSet, load_images
from eval.tower.labelled import TEST, TRAIN
from tests.data_builders.medmnist.archives import RGB_SETS, medmnist_arrays, write_medmnist


def load(data: Path | str, **changes: Any) -> ImageSet:
    options: dict[str, Any] = {"test_frac": 0.25, "seed": 0, "limit": None, "min_per_class": 2}
    return load_images(str(data), **options | changes)


@pytest.mark.parametrize("name", SETS)
def test_every_published_set_keeps_its_pixels_labels_names_and_parts(name: str, tmp_path: Path) -> None:
    arrays, known = medmnist_arrays(name), SETS[name]
    images = load(write_medmnist(tmp_path, name))
    for part in (TRAIN, TEST):
        own, labels = images.of(part), arrays[f"{part}_labels"]
        assert np.array_equal([np.asarray(image.open()) for image in own], arrays[f"{part}_images"])
        for image, label in zip(own, labels, strict=True):
            if known.labels == Labels.FINDINGS:
                assert image.findings == tuple(known.names[number] for number in np.flatnonzero(label))
            else:
                assert (image.label, image.findings) == (known.names[int(label[0])], None)
        assert {image.modality for image in own} == {known.modality}
        assert {image.open().mode for image in own} == {"RGB" if name in RGB_SETS else "L"}
    assert images.left_out == {"picture of the validation part": len(arrays["val_labels"])}


def test_a_file_is_streamed_in_order_again_after_its_end_and_with_pictures_left_out(tmp_path: Path) -> None:
    path = write_medmnist(tmp_path, "pathmnist", size=224, per_class=1)
    pixels = medmnist_arrays("pathmnist", size=224, per_class=1)["train_images"]
    whole, some = load(path), load(path, limit=9, min_per_class=1)
    for images in (whole, whole, some):
        for image in images.of(TRAIN):
            assert np.array_equal(np.asarray(image.open()), pixels[int(image.id.partition("/")[2])])
    places = [int(image.id.partition("/")[2]) for image in some.of(TRAIN)]
    assert len(places) == 9 and places == sorted(places)


def test_memory_does_not_grow_with_the_number_of_pictures(tmp_path: Path) -> None:
    peaks = []
    for num in (40, 400):
        path = tmp_path / f"plain{num}.npz"
        pixels, labels = np.zeros((num, 224, 224, 3), np.uint8), np.arange(num) % 2
        parts = {"train_images": pixels, "train_labels": labels, "test_images": pixels[:4], "test_labels": labels[:4]}
        np.savez_compressed(path, **parts)  # type: ignore[arg-type]
        del pixels, parts
        tracemalloc.start()
        for image in read_npz(path, Counter()):
            image.open()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0] < 30 * 2**20  # 400 pictures take 57 MiB


def test_a_damaged_stream_is_refused_in_a_line(tmp_path: Path) -> None:
    path = write_medmnist(tmp_path, "octmnist")
    data = bytearray(path.read_bytes())
    data[2000:2040] = bytes(40)
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"octmnist\.npz.*not readable as an \.npz file") as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_findings_that_are_too_rare_to_probe_are_named(tmp_path: Path) -> None:
    labels = np.zeros((40, 3), np.uint8)
    labels[::2, 0], labels[::5, 1], labels[3, 2] = 1, 1, 1
    rng = np.random.default_rng(0)
    arrays = {f"{part}_images": rng.integers(0, 256, (40, 8, 8), dtype=np.uint8) for part in (TRAIN, TEST)}
    np.savez(tmp_path / "own.npz", **arrays, train_labels=labels, test_labels=labels)  # type: ignore[arg-type]
    images = load(tmp_path / "own.npz")
    (group,), left_out = make_groups(images, data="own.npz", by=None, num_folds=3)
    assert (group.many, group.classes) == (True, ["0", "1"])
    assert np.array_equal(group.train_labels, labels[:, :2]) and np.array_equal(group.gold, labels[:, :2])
    assert left_out == {"finding, 2: 1 training and 1 test pictures have it": 1}
    with pytest.raises(ValueError, match="none of 3 findings has 30 training"):
        make_groups(images, data="own.npz", by=None, num_folds=30)


def prompt_set(folder: Path, change: Callable[[Prompt], Prompt] = lambda prompt: prompt) -> Path:
    """Two modalities of two classes each, two questions about each picture; splits rl and test."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    for split, num in (("rl", 24), ("test", 16)):
        prompts = []
        for index in range(num):
            name = f"images/{split}-{index}.png"
            Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(folder / name)
            modality = ("outline", "speckle")[index % 2]
            own = {"outline": ("square", "circle"), "speckle": ("cyst", "mass")}[modality][index // 2 % 2]
            for kind, answer in (("choice", own), ("yes_no", "no")):
                prompts.append(
                    change(
                        Prompt(
                            id=f"{split}-{index}-{kind}", ability="vision", question="What is it?", answer=answer,
                            answer_kind=kind, choices=(own, "other") if kind == "choice" else (), images=(name,),
                            meta={"class": own, "modality": modality},
                        )
                    )
                )  # fmt: skip
        write_prompts(folder, split, prompts)
    return folder


def test_a_prompt_sets_pictures_have_the_class_in_meta_and_count_once(tmp_path: Path) -> None:
    images = load(f"{prompt_set(tmp_path)}:rl,test")
    assert (len(images.of(TRAIN)), len(images.of(TEST)), images.left_out) == (24, 16, {})
    assert images.classes == ["circle", "cyst", "mass", "square"] and images.modalities == ["outline", "speckle"]
    groups, _ = make_groups(images, data="d", by="modality", num_folds=2)
    assert [(group.name, group.classes) for group in groups] == [
        ("outline", ["circle", "square"]), ("speckle", ["cyst", "mass"]),
    ]  # fmt: skip
    for group in groups:
        for places, labels in ((group.train, group.train_labels), (group.test, group.gold)):
            assert [images.images[place].label for place in places] == [group.classes[label] for label in labels]
    divided = load(f"{tmp_path}:rl")
    assert (len(divided.of(TRAIN)), len(divided.of(TEST))) == (16, 8)


def test_without_a_class_the_answer_counts_and_pictures_of_two_classes_are_left_out(tmp_path: Path) -> None:
    def without_class(prompt: Prompt) -> Prompt:
        index = int(prompt.id.split("-")[1])
        answer = prompt.answer if index == 4 else f"answer {index % 3}"
        return replace(prompt, meta=None, answer=answer, choices=())

    images = load(f"{prompt_set(tmp_path, without_class)}:rl,test")
    assert images.classes == ["answer 0", "answer 1", "answer 2"] and images.modalities == []
    assert images.left_out == {"picture that is of different classes in its prompts": 2}  # number 4 of both splits
    with pytest.raises(ValueError, match="38 of 38 pictures of --data d name no modality"):
        make_groups(images, data="d", by="modality", num_folds=2)


MISTAKES: dict[str, tuple[str, str]] = {
    "no split": ("{}", "is a prompt set with the splits rl, test; expected FOLDER:TRAIN,TEST, such as {}:rl,test"),
    "three splits": ("{}:rl,test,other", "names 3 splits"),
    "one split twice": ("{}:rl,rl", "names 2 splits"),
    "missing split": ("{}:rl,validation", "validation.jsonl does not exist"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistaken_split_is_refused_in_a_line(mistake: str, tmp_path: Path) -> None:
    prompt_set(tmp_path)
    data, expected = (text.format(tmp_path, tmp_path) for text in MISTAKES[mistake])
    with pytest.raises(ValueError, match=r".") as caught:
        load(data)
    assert expected in str(caught.value) and "\n" not in str(caught.value)
