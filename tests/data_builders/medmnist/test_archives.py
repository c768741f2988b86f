"""A damaged or foreign file is refused in one line, before anything is written; memory does not grow with the file."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_builders import build
from data_builders.medmnist.npz import iter_blocks, open_member, read_array
from data_builders.medmnist.pictures import store_pictures
from tests.data_builders.medmnist.archives import medmnist_arrays, write_medmnist

Arrays = dict[str, np.ndarray]


def changed(name: str, change: Callable[[Arrays], object], file: str | None = None) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        arrays = medmnist_arrays(name)
        change(arrays)
        np.savez_compressed(folder / f"{file or name}.npz", **arrays)  # type: ignore[arg-type]
        return folder / f"{file or name}.npz"

    return write


def cut(folder: Path) -> Path:
    path = write_medmnist(folder, "pathmnist")
    path.write_bytes(path.read_bytes()[:-200])
    return path


def no_file(folder: Path) -> Path:
    return folder / "pathmnist.npz"


def put(**arrays: np.ndarray) -> Callable[[Arrays], object]:
    return lambda found: found.update(arrays)


REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing key": (changed("octmnist", lambda arrays: arrays.pop("val_labels")), "has no 'val_labels'"),
    "wrong dtype": (
        changed("octmnist", put(train_images=np.zeros((24, 28, 28), np.float32))),
        "train_images is float32 of shape",
    ),
    "volumes": (changed("octmnist", put(test_images=np.zeros((12, 28, 28, 28), np.uint8))), "volumes are not read"),
    "fewer labels": (changed("octmnist", put(test_labels=np.zeros((3, 1), np.uint8))), "(3, 1) for 12 pictures"),
    "unknown class": (changed("octmnist", put(test_labels=np.full((12, 1), 4, np.uint8))), "expected 0 to 3"),
    "negative class": (changed("octmnist", put(test_labels=np.full((12, 1), -1, np.int8))), "test_labels[0] is [-1]"),
    "float labels": (changed("octmnist", put(test_labels=np.zeros((12, 1)))), "test_labels is float64"),
    "one label for findings": (
        changed("chestmnist", put(test_labels=np.zeros((42, 1), np.uint8))),
        "expected integers of shape (42, 14)",
    ),
    "findings of 2": (changed("chestmnist", put(test_labels=np.full((42, 14), 2, np.uint8))), "for each finding"),
    "another size": (
        changed("octmnist", lambda arrays: None, "octmnist_64"),
        "28x28 pixels; its name stands for 64x64",
    ),
    "another name": (changed("octmnist", lambda arrays: None, "octmnis"), "did you mean"),
    "objects": (changed("octmnist", put(test_labels=np.array([[None]] * 12))), "holds pickled objects"),
    "truncated": (cut, "not readable as an .npz file"),
    "no file": (no_file, "neither a folder nor an existing .npz file"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_medmnist_does_not_publish_is_refused_in_a_line(case: str, tmp_path: Path) -> None:
    write, expected = REFUSED[case]
    path = write(tmp_path)
    with pytest.raises(ValueError) as error:
        build.main(["medmnist", "--source", str(path), "--output-dir", str(tmp_path / "out")])
    assert expected in str(error.value) and str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_damage_within_the_pictures_leaves_no_prompt_set(tmp_path: Path) -> None:
    path = write_medmnist(tmp_path, "pathmnist", stored=True)
    content = bytearray(path.read_bytes())
    content[1000] ^= 255  # within the training pictures, the first member
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"train_images is not readable as an .npz file \(Bad CRC-32.*download it again"
    ):
        build.main(["medmnist", "--source", str(path), "--output-dir", str(tmp_path / "out")])
    assert not (tmp_path / "out" / "data").exists()


@pytest.mark.parametrize("stored", [True, False])
def test_arrays_are_read_as_numpy_reads_them(stored: bool, tmp_path: Path) -> None:
    path = write_medmnist(tmp_path, "bloodmnist", stored=stored)
    with np.load(path) as file:
        for name in file:
            member = open_member(path, name)
            assert np.array_equal(read_array(member), file[name])
            blocks = list(iter_blocks(member, block_bytes=10_000))
            assert max(block.nbytes for block in blocks) <= max(10_000, member.dtype.itemsize)
            assert np.array_equal(np.concatenate(blocks), file[name])


def test_memory_does_not_grow_with_the_number_of_pictures(tmp_path: Path) -> None:
    path, needed = tmp_path / "many.npz", set(range(0, 4000, 50))
    np.savez_compressed(path, train_images=np.zeros((4000, 128, 128), np.uint8))  # 64 MB
    member = open_member(path, "train_images")
    tracemalloc.start()
    for _ in store_pictures(member, tmp_path, stem="x", split="train", needed=needed, held_out=set(), num_threads=1):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**23
