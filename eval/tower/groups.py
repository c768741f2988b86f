"""Which images share a probe, and what does it predict? All images, or with `--by modality` those of each modality.

Images with one class each get one probe over all classes. Images with any number of findings get a binary probe per
finding. A finding is probed if every fold of the training images can have images with and without it, and the test
images two of each; the others are named. Where some images have findings and others a class, those with a class are
used.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from eval.tower.images import ImageSet, check_classes
from eval.tower.labelled import TEST, TRAIN, LabelledImage

MODALITY = "modality"
MIN_TEST = 2
"""Test images with and without a finding: the variance of an AUC needs two of each."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """The images of one probe, by their places in the image set."""

    name: str | None
    """The modality; None for all images together."""
    classes: list[str]
    """Names of the classes, or of the findings that are probed."""
    many: bool
    """Whether images have findings instead of one class."""
    train: Int[np.ndarray, " train"]
    test: Int[np.ndarray, " test"]
    train_labels: Int[np.ndarray, "train ..."]
    """[train]: numbers of classes; or [train, findings]: 0 and 1."""
    gold: Int[np.ndarray, "test ..."]

    def key(self, prefix: str) -> str:
        """Returns the key of a record of this group."""
        return prefix if self.name is None else f"{prefix}/{self.name}"


def make_groups(images: ImageSet, *, data: str, by: str | None, num_folds: int) -> tuple[list[Group], dict[str, int]]:
    """Divides images into groups; returns them and the number of images or findings left out, per reason.

    Args:
        images: the images.
        data: the value of `--data`, for messages.
        by: `modality`, or None for one group.
        num_folds: folds of the training images.

    Raises:
        ValueError: if images have no modality, or a group has too few images of a class or no finding to probe.
    """
    left_out: Counter[str] = Counter()
    if by is None:
        return [_group(images.images, None, data, num_folds, left_out)], dict(left_out)
    if missing := sum(image.modality is None for image in images.images):
        raise ValueError(
            f"--by {by}: {missing} of {len(images.images)} pictures of --data {data} name no modality; expected a "
            "prompt set with `modality` in its meta, or a published MedMNIST file"
        )
    return [_group(images.images, name, data, num_folds, left_out) for name in images.modalities], dict(left_out)


def _group(
    images: Sequence[LabelledImage], name: str | None, data: str, num_folds: int, left_out: Counter[str]
) -> Group:
    places = [place for place, image in enumerate(images) if name is None or image.modality == name]
    of_class = [place for place in places if images[place].findings is None]
    if of_class and len(of_class) < len(places):
        left_out["picture with findings among pictures with a class"] += len(places) - len(of_class)
    many = not of_class
    used = of_class or places
    train = np.array([place for place in used if images[place].split == TRAIN], int)
    test = np.array([place for place in used if images[place].split == TEST], int)
    if many:
        named = sorted({finding for place in used for finding in images[place].findings or ()})
        table = np.array([[finding in (image.findings or ()) for finding in named] for image in images], int)
        table = table.reshape(len(images), len(named))
        columns = range(len(named))
        kept = [column for column in columns if _can_be_probed(table[train, column], table[test, column], num_folds)]
        for column in sorted({*columns} - {*kept}):
            num_train, num_test = table[train, column].sum(), table[test, column].sum()
            left_out[f"finding, {named[column]}: {num_train} training and {num_test} test pictures have it"] += 1
        if not kept:
            where = f"--data {data}" + (f", modality {name!r}" if name else "")
            raise ValueError(
                f"{where}: none of {len(named)} findings has {num_folds} training and {MIN_TEST} test pictures with it "
                "and as many without; give more pictures"
            )
        classes, labels = [named[column] for column in kept], table[:, kept]
    else:
        if name is not None:
            check_classes(data, [images[place] for place in used], num_folds, name)
        classes = sorted({images[place].label for place in used})
        number = {label: index for index, label in enumerate(classes)}
        labels = np.array([number.get(image.label, -1) for image in images])
    return Group(
        name=name, classes=classes, many=many, train=train, test=test, train_labels=labels[train], gold=labels[test]
    )


def _can_be_probed(train: Int[np.ndarray, " train"], test: Int[np.ndarray, " test"], num_folds: int) -> bool:
    enough = min(train.sum(), (1 - train).sum()) >= num_folds
    return bool(enough and min(test.sum(), (1 - test).sum()) >= MIN_TEST)
