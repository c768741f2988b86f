"""Is a prompt set sound? Checks its files, answers and pictures, and that no held-out picture is in another split."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from data_builders.pairs.files import DATA_DIR
from data_builders.pairs.pair import PAIRS_FILE
from data_builders.pairs.published import PUBLISHED_FILE
from data_builders.pairs.sets import MANIFEST_FILE, METADATA_FILE
from data_builders.prompt_sets.images import DECODING_ERRORS
from data_builders.prompt_sets.prompts import Prompt, read_prompts, splits_of
from data_builders.sources.files import file_sha256
from tracking.progress import progress

HELD_OUT = ("validation", "test")
NUM_NAMED = 3
DEFECTS = {
    "missing_file": "the manifest lists a file that is not there",
    "unlisted_file": "a file that the manifest does not list",
    "changed_file": "a file's sha256 is not the one in the manifest",
    "wrong_options": "a choice has fewer than two options, or two equal ones",
    "wrong_answer": "the answer is not one of the options, or neither yes nor no",
    "broken_picture": "a picture cannot be decoded",
    "shared_picture": "a held-out picture has the pixels of one in another split",
}

Found = tuple[str, str, str]
"""Kind of a defect, the file or prompt, and the finding."""


def find_prompt_set(directory: Path) -> Path | None:
    """Returns the prompt set in a folder: itself or its `data/`; None if there is none, or if it is a pair set."""
    for place in (directory, directory / DATA_DIR):
        splits = splits_of(place) if place.is_dir() else []
        if splits and not any((place / name).is_file() for name in (PAIRS_FILE, PUBLISHED_FILE, METADATA_FILE)):
            return place
    return None


def validate_prompt_set(directory: Path) -> tuple[int, list[Found]]:
    """Returns the number of prompts of a set, and its defects.

    Raises:
        ValueError: if a line is malformed, an id is repeated, or a picture is missing.
    """
    prompts = {split: read_prompts(directory, split) for split in splits_of(directory)}
    found = list(_check_files(directory))
    for split, own in prompts.items():
        found += [(kind, f"{split}: {prompt.id}", text) for prompt in own for kind, text in _check_answer(prompt)]
    found += _check_pictures(directory, prompts)
    return sum(map(len, prompts.values())), found


def describe_prompt_set(directory: Path, num_prompts: int, found: list[Found]) -> list[str]:
    """Returns the findings as lines of text."""
    lines = [f"{directory}: {num_prompts} prompts ({', '.join(splits_of(directory))})"]
    lines += [f"  {name}: {kind}: {text}" for kind, name, text in found]
    for kind, count in sorted(Counter(kind for kind, _, _ in found).items()):
        names = list(dict.fromkeys(name for own, name, _ in found if own == kind))
        named = ", ".join(names[:NUM_NAMED]) + (", …" if len(names) > NUM_NAMED else "")
        lines.append(f"  {count} times: {kind} ({DEFECTS[kind]}): {named}")
    absent = [kind for kind in DEFECTS if not any(own == kind for own, _, _ in found)]
    if not (directory / MANIFEST_FILE).is_file():
        absent = [kind for kind in absent if not kind.endswith("_file")]
        lines.append("  not checked: files against a manifest, as there is none")
    return [*lines, f"  looked for, not found: {', '.join(absent)}"]


def _check_files(directory: Path) -> Iterator[Found]:
    path = directory / MANIFEST_FILE
    if not path.is_file():
        return
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))["files"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: expected an object with `files`, as data_builders.build writes it") from error
    there = {file.relative_to(directory).as_posix() for file in directory.rglob("*") if file.is_file()}
    for name in sorted(set(listed) - there):
        yield "missing_file", name, "the manifest lists it"
    for name in sorted(there - set(listed) - {MANIFEST_FILE}):
        yield "unlisted_file", name, "the manifest does not list it"
    for name in progress(sorted(there & set(listed)), label="digests of all files", unit="file"):
        if file_sha256(directory / name) != listed[name]:
            yield "changed_file", name, "its sha256 is not the recorded one"


def _check_answer(prompt: Prompt) -> Iterator[tuple[str, str]]:
    if prompt.answer_kind == "yes_no" and prompt.answer.lower() not in ("yes", "no", "true", "false"):
        yield "wrong_answer", f"{prompt.answer!r} for a yes/no question"
    if prompt.answer_kind != "choice" or not prompt.choices:
        return
    if len(prompt.choices) < 2 or len(set(prompt.choices)) < len(prompt.choices):
        yield "wrong_options", f"options {list(prompt.choices)}"
    letters = [chr(ord("A") + number) for number in range(len(prompt.choices))]
    if prompt.answer not in prompt.choices and prompt.answer not in letters:
        yield "wrong_answer", f"{prompt.answer!r} is none of {list(prompt.choices)}"


def _check_pictures(directory: Path, prompts: dict[str, list[Prompt]]) -> list[Found]:
    splits_by_picture: dict[str, set[str]] = {}
    for split, own in prompts.items():
        for prompt in own:
            for image in prompt.images:
                splits_by_picture.setdefault(image, set()).add(split)
    found: list[Found] = []
    first: dict[bytes, tuple[str, set[str]]] = {}
    for image, splits in progress(splits_by_picture.items(), label="pictures", total=len(splits_by_picture)):
        try:
            with Image.open(directory / image) as file:
                pixels = np.asarray(file)
        except DECODING_ERRORS as error:
            found.append(("broken_picture", image, type(error).__name__))
            continue
        digest = hashlib.sha256(f"{pixels.shape}".encode() + pixels.tobytes()).digest()
        other, seen = first.setdefault(digest, (image, set()))
        seen |= splits
        if len(seen) > 1 and seen & set(HELD_OUT):
            found.append(("shared_picture", image, f"as {other}; splits {', '.join(sorted(seen))}"))
    return found
