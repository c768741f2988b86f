"""Which pictures train a probe, which test it, and what is refused."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from eval.tower.images import ImageSet, load_images
from eval.tower.labelled import TEST, TRAIN


def load(data: Path | str, **changes: Any) -> ImageSet:
    options: dict[str, Any] = {"test_frac": 0.25, "seed": 0, "limit": None, "min_per_class": 2}
    return load_images(str(data), **options | changes)


def write_classes(directory: Path, *, num: int = 8, classes: str = "ab", seed: int = 0, name: str = "{}") -> Path:
    """Writes different noisy pictures, a folder a class."""
    rng = np.random.default_rng(seed)
    for label in classes:
        (directory / label).mkdir(parents=True)
        for index in range(num):
            pixels = rng.integers(0, 256, (6, 7, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(directory / label / f"{name.format(index)}.png")
    return directory


def medmnist(**changes: Any) -> dict[str, np.ndarray]:
    """Arrays of MedMNIST's names, shapes and types: a validation part too, labels in a column."""
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    for split, num in (("train", 12), ("val", 3), ("test", 6)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (num, 28, 28, 3), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(num, dtype=np.uint8)[:, None] % 2
    return arrays | changes


def contents(images: ImageSet, split: str) -> set[str]:
    return {image.sha256 for image in images.of(split)}


def test_the_split_holds_out_a_share_of_each_class_and_does_not_depend_on_file_names(tmp_path: Path) -> None:
    images = load(write_classes(tmp_path / "one"))
    assert Counter((image.label, image.split) for image in images.images) == {
        ("a", TRAIN): 6, ("a", TEST): 2, ("b", TRAIN): 6, ("b", TEST): 2,
    }  # fmt: skip
    renamed = load(write_classes(tmp_path / "two", name="other-{}"))
    assert contents(renamed, TEST) == contents(images, TEST)
    assert contents(load(tmp_path / "one", seed=1), TEST) != contents(images, TEST)
    assert load(tmp_path / "one").fingerprint() == images.fingerprint() != load(tmp_path / "one", seed=1).fingerprint()


def test_copies_of_a_picture_never_stand_on_both_sides(tmp_path: Path) -> None:
    write_classes(tmp_path, num=20)
    for index in range(20):  # a copy of each in its own class, and in the other
        picture = Image.open(tmp_path / "a" / f"{index}.png")
        picture.save(tmp_path / "a" / f"copy-{index}.bmp")
        picture.save(tmp_path / "b" / f"copy-{index}.png")
    images = load(tmp_path)
    assert len(images.images) == 60 and images.left_out == {"copy of another picture": 20}
    assert not contents(images, TRAIN) & contents(images, TEST)


def test_pictures_of_16_bits_are_told_apart(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for label in "ab":
        (tmp_path / label).mkdir()
        for index in range(8):
            pixels = rng.integers(1000, 60_000, (6, 7)).astype(np.uint16)
            Image.fromarray(pixels).save(tmp_path / label / f"{index}.png")
    images = load(tmp_path)
    assert (len(images.images), images.left_out) == (16, {})


def test_a_given_split_is_kept_but_for_pictures_that_stand_in_both_parts(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", seed=1)
    write_classes(tmp_path / "test", num=3, seed=2)
    write_classes(tmp_path / "val", num=2, seed=3)
    Image.open(tmp_path / "test" / "a" / "0.png").save(tmp_path / "train" / "a" / "leak.png")
    (tmp_path / "train" / "a" / "notes.txt").write_text("no picture")
    images = load(tmp_path)
    assert (len(images.of(TRAIN)), len(images.of(TEST))) == (16, 6)
    assert images.left_out == {
        "training picture that stands in the test part too": 1,
        "picture of the validation part": 4,
        "file whose name does not end as a picture's": 1,
    }
    assert [image.split for image in images.images] == [TRAIN] * 16 + [TEST] * 6


@pytest.mark.parametrize("grey", [False, True])
def test_medmnist_files_give_their_own_pixels_labels_and_parts(tmp_path: Path, grey: bool) -> None:
    arrays = medmnist()
    if grey:
        arrays = {key: values[..., 0] if "images" in key else values for key, values in arrays.items()}
    np.savez(tmp_path / "some.npz", **arrays)  # type: ignore[arg-type]
    images = load(tmp_path / "some.npz")
    for split in (TRAIN, TEST):
        assert np.array_equal([np.asarray(image.open()) for image in images.of(split)], arrays[f"{split}_images"])
        assert [int(image.label) for image in images.of(split)] == arrays[f"{split}_labels"].ravel().tolist()
    assert images.left_out == {"picture of the validation part": 3}


def test_a_draw_keeps_the_classes_proportions(tmp_path: Path) -> None:
    write_classes(tmp_path, num=12, classes="a")
    write_classes(tmp_path, num=24, classes="b", seed=1)
    images = load(tmp_path, limit=9)
    assert Counter((image.label, image.split) for image in images.images) == {
        ("a", TRAIN): 3, ("b", TRAIN): 6, ("a", TEST): 3, ("b", TEST): 6,
    }  # fmt: skip
    assert contents(images, TRAIN) <= contents(load(tmp_path), TRAIN)


@pytest.mark.slow
def test_pocket_scenes_are_drawn_from_the_seed_in_all_three_shapes() -> None:
    images, again, other = load("pocket:90"), load("pocket:90"), load("pocket:90", seed=1)
    assert images.classes == ["circle", "square", "triangle"]
    assert images.fingerprint() == again.fingerprint()
    assert not {image.sha256 for image in images.images} & {image.sha256 for image in other.images}
    shares = Counter(image.label for image in load("pocket:900").images)
    assert all(250 < num < 350 for num in shares.values()), shares


def unreadable(directory: Path) -> Path:
    (write_classes(directory) / "a" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nand no more")
    return directory


def npz(directory: Path, **changes: Any) -> Path:
    np.savez(directory / "some.npz", **medmnist(**changes))  # type: ignore[arg-type]
    return directory / "some.npz"


def without_labels(directory: Path) -> Path:
    np.savez(directory / "some.npz", images=np.zeros(3), labels=np.zeros(3))
    return directory / "some.npz"


def no_npz(directory: Path) -> Path:
    (directory / "some.npz").write_text("no archive")
    return directory / "some.npz"


def lonely_part(directory: Path) -> Path:
    write_classes(directory / "train")
    return directory


MISTAKES: dict[str, tuple[Any, str]] = {
    "unreadable picture": (unreadable, "broken.png: not readable as a picture"),
    "one class": (lambda directory: write_classes(directory, classes="a"), "training pictures of a only"),
    "too few of a class": (lambda directory: write_classes(directory, num=1), "class 'a' has 1 training picture"),
    "nothing held out": (lambda directory: write_classes(directory, num=2), "no picture is held out"),
    "no pictures": (lambda directory: directory, "holds no pictures"),
    "part without its counterpart": (lonely_part, "'train' without its counterpart"),
    "other keys": (without_labels, "no 'train_images', only images, labels"),
    "no archive": (no_npz, "not readable as an .npz file"),
    "volumes": (lambda directory: npz(directory, train_images=np.zeros((12, 28, 28, 28), np.uint8)), "volumes"),
    "several labels": (
        lambda directory: npz(directory, test_labels=np.zeros((6, 14), np.uint8)),
        "(train_labels 1, test_labels 14)",
    ),
    "objects": (lambda directory: npz(directory, test_labels=np.array([None] * 6)), "pickled objects"),
    "missing": (lambda directory: directory / "missing", "is not a folder, .npz file"),
    "pocket without a number": (lambda directory: "pocket:many", "expected a number of pictures"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_that_says_what_was_found(tmp_path: Path, mistake: str) -> None:
    make, expected = MISTAKES[mistake]
    with pytest.raises(ValueError, match=r".") as caught:
        load(make(tmp_path))
    assert expected in str(caught.value) and "\n" not in str(caught.value)
