"""Reads the labelled images of a MedMNIST `.npz` file as a stream, in one pass over the file for each pass over them.

A file under a published name (`pathmnist.npz`, `chestmnist_224.npz`) must be what MedMNIST publishes, and its classes
have their names (`data_builders/medmnist`). Any other file needs `{train,test}_images`, uint8, grey [n, height, width]
or RGB [n, height, width, 3], and `{train,test}_labels`: integers [n] or [n, 1], or 0 and 1 for each of several findings
[n, findings]. Classes are then named by their numbers.

Images are never all in memory. Each part is inflated block by block (`data_builders/medmnist/npz.py`), and the block of
the last image is kept. Images in order cost one pass; an earlier one starts a new pass.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

from data_builders.medmnist.archives import open_archive
from data_builders.medmnist.npz import Member, iter_blocks, list_members, open_member, read_array
from data_builders.medmnist.sets import set_of
from eval.tower.labelled import TEST, TRAIN, LabelledImage, join_findings

if TYPE_CHECKING:
    from PIL.Image import Image

NPZ_KEYS = ("train_images", "train_labels", "test_images", "test_labels")


class PictureStream:
    """The images of one array, read forward."""

    def __init__(self, member: Member) -> None:
        self._member = member
        self._blocks: Iterator[np.ndarray] = iter(())
        self._block: np.ndarray = np.empty(0)
        self._first = 0
        self._next = 0
        """Number of the image after the current block."""

    def read(self, index: int) -> UInt8[np.ndarray, "height width *rgb"]:
        """Returns an image; going back opens the file again."""
        if index < self._first or not self._next:
            self._blocks, self._first, self._next = iter_blocks(self._member), 0, 0
        while index >= self._next:
            self._block = next(self._blocks)
            self._first, self._next = self._next, self._next + len(self._block)
        image: np.ndarray = self._block[index - self._first]
        return image


def read_npz(path: Path, left_out: Counter[str]) -> list[LabelledImage]:
    """Returns the training and test images of a file; counts those of its validation part.

    Raises:
        ValueError: if it is damaged, or has other keys, dtypes, shapes or labels.
    """
    if set_of(path.stem):
        return _published(path, left_out)
    present = list_members(path)
    if missing := [key for key in NPZ_KEYS if key not in present]:
        raise ValueError(
            f"{path} has no {missing[0]!r}, only {', '.join(present) or 'nothing'}; expected MedMNIST's keys "
            f"{', '.join(NPZ_KEYS)}"
        )
    if "val_labels" in present:
        left_out["picture of the validation part"] += len(open_member(path, "val_labels"))
    images: list[LabelledImage] = []
    num_findings: dict[str, int | None] = {}
    for split in (TRAIN, TEST):
        pixels, labels = open_member(path, f"{split}_images"), open_member(path, f"{split}_labels")
        _check_arrays(path, split, pixels, labels)
        values = read_array(labels)
        many = values.ndim == 2 and values.shape[1] > 1
        if many and not np.isin(values, (0, 1)).all():
            raise ValueError(
                f"{path}: {split}_labels has several labels per picture, from {values.min()} to {values.max()}; "
                "expected 0 and 1, one per finding"
            )
        num_findings[split] = values.shape[1] if many else None
        images += _labelled(split, pixels, values if many else values.reshape(-1), names=None, modality=None)
    if len(set(num_findings.values())) > 1:
        found = ", ".join(f"{split}_labels {num or 1}" for split, num in num_findings.items())
        raise ValueError(f"{path}: its parts have several numbers of labels per picture ({found}); expected one number")
    return images


def _published(path: Path, left_out: Counter[str]) -> list[LabelledImage]:
    archive = open_archive(path)
    known = archive.medical_set
    left_out["picture of the validation part"] += len(archive.parts["val"].images)
    return [
        image
        for split in (TRAIN, TEST)
        for image in _labelled(
            split, archive.parts[split].images, archive.parts[split].labels, names=known.names, modality=known.modality
        )
    ]


def _labelled(
    split: str, member: Member, labels: np.ndarray, *, names: Sequence[str] | None, modality: str | None
) -> Iterator[LabelledImage]:
    stream = PictureStream(member)

    def name(number: int) -> str:
        return str(number) if names is None else names[number]

    for index, label in enumerate(labels):
        findings = tuple(name(int(number)) for number in np.flatnonzero(label)) if labels.ndim == 2 else None
        yield LabelledImage(
            id=f"{split}/{index}",
            label=name(int(label)) if findings is None else join_findings(findings),
            findings=findings,
            modality=modality,
            split=split,
            open=_opener(stream, index),
        )


def _opener(stream: PictureStream, index: int) -> Callable[[], "Image"]:
    from PIL import Image

    return lambda: Image.fromarray(stream.read(index))


def _check_arrays(path: Path, split: str, pixels: Member, labels: Member) -> None:
    grey_or_rgb = len(pixels.shape) == 3 or (len(pixels.shape) == 4 and pixels.shape[-1] == 3)
    if not grey_or_rgb or pixels.dtype != np.uint8:
        raise ValueError(
            f"{path}: {split}_images is {pixels.dtype} of shape {pixels.shape}; expected uint8, grey (n, height, "
            "width) or RGB (n, height, width, 3); volumes are not supported"
        )
    fits = len(labels.shape) in (1, 2) and len(labels) == len(pixels) and 0 not in labels.shape[1:]
    if not fits or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"{path}: {split}_labels is {labels.dtype} of shape {labels.shape} for {len(pixels)} pictures; expected "
            "one integer per picture, or 0 and 1 for each finding"
        )
