"""Is this an archive of MedMNIST? Finds the files, checks keys, dtypes, shapes and labels before anything is written.

A file is named as MedMNIST names it: `pathmnist.npz` has pictures of 28 pixels, `pathmnist_224.npz` those of 224. It
has six arrays: `{train,val,test}_images`, uint8, grey [n, height, width] or RGB [n, height, width, 3], and
`{train,val,test}_labels`, integers [n, 1], or 0 and 1 [n, 14] for ChestMNIST (`medmnist/dataset.py`, version 3.0.2).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from data_builders.medmnist.npz import Member, list_members, open_member, read_array
from data_builders.medmnist.questions import LabelArray
from data_builders.medmnist.sets import SETS, SIZES, Labels, MedicalSet, set_of
from data_builders.sources.files import file_sha256
from tracking.command import did_you_mean

SPLITS = {"train": "rl", "val": "validation", "test": "test"}
"""The split of a file -> the split of the prompt set."""
SUFFIX = ".npz"


@dataclass(frozen=True, kw_only=True)
class Part:
    """One split of a file."""

    name: str
    """As the file calls it: train, val or test."""
    images: Member
    labels: LabelArray
    """[pictures], or [pictures, findings]."""


@dataclass(frozen=True, kw_only=True)
class Archive:
    """A checked file."""

    path: Path
    set_name: str
    parts: dict[str, Part]

    @property
    def stem(self) -> str:
        return self.path.stem

    @property
    def medical_set(self) -> MedicalSet:
        return SETS[self.set_name]

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the file."""
        return file_sha256(self.path)


def open_archives(sources: Sequence[str]) -> tuple[list[Archive], list[str]]:
    """Opens files and folders; returns the archives, sorted by name, and the names of other `.npz` files in folders.

    Raises:
        ValueError: if a file is not what MedMNIST publishes, or there is none.
    """
    paths: list[Path] = []
    other: list[str] = []
    for source in sources:
        path = Path(source)
        if path.is_dir():
            found = sorted(file for file in path.glob(f"*{SUFFIX}") if not file.name.startswith("."))
            paths += [file for file in found if set_of(file.stem)]
            other += [file.name for file in found if not set_of(file.stem)]
            if not any(set_of(file.stem) for file in found):
                raise ValueError(
                    f"source {source} holds no file of a 2D set of MedMNIST, such as pathmnist{SUFFIX}"
                    + (f"; it holds {', '.join(other)}" if other else "")
                )
        elif path.is_file() and path.suffix == SUFFIX:
            paths.append(path)
        else:
            raise ValueError(f"source {source} is neither a folder nor an existing {SUFFIX} file")
    for name, num in Counter(path.stem for path in paths).items():
        if num > 1:
            raise ValueError(f"{num} sources are called {name}{SUFFIX}; name each set once")
    return [open_archive(path) for path in sorted(paths, key=lambda path: path.stem)], sorted(other)


def open_archive(path: Path) -> Archive:
    """Opens one file.

    Raises:
        ValueError: if it is not what MedMNIST publishes.
    """
    set_name = set_of(path.stem)
    if set_name is None:
        stem = path.stem.partition("_")[0]
        raise ValueError(
            f"{path}: no 2D set of MedMNIST is called {path.stem!r}; expected {', '.join(SETS)}, with _64, _128 or "
            f"_224 for larger pictures{did_you_mean(stem, SETS)}"
        )
    present = list_members(path)
    keys = [f"{split}_{kind}" for split in SPLITS for kind in ("images", "labels")]
    if missing := [key for key in keys if key not in present]:
        raise ValueError(
            f"{path} has no {missing[0]!r}, only {', '.join(present) or 'nothing'}; expected {', '.join(keys)}"
        )
    parts = {split: _open_part(path, split, SETS[set_name]) for split in SPLITS}
    sizes = {part.images.shape[1:] for part in parts.values()}
    side = int(path.stem.partition("_")[2] or SIZES[0])
    if any(size[:2] != (side, side) for size in sizes):
        found = ", ".join("x".join(map(str, size[:2])) for size in sorted(sizes))
        raise ValueError(f"{path}: its pictures have {found} pixels; its name stands for {side}x{side}")
    return Archive(path=path, set_name=set_name, parts=parts)


def _open_part(path: Path, split: str, medical_set: MedicalSet) -> Part:
    images, labels = open_member(path, f"{split}_images"), open_member(path, f"{split}_labels")
    if images.dtype != np.uint8 or not (len(images.shape) == 3 or (len(images.shape) == 4 and images.shape[3] == 3)):
        raise ValueError(
            f"{path}: {images.name} is {images.dtype} of shape {images.shape}; expected uint8, grey (n, height, width) "
            "or RGB (n, height, width, 3); volumes are not read"
        )
    num_names = len(medical_set.names)
    multiple = medical_set.labels == Labels.FINDINGS
    shapes = [(len(images), num_names)] if multiple else [(len(images), 1), (len(images),)]
    if labels.dtype.kind not in "iu" or labels.shape not in shapes:
        raise ValueError(
            f"{path}: {labels.name} is {labels.dtype} of shape {labels.shape} for {len(images)} pictures; expected "
            f"integers of shape {shapes[0]}"
        )
    values = read_array(labels).astype(np.int64)
    highest = 1 if multiple else num_names - 1
    wrong = np.flatnonzero(((values < 0) | (values > highest)).reshape(len(values), -1).any(axis=1))
    if len(wrong):
        found = values[wrong[0]].tolist()
        raise ValueError(
            f"{path}: {labels.name}[{wrong[0]}] is {found}; expected 0 to {highest}"
            + (" for each finding" if multiple else f", the classes of {set_of(path.stem)}")
        )
    return Part(name=split, images=images, labels=values if multiple else values.reshape(-1))
