"""Are the files of a built set consistent? Checks its manifest, metadata, file names and recorded sizes.

The content of the images is checked by `pairs/defects.py` and the checks of each task; `command.py` calls all of them.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from data_builders.pairs.pair import PAIRS_FILE, TASKS, Pair, from_row, to_line
from data_builders.pairs.pictures import Found
from data_builders.pairs.sets import IMAGES_DIR, MANIFEST_FILE, MASKS_DIR, METADATA_FILE, SPLITS, pair_id, scale_box
from data_builders.pairs.vision_grid import Size, VisionGrid

CARD_FILE = "README.md"
MANIFEST_KEYS = {"task": str, "builder_version": int, "arguments": dict, "files": dict}

FILE_DEFECTS = {
    "missing_manifest": "nothing records what the files were when they were built",
    "missing_file": "the manifest lists a file that is not there",
    "unlisted_file": "a file that the manifest does not list",
    "changed_file": "a file's sha256 is not the one in the manifest",
    "unused_file": "a picture or mask that no pair names",
    "wrong_arguments": "the set is not what the arguments in its manifest ask for",
    "metadata_differs": f"{METADATA_FILE} does not say what {PAIRS_FILE} says",
}
"""Defects of files, or of the set as a whole."""

PAIR_RECORD_DEFECTS = {
    "wrong_id": "its id is not the task and its number",
    "wrong_image_size": "the recorded size is not the pictures'",
    "wrong_grid": "the recorded resized size or grid of patches is not what the processor makes of the pictures",
    "wrong_resized_box": "the recorded box in resized pixels is not the box of the picture, scaled",
}
"""Defects of a pair's recorded values."""


@dataclass(frozen=True)
class PairSet:
    """A pair set on disk and its manifest, if any."""

    directory: Path
    manifest: dict[str, Any] | None

    @cached_property
    def without_files(self) -> "PairSet":
        """The same set without the manifest's file list, for processes that check pairs."""
        return self if self.manifest is None else PairSet(self.directory, self.manifest | {"files": {}})

    @property
    def builder(self) -> str | None:
        """The task in `data_builders.build` that built it."""
        return self.manifest["task"] if self.manifest else None

    @property
    def split(self) -> str | None:
        return self.manifest["arguments"].get("split") if self.manifest else None

    @cached_property
    def grid(self) -> VisionGrid | None:
        """The processor grid for which the images were made."""
        if self.manifest is None:
            return None
        numbers = self.manifest["arguments"].get("processor")
        try:
            grid = VisionGrid(**numbers)
            valid = all(type(number) is int and number > 0 for number in numbers.values())
        except TypeError:
            valid = False
        if not valid:
            raise ValueError(
                f"{self.directory / MANIFEST_FILE}: processor is {numbers!r}; expected patch_size, merge_size, "
                "min_pixels and max_pixels, as data_builders.build writes them"
            )
        return grid


def open_set(directory: Path) -> PairSet:
    """Reads a set's manifest, if there is one.

    Raises:
        ValueError: if it is not the manifest of a pair set.
    """
    path = directory / MANIFEST_FILE
    if not path.is_file():
        return PairSet(directory, None)
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not readable as JSON ({error}); build the set again") from error
    if not isinstance(manifest, dict) or not all(isinstance(manifest.get(k), t) for k, t in MANIFEST_KEYS.items()):
        raise ValueError(
            f"{path}: expected an object with {', '.join(MANIFEST_KEYS)}, as data_builders.build writes it"
        )
    found = PairSet(directory, manifest)
    assert found.grid is not None
    return found


def check_listing(pair_set: PairSet, named: Set[str]) -> Iterator[tuple[str, str, str]]:
    """Yields missing and extra files: name, kind of defect and finding.

    Args:
        pair_set: the set.
        named: the images and masks that its pairs name.
    """
    if pair_set.manifest is None:
        if (pair_set.directory / PAIRS_FILE).is_file():
            yield MANIFEST_FILE, "missing_manifest", "is not there, so no file can be compared with what was built"
        return
    listed = pair_set.manifest["files"]
    there = _files_below(pair_set.directory) - {MANIFEST_FILE}
    for name in sorted(listed.keys() - there):
        yield name, "missing_file", "the manifest lists it"
    for name in sorted(there - listed.keys()):
        yield name, "unlisted_file", "the manifest does not list it"
    for name in sorted(there & listed.keys() - named):
        if name.startswith((f"{IMAGES_DIR}/", f"{MASKS_DIR}/")):
            yield name, "unused_file", "no pair names it"


def check_arguments(pair_set: PairSet, num_by_task: Mapping[str, int]) -> Found:
    """Yields the differences between a set and its manifest's arguments."""
    if pair_set.manifest is None:
        return
    arguments = pair_set.manifest["arguments"]
    num_pairs = sum(num_by_task.values())
    if arguments.get("num_pairs") != num_pairs:
        yield "wrong_arguments", f"num_pairs is {arguments.get('num_pairs')!r}, there are {num_pairs}"
    if arguments.get("split") not in SPLITS:
        yield "wrong_arguments", f"split is {arguments.get('split')!r}; expected one of {', '.join(SPLITS)}"
    other = sorted(num_by_task.keys() - {pair_set.builder})
    if pair_set.builder in TASKS and other:
        yield "wrong_arguments", f"task is {pair_set.builder}, there are pairs of {', '.join(other)}"


def check_metadata(directory: Path, pairs: Iterable[Pair], num_pairs: int) -> Found:
    """Yields differences between `metadata.jsonl` and `pairs.jsonl`: the first differing line and the line counts."""
    if not (directory / PAIRS_FILE).is_file():
        return
    path = directory / METADATA_FILE
    if not path.is_file():
        yield "metadata_differs", "is not there"
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, (line, pair) in enumerate(zip(file, pairs, strict=False), start=1):
            if not _says(line, pair):
                yield "metadata_differs", f"line {number} does not say what {pair.id} says"
                break
    with path.open("rb") as file:
        num_lines = sum(1 for _ in file)
    if num_lines != num_pairs:
        yield "metadata_differs", f"{num_lines} lines for {num_pairs} pairs"


def check_id(pair_set: PairSet, pair: Pair, number: int) -> Found:
    """Checks a pair's id, from which it can be drawn again."""
    if pair_set.builder is not None and pair.id != pair_id(pair_set.builder, number):
        yield "wrong_id", f"expected {pair_id(pair_set.builder, number)}"


def check_hash(directory: Path, name: str, recorded: str) -> Found:
    """Yields a defect if a file differs from its recorded sha256."""
    path = directory / name
    if not path.is_file():
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != recorded:
        yield "changed_file", f"sha256 {found[:12]}…, recorded {str(recorded)[:12]}…"


def check_sizes(pair: Pair, size: Size, grid: VisionGrid) -> Found:
    """Checks a pair's recorded image size, resized size, grid and resized boxes."""
    meta = pair.meta or {}
    if meta.get("image_size") != list(size):
        yield "wrong_image_size", f"recorded {meta.get('image_size')}, found {list(size)}"
    resized, patches = list(grid.resized(size)), list(grid.patches(size))
    for name, expected in (("resized_size", resized), ("grid", patches)):
        if meta.get(name) != expected:
            yield "wrong_grid", f"recorded {name} {meta.get(name)}, expected {expected}"
    for side, box in (("target", pair.target_box), ("source", pair.source_box)):
        name = f"{side}_box_resized"
        scaled = None if box is None else scale_box(box, size, (resized[0], resized[1]))
        if meta.get(name) != scaled:
            yield "wrong_resized_box", f"recorded {name} {meta.get(name)}, expected {scaled}"


def files_of(pair: Pair) -> set[str]:
    """Returns the images of a pair and the masks that its meta names."""
    return {*pair.images, *(text for text in _texts(pair.meta) if text.startswith(f"{MASKS_DIR}/"))}


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)


def _files_below(directory: Path) -> set[str]:
    """Returns the names of all files except hidden ones and the dataset card."""
    names = (path.relative_to(directory) for path in directory.rglob("*") if not path.is_dir())
    return {name.as_posix() for name in names if name.parts[0][0] != "." and name.as_posix() != CARD_FILE}


def _says(line: str, pair: Pair) -> bool:
    try:
        row = json.loads(line)
        for side in ("target", "source"):
            row[f"{side}_image"] = row.pop(f"{side}_file_name")
        return to_line(from_row(row)) == to_line(pair)
    except (ValueError, TypeError, KeyError, AttributeError):
        return False
