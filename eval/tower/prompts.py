"""Reads the labelled images of a prompt set, `FOLDER:TRAIN,TEST` or `FOLDER:SPLIT`: those that a VLM is asked about.

An image's class is `class` in the prompt's `meta`, otherwise the prompt's answer. `findings` in `meta` (a list of
names) takes the place of a class. An image counts once per split, however many prompts show it.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from data_builders.prompt_sets.prompts import Prompt, read_prompts
from eval.tower.labelled import TEST, TRAIN, LabelledImage, join_findings

if TYPE_CHECKING:
    from PIL.Image import Image

Opener = Callable[[Path], Callable[[], "Image"]]


def names_prompt_set(data: str) -> bool:
    """True if `--data` has the form FOLDER:SPLIT and the folder exists."""
    folder, separator, splits = data.rpartition(":")
    return bool(separator and splits) and Path(folder).is_dir()


def read_prompt_set(data: str, left_out: Counter[str], opener: Opener) -> list[LabelledImage]:
    """Returns the images of one or two splits; with two, the first is the training part and the second the test part.

    Args:
        data: FOLDER:SPLIT or FOLDER:TRAIN,TEST.
        left_out: counts what is not used, per reason.
        opener: returns the function that opens a file.

    Raises:
        ValueError: for another number of splits, and as `read_prompts` does.
    """
    folder, _, text = data.rpartition(":")
    splits = text.split(",")
    if len(splits) > 2 or len(set(splits)) < len(splits):
        raise ValueError(
            f"--data {data} names {len(splits)} splits; expected FOLDER:SPLIT, which is divided by --test-frac, or "
            "FOLDER:TRAIN,TEST, such as outputs/medical/data:rl,test"
        )
    parts = (None,) if len(splits) == 1 else (TRAIN, TEST)
    return [
        image
        for split, part in zip(splits, parts, strict=True)
        for image in _images_of(Path(folder), split, part, left_out, opener)
    ]


def _images_of(
    folder: Path, split: str, part: str | None, left_out: Counter[str], opener: Opener
) -> Iterator[LabelledImage]:
    found: dict[str, LabelledImage] = {}
    unclear: set[str] = set()
    for prompt in read_prompts(folder, split):
        if len(prompt.images) != 1:
            left_out[f"prompt with {'several pictures' if prompt.images else 'no picture'}"] += 1
            continue
        (name,) = prompt.images
        image = _labelled(prompt, name, split, part, opener(folder / name))
        known = found.setdefault(name, image)
        if (known.label, known.findings, known.modality) != (image.label, image.findings, image.modality):
            unclear.add(name)
    left_out["picture that is of different classes in its prompts"] += len(unclear)
    yield from (image for name, image in found.items() if name not in unclear)


def _labelled(
    prompt: Prompt, name: str, split: str, part: str | None, open_image: Callable[[], "Image"]
) -> LabelledImage:
    meta = prompt.meta or {}
    given = meta.get("findings")
    if given is not None and not (isinstance(given, list) and all(isinstance(each, str) for each in given)):
        raise ValueError(f"prompt {prompt.id!r}: its meta has findings {given!r}; expected a list of names")
    findings = None if given is None else tuple(sorted(given))
    label = str(meta.get("class", prompt.answer)) if findings is None else join_findings(findings)
    modality = meta.get("modality")
    return LabelledImage(
        id=f"{split}/{name}",
        label=label,
        findings=findings,
        modality=None if modality is None else str(modality),
        split=part,
        open=open_image,
    )
