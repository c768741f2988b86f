"""How is a pair set built? Pair by pair from its number alone, on several processes, into one folder.

    pairs.jsonl      one `Pair` per line, in order; during a build it also records the progress
    metadata.jsonl   the same for `datasets.load_dataset("imagefolder", data_dir=FOLDER)`
    images/, masks/  the images, and masks that prove what differs
    preview.png      contact sheet of the first pairs
    manifest.json    sha256 of every file, the builder's version and its arguments

Everything in pair i is drawn from the seed, the split, the task and i: it does not depend on other pairs, on their
number, or on the process that draws it. A build that was killed continues after the last complete line of
`pairs.jsonl`; images of later pairs are written again.
"""

import json
import os
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from data_builders.pairs.flat_png import encode_flat
from data_builders.pairs.pair import PAIRS_FILE, Box, Pair, from_row, to_line
from data_builders.pairs.sheet import PREVIEW_FILE, draw_sheet
from data_builders.pairs.vision_grid import VisionGrid, open_vision_grid
from data_builders.pairs.workers import num_cores, work_through
from data_builders.prompt_sets.images import COMPRESS_LEVEL
from tracking.progress import progress

METADATA_FILE = "metadata.jsonl"
MANIFEST_FILE = "manifest.json"
IMAGES_DIR = "images"
MASKS_DIR = "masks"
SPLITS = ("train", "validation", "test")
NUM_PREVIEWED = 12
FLAT_CHUNK = 16
"""Chunk size for flat pages: each takes only milliseconds, and sending one takes a good part of a millisecond."""


@dataclass(frozen=True, kw_only=True)
class PairSetArguments:
    """Number of pairs, target model and number of processes."""

    num_pairs: int = field(
        default=100, metadata={"help": "number of pairs in the set; data_builders.validate checks the finished set"}
    )
    split: str = field(
        default="test",
        metadata={"help": "split of the set: train, validation or test; splits share no word and no photograph"},
    )
    processor: str = field(
        default="qwen2_5_vl",
        metadata={
            "help": "model family whose vision grid is used for both pictures: qwen2_vl, qwen2_5_vl, qwen3_vl, "
            "pocket or a checkpoint"
        },
    )
    num_workers: int = field(
        default=0, metadata={"help": "number of processes; 0: one per core. The files do not depend on it"}
    )

    def __post_init__(self) -> None:
        if self.num_pairs < 1:
            raise ValueError(f"num_pairs is {self.num_pairs}; it must be at least 1")
        if self.num_workers < 0:
            raise ValueError(f"num_workers is {self.num_workers}; expected 0 (one per core) or more")
        if self.split not in SPLITS:
            raise ValueError(f"split {self.split!r} is unknown; expected one of {', '.join(SPLITS)}")


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """Settings shared by all pairs of a set."""

    task: str
    seed: int
    split: str
    grid: VisionGrid
    work_dir: Path
    """Folder for fetched data; removed when the set is complete."""

    def rng(self, *names: Any) -> random.Random:
        """Returns the random number generator for these names, such as a pair's number."""
        return random.Random("/".join(map(str, (self.seed, self.split, self.task, *names))))


class DrawnPair(NamedTuple):
    """A pair with its files, keyed by path in the set's folder: images, or bytes to store unchanged."""

    pair: Pair
    files: dict[str, Image.Image | bytes]


DrawPair = Callable[[int], DrawnPair]
"""Draws a pair, given its number."""


class PairTask(NamedTuple):
    """One kind of pair set."""

    arguments: type
    """Dataclass of its arguments."""
    open: Callable[[Any, Drawing], DrawPair]
    """Returns the function that draws pairs; called once per process."""
    describe: Callable[[Any], dict[str, Any]]
    """Returns what determines the product; paths do not."""
    check: Callable[[Any, Drawing, int], None] | None = None
    """Checks before anything is written that the requested number of pairs can be drawn."""
    prepare: Callable[[Any, Drawing, int], None] | None = None
    """Fetches the data needed into the work folder; called once, before drawing."""
    flat: bool = False
    """Its images have few colours and are stored without PNG filters, in half the time."""


def pair_id(task: str, index: int) -> str:
    """Returns a pair's id, which is also the prefix of its files."""
    return f"{task}-{index:06d}"


def image_names(task: str, index: int, suffix: str = ".png") -> tuple[str, str]:
    """Returns the paths of a pair's target and source."""
    return tuple(f"{IMAGES_DIR}/{pair_id(task, index)}-{side}{suffix}" for side in ("target", "source"))  # type: ignore[return-value]


def mask_name(task: str, index: int, name: str) -> str:
    """Returns the path of a pair's mask."""
    return f"{MASKS_DIR}/{pair_id(task, index)}-{name}.png"


def build_pair_set(directory: Path, task: PairTask, own: Any, drawing: Drawing, shared: PairSetArguments) -> None:
    """Writes a set, or its missing part, into a folder; everything except the manifest.

    Raises:
        ValueError: if a pair cannot be drawn with these arguments; the message names it.
    """
    (directory / MANIFEST_FILE).unlink(missing_ok=True)  # left by a build that was killed at the end
    if task.prepare is not None:
        task.prepare(own, drawing, shared.num_pairs)
    for name in (IMAGES_DIR, MASKS_DIR):
        (directory / name).mkdir(exist_ok=True)
    done = _whole_lines(directory / PAIRS_FILE)
    missing = range(done, shared.num_pairs)
    num_workers = min(shared.num_workers or num_cores(), len(missing))
    with (directory / PAIRS_FILE).open("a", encoding="utf-8") as file:
        writing = (task, own, drawing, directory)
        chunk_size = FLAT_CHUNK if task.flat else 1
        lines: Iterable[str] = ()
        if missing:
            lines = work_through(_open_writing, writing, missing, num_workers=num_workers, chunk_size=chunk_size)
        for line in progress(lines, label=drawing.task, total=len(missing), unit="pair"):
            file.write(line)
            file.flush()
    masks = directory / MASKS_DIR
    if not any(masks.iterdir()):
        masks.rmdir()
    with (directory / METADATA_FILE).open("w", encoding="utf-8") as file:
        file.writelines(map(_metadata_line, _lines(directory)))
    previewed = [from_row(json.loads(line)) for line, _ in zip(_lines(directory), range(NUM_PREVIEWED), strict=False)]
    draw_sheet(directory, previewed).save(directory / PREVIEW_FILE, compress_level=COMPRESS_LEVEL)


def describe_set(task: PairTask, own: Any, shared: PairSetArguments) -> dict[str, Any]:
    """Returns what determines a set besides its seed."""
    grid = open_vision_grid(shared.processor).describe()
    return {"num_pairs": shared.num_pairs, "split": shared.split, "processor": grid, **task.describe(own)}


def _whole_lines(path: Path) -> int:
    """Returns the number of pairs in a folder, after removing an incomplete last line."""
    if not path.exists():
        return 0
    num_lines = num_bytes = 0
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                num_lines, num_bytes = num_lines + 1, num_bytes + len(line)
    os.truncate(path, num_bytes)
    return num_lines


def _lines(directory: Path) -> Iterator[str]:
    with (directory / PAIRS_FILE).open(encoding="utf-8") as file:
        yield from file


def _metadata_line(line: str) -> str:
    row = json.loads(line)
    names = {f"{side}_file_name": row.pop(f"{side}_image") for side in ("target", "source")}
    return json.dumps(names | row, ensure_ascii=False) + "\n"


def _write(directory: Path, drawn: DrawnPair, grid: VisionGrid, flat: bool) -> str:
    """Writes a pair's files and returns its line."""
    for name, content in drawn.files.items():
        if isinstance(content, bytes):
            (directory / name).write_bytes(content)
        elif flat:
            (directory / name).write_bytes(encode_flat(content))
        else:
            content.save(directory / name, format="PNG", compress_level=COMPRESS_LEVEL)
    sizes = [_size(drawn.files[name]) for name in drawn.pair.images]
    assert sizes[0] == sizes[1], f"{drawn.pair.id}: pictures of {sizes[0]} and {sizes[1]}"
    return to_line(with_grid(drawn.pair, sizes[0], grid))


def _size(content: Image.Image | bytes) -> tuple[int, int]:
    return content.size if isinstance(content, Image.Image) else Image.open(BytesIO(content)).size


def with_grid(pair: Pair, size: tuple[int, int], grid: VisionGrid) -> Pair:
    """Adds to a pair the resized size of its images and its boxes in resized pixels."""
    resized = grid.resized(size)
    facts: dict[str, Any] = {"image_size": size, "resized_size": resized, "grid": grid.patches(size)}
    for side, box in (("target", pair.target_box), ("source", pair.source_box)):
        if box is not None:
            facts[f"{side}_box_resized"] = scale_box(box, size, resized)
    return replace(pair, meta=facts | (pair.meta or {}))


def scale_box(box: Box, size: tuple[int, int], resized: tuple[int, int]) -> list[float]:
    """Returns a box in the resized image's pixels, rounded to 0.001."""
    return [round(edge * resized[axis % 2] / size[axis % 2], 3) for axis, edge in enumerate(box)]


def _open_writing(task: PairTask, own: Any, drawing: Drawing, directory: Path) -> Callable[[int], str]:
    """Returns the function that draws and writes a pair, given its number, and returns its line."""
    draw = task.open(own, drawing)

    def write(index: int) -> str:
        return _write(directory, draw(index), drawing.grid, task.flat)

    return write
