"""Which labelled images is a tower probed on, and which of them are held out?

    FOLDER              one folder per class: FOLDER/CLASS/*.png, or FOLDER/train/CLASS/… and FOLDER/test/CLASS/…
    FILE.npz            MedMNIST's layout, with one class or several findings per image (`archives.py`)
    FOLDER:TRAIN,TEST   the images of two splits of a prompt set (`prompts.py`); FOLDER:SPLIT those of one
    pocket:N            N scenes of the pocket world, drawn from the seed; the class is the most frequent shape

A given split is kept, without its validation part; training images with the same pixels as a test image are dropped.
Otherwise the test part is drawn per class from the seed and the images' contents: it does not depend on file names, and
copies of an image count once.
"""

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from data_builders.pocket.draw import Scene, draw_scene, render
from data_builders.prompt_sets.depth import eight_bits
from data_builders.prompt_sets.images import DECODING_ERRORS
from data_builders.prompt_sets.prompts import splits_of
from eval.tower.archives import read_npz
from eval.tower.labelled import TEST, TRAIN, LabelledImage
from eval.tower.prompts import names_prompt_set, read_prompt_set
from tracking.progress import progress

if TYPE_CHECKING:
    from PIL.Image import Image

VALIDATION_NAMES = ("val", "valid", "validation")
POCKET_PREFIX = "pocket:"


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """Training images, then test images, and the number left out per reason."""

    images: list[LabelledImage]
    left_out: dict[str, int]

    @property
    def classes(self) -> list[str]:
        return sorted({image.label for image in self.images})

    @property
    def modalities(self) -> list[str]:
        """The modalities that the data names, sorted."""
        return sorted({image.modality for image in self.images if image.modality is not None})

    def of(self, split: str) -> list[LabelledImage]:
        return [image for image in self.images if image.split == split]

    def fingerprint(self) -> str:
        """Returns a sha256 that depends on all images, their classes, parts and order."""
        digest = hashlib.sha256()
        for image in self.images:
            kind = "" if image.findings is None else f"{image.findings}\n"
            digest.update(f"{image.id}\n{image.label}\n{image.split}\n{image.sha256}\n{kind}".encode())
        return digest.hexdigest()


def load_images(data: str, *, test_frac: float, seed: int, limit: int | None, min_per_class: int) -> ImageSet:
    """Reads the images named by `--data` and assigns each to the training or test part.

    Args:
        data: a folder, an .npz file, a prompt set's splits or `pocket:N`.
        test_frac: share of each class that is held out, if the data has no test part.
        seed: seed of that split, of the selection by `limit`, and of pocket images.
        limit: maximum number of training images and of test images, keeping the classes' proportions.
        min_per_class: minimum number of training images per class; findings are checked in `groups.py`.

    Raises:
        ValueError: if the data cannot be read, or has too few classes or images.
    """
    path = Path(data)
    left_out: Counter[str] = Counter()
    if data.startswith(POCKET_PREFIX):
        found = draw_pocket_shapes(data.removeprefix(POCKET_PREFIX), seed)
    elif names_prompt_set(data):
        found = read_prompt_set(data, left_out, _opener)
    elif path.is_dir():
        if splits := splits_of(path):
            raise ValueError(
                f"--data {data} is a prompt set with the splits {', '.join(splits)}; expected FOLDER:TRAIN,TEST, such "
                f"as {data}:{splits[0]},{splits[-1]}, or FOLDER:SPLIT"
            )
        found = read_folder(path, left_out)
    elif path.suffix == ".npz" and path.is_file():
        found = read_npz(path, left_out)
    else:
        raise ValueError(f"--data {data} is not a folder, .npz file, FOLDER:TRAIN,TEST or {POCKET_PREFIX}NUMBER")
    images = _with_contents(found)
    if all(image.split for image in images):
        held_out = {image.sha256 for image in images if image.split == TEST}
        kept = [image for image in images if image.split == TEST or image.sha256 not in held_out]
        left_out["training picture that stands in the test part too"] += len(images) - len(kept)
    else:
        kept = _split_by_content(images, test_frac, seed)
        left_out["copy of another picture"] += len(images) - len(kept)
    if limit is not None:
        drawn = {id(image) for split in (TRAIN, TEST) for image in _draw(kept, split, limit, seed)}
        left_out["beyond --limit"] += len(kept) - len(drawn)
        kept = [image for image in kept if id(image) in drawn]  # in the data's order, in which a file is streamed
    kept.sort(key=lambda image: image.split == TEST)
    if not kept:
        raise ValueError(f"--data {data} holds no pictures; expected one folder of pictures per class, or an .npz file")
    if any(image.findings is None for image in kept):
        check_classes(data, [image for image in kept if image.findings is None], min_per_class)
    return ImageSet(images=kept, left_out={reason: num for reason, num in left_out.items() if num})


def read_folder(directory: Path, left_out: Counter[str]) -> list[LabelledImage]:
    """Reads one folder per class, below `train` and `test` if they exist."""
    parts = {entry.name for entry in directory.iterdir() if entry.is_dir()}
    if {TRAIN, TEST} <= parts:
        for name in sorted(parts & set(VALIDATION_NAMES)):
            left_out["picture of the validation part"] += sum(1 for _ in _files(directory / name, Counter()))
        other = sorted(parts - {TRAIN, TEST, *VALIDATION_NAMES})
        if other:
            raise ValueError(f"{directory} holds {other[0]!r} beside train and test; expected classes below those two")
        return [image for split in (TRAIN, TEST) for image in _read_classes(directory / split, split, left_out)]
    if lonely := sorted(parts & {TRAIN, TEST, *VALIDATION_NAMES}):
        raise ValueError(
            f"{directory} holds {lonely[0]!r} without its counterpart; expected train and test, or a folder a class"
        )
    return _read_classes(directory, None, left_out)


def _read_classes(directory: Path, split: str | None, left_out: Counter[str]) -> list[LabelledImage]:
    return [
        LabelledImage(id=f"{split or ''}{'/' if split else ''}{path.relative_to(directory)}", label=folder.name,
                      split=split, open=_opener(path))
        for folder in sorted(entry for entry in directory.iterdir() if entry.is_dir())
        for path in _files(folder, left_out)
    ]  # fmt: skip


def _files(folder: Path, left_out: Counter[str]) -> Iterable[Path]:
    """Yields the images of a folder, recognised by suffix; counts other files."""
    from PIL import Image

    endings = Image.registered_extensions()
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in endings and not path.name.startswith("."):
            yield path
        elif path.is_file():
            left_out["file whose name does not end as a picture's"] += 1


def _opener(path: Path) -> Callable[[], "Image"]:
    return lambda: _decode(path)


def _decode(path: Path) -> "Image":
    from PIL import Image

    try:
        with Image.open(path) as file:
            file.load()
            return file.copy()
    except DECODING_ERRORS as error:
        raise ValueError(f"{path}: not readable as a picture ({type(error).__name__}); repair or remove it") from error


def draw_pocket_shapes(number: str, seed: int) -> list[LabelledImage]:
    """Draws scenes from the pocket models' training distribution, skipping ties for the most frequent shape.

    With one object per image every tower would do: random weights then reach 99.7 % accuracy.
    """
    if not number.isdigit() or int(number) < 1:
        raise ValueError(f"--data {POCKET_PREFIX}{number}: expected a number of pictures, such as {POCKET_PREFIX}2000")

    def opener(scene: Scene) -> Callable[[], "Image"]:
        return lambda: render(scene)

    images: list[LabelledImage] = []
    rng = random.Random(f"{seed}/tower")
    while len(images) < int(number):
        scene = draw_scene(rng)
        (shape, most), *others = Counter(thing.shape for thing in scene if thing).most_common()
        if all(num < most for _, num in others):
            images.append(LabelledImage(id=f"{len(images):06d}", label=shape, open=opener(scene)))
    return images


def _with_contents(images: Sequence[LabelledImage]) -> list[LabelledImage]:
    hashed = []
    for image in progress(images, label="pictures", total=len(images)):
        opened = eight_bits(image.open())  # as the models see it; Pillow would turn 16 bits white
        digest = hashlib.sha256(f"{opened.size}".encode() + opened.convert("RGBA").tobytes()).hexdigest()
        hashed.append(replace(image, sha256=digest))
    return hashed


def _order(image: LabelledImage, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}/{image.sha256}".encode()).digest()


def _split_by_content(images: Sequence[LabelledImage], test_frac: float, seed: int) -> list[LabelledImage]:
    """Holds out a share of each class; an image in two classes is on the same side in both."""
    by_class: dict[tuple[str | None, str], dict[str, LabelledImage]] = {}
    for image in images:
        by_class.setdefault(image.stratum, {}).setdefault(image.sha256, image)
    side: dict[str, str] = {}
    for own in by_class.values():
        ordered = sorted(
            (image for image in own.values() if image.sha256 not in side), key=lambda one: _order(one, seed)
        )
        num_test = round(test_frac * len(ordered))
        side |= {image.sha256: TEST if place < num_test else TRAIN for place, image in enumerate(ordered)}
    return [replace(image, split=side[image.sha256]) for own in by_class.values() for image in own.values()]


def _draw(images: Sequence[LabelledImage], split: str, limit: int, seed: int) -> list[LabelledImage]:
    """Selects at most `limit` of a part, keeping the classes' proportions."""
    part = [image for image in images if image.split == split]
    if len(part) <= limit:
        return part
    num_by_class = Counter(image.stratum for image in part)
    drawn: list[LabelledImage] = []
    for stratum, num in num_by_class.items():
        own = sorted((image for image in part if image.stratum == stratum), key=lambda one: _order(one, seed))
        drawn += own[: limit * num // len(part)]
    return drawn


def check_classes(data: str, images: Sequence[LabelledImage], min_per_class: int, modality: str | None = None) -> None:
    """Refuses too few classes, or too few training images of one.

    Args:
        data: the value of `--data`, for messages.
        images: those of one modality, or all.
        min_per_class: minimum number of training images per class.
        modality: the modality, for messages.

    Raises:
        ValueError: as said.
    """
    where = f"--data {data}" + (f", modality {modality!r}" if modality else "")
    num_train = Counter(image.label for image in images if image.split == TRAIN)
    num_test = Counter(image.label for image in images if image.split == TEST)
    if len(num_train) < 2:
        raise ValueError(
            f"{where}: training pictures of {', '.join(num_train) or 'no class'} only; expected two classes"
        )
    for label in sorted({*num_train, *num_test}):
        if num_train[label] < min_per_class:
            raise ValueError(
                f"{where}: class {label!r} has {num_train[label]} training pictures; expected at least "
                f"{min_per_class}, one per fold of the cross-validation"
            )
    if not num_test:
        raise ValueError(f"{where}: no picture is held out; give more pictures or a larger --test-frac")
