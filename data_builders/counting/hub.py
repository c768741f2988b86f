"""Counting pairs from a published data set of scenes and counts: two unrelated scenes per pair, like the paper's.

For reproduction only: the two images differ in everything (`minimal` is false in `meta`, which `data_builders.validate`
reports). Rows contain an image and a text with the count, as in BUAADreamer/clevr_count_70k; they are streamed from the
hub, or read from a folder of Parquet or JSON Lines files. Pair i takes, from its own window of rows, the first two with
different counts and equal image sizes, so it depends only on the data set, the split and i.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from io import BytesIO
from itertools import combinations, islice
from pathlib import Path
from typing import Any

from PIL import Image

from data_builders.pairs.pair import Pair
from data_builders.pairs.sets import SPLITS, Drawing, DrawnPair, DrawPair, image_names, pair_id
from data_builders.prompt_sets.images import DECODING_ERRORS
from data_builders.sources.files import files_sha256
from data_builders.sources.hub import HubPlace, hub_place, named_repository, stream_rows

WINDOW_ROWS = 8
"""Rows per pair; windows of train, validation and test alternate."""
FETCHED_FILE = "scenes.jsonl"
FORMATS = {"JPEG": ".jpg", "PNG": ".png"}
SUFFIXES = (".parquet", ".jsonl")
NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


@dataclass(frozen=True, kw_only=True)
class SceneSource:
    """Source of scenes with counts, if they are not rendered."""

    scenes: str | None = field(
        default=None,
        metadata={
            "help": "hub id, or folder of Parquet or JSONL files: use its scenes instead of rendering new ones, to "
            "reproduce a set"
        },
    )
    scenes_config: str | None = field(default=None, metadata={"help": "configuration of that data set"})
    scenes_split: str = field(default="train", metadata={"help": "split of that data set"})
    image_column: str = field(
        default="images", metadata={"help": "column of that data set with the picture, or a list of one picture"}
    )
    count_column: str = field(
        default="answer",
        metadata={"help": "column of that data set with the count: a number, or a text that contains exactly one"},
    )

    def __post_init__(self) -> None:
        if self.scenes is not None and not self.scenes.strip():
            raise ValueError("scenes is empty; expected a folder, or a hub id such as owner/name")


@cache
def scenes_fingerprint(source: SceneSource) -> str:
    """Returns the version of the rows: a hub commit, or a sha256 over a folder's files."""
    assert source.scenes is not None
    place = Path(source.scenes)
    return files_sha256(_files_in(place)) if place.is_dir() else _hub_place(source.scenes).commit


def fetch_scenes(source: SceneSource, drawing: Drawing, num_pairs: int) -> None:
    """Reads the rows needed for a number of pairs and stores their images in the work folder.

    Raises:
        ValueError: if the data set has too few rows, lacks a column, or has a row whose count cannot be read.
    """
    drawing.work_dir.mkdir(parents=True, exist_ok=True)
    taken = SPLITS.index(drawing.split)
    num_rows = 0
    window: list[dict[str, Any]] = []
    lines: list[str] = []
    for num_rows, row in enumerate(_rows(source), start=1):
        block = (num_rows - 1) // WINDOW_ROWS
        if block % len(SPLITS) == taken:
            window.append({"row": num_rows - 1, **_read_row(source, row, num_rows - 1)})
        if num_rows % WINDOW_ROWS == 0 and window:
            lines.append(_choose(source, drawing, window, len(lines)))
            window = []
        if len(lines) == num_pairs:
            break
    if len(lines) < num_pairs:
        raise ValueError(
            f"scenes {source.scenes}: its {num_rows} rows make {len(lines)} pairs of split {drawing.split}, one of "
            f"{len(SPLITS) * WINDOW_ROWS} rows each; expected {num_pairs}: lower num_pairs"
        )
    (drawing.work_dir / FETCHED_FILE).write_text("".join(lines), encoding="utf-8")


def open_scene_pairs(drawing: Drawing, prompt: str) -> DrawPair:
    """Returns the function that makes a pair, given its number, from the fetched scenes."""
    lines = (drawing.work_dir / FETCHED_FILE).read_text(encoding="utf-8").splitlines()

    def draw(index: int) -> DrawnPair:
        chosen = json.loads(lines[index])
        if drawing.rng(index).random() < 0.5:
            chosen = chosen[::-1]
        target, source = chosen
        images = [image_names(drawing.task, index, Path(each["file"]).suffix)[side] for side, each in enumerate(chosen)]
        pair = Pair(
            id=pair_id(drawing.task, index),
            task="counting",
            prompt=prompt,
            target_image=images[0],
            source_image=images[1],
            target_answer=str(target["count"]),
            source_answer=str(source["count"]),
            meta={"minimal": False, "target_row": target["row"], "source_row": source["row"]},
        )
        files = {
            name: (drawing.work_dir / each["file"]).read_bytes() for name, each in zip(images, chosen, strict=True)
        }
        return DrawnPair(pair, dict(files))

    return draw


def read_count(value: Any) -> int | None:
    """Returns the count in a number or text; None if there is none or several."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if not isinstance(value, str):
        return None
    names = {word: number for number, word in enumerate(NUMBER_WORDS)}
    found = {names.get(word, word) for word in re.findall(rf"\d+|\b(?:{'|'.join(NUMBER_WORDS)})\b", value.casefold())}
    counts = {int(count) for count in found}
    return counts.pop() if len(counts) == 1 else None


def _read_row(source: SceneSource, row: Mapping[str, Any], number: int) -> dict[str, Any]:
    """Returns a row's count and its encoded image."""
    for column in (source.image_column, source.count_column):
        if column not in row:
            raise ValueError(
                f"scenes {source.scenes} has no column {column!r}; it has {', '.join(row)}: "
                "name them by image_column and count_column"
            )
    count = read_count(row[source.count_column])
    if count is None:
        raise ValueError(
            f"scenes {source.scenes}, row {number}: {source.count_column} is {row[source.count_column]!r}; "
            "expected a text with one number"
        )
    entry = row[source.image_column]
    entry = entry[0] if isinstance(entry, list) and len(entry) == 1 else entry
    try:
        content = _content(source, entry)
        with Image.open(BytesIO(content)) as image:
            return {"count": count, "content": content, "size": image.size, "suffix": FORMATS[str(image.format)]}
    except (*DECODING_ERRORS, KeyError) as error:
        raise ValueError(
            f"scenes {source.scenes}, row {number}: {source.image_column} is no picture in JPEG or PNG "
            f"({type(error).__name__})"
        ) from error


def _content(source: SceneSource, entry: Any) -> bytes:
    if isinstance(entry, Mapping) and entry.get("bytes"):
        return bytes(entry["bytes"])
    path = entry.get("path") if isinstance(entry, Mapping) else entry
    return (Path(str(source.scenes)) / str(path)).read_bytes()


def _choose(source: SceneSource, drawing: Drawing, window: list[dict[str, Any]], index: int) -> str:
    """Stores the first two scenes of a window that form a pair, and returns their line."""
    for pair in combinations(window, 2):
        if pair[0]["count"] != pair[1]["count"] and pair[0]["size"] == pair[1]["size"]:
            break
    else:
        raise ValueError(
            f"pair {pair_id(drawing.task, index)}: rows {window[0]['row']} to {window[-1]['row']} of {source.scenes} "
            "contain no two pictures of equal size with different counts; shuffle the data set"
        )
    kept = []
    for each in pair:
        file = f"scene-{each['row']:08d}{each['suffix']}"
        (drawing.work_dir / file).write_bytes(each["content"])
        kept.append({"row": each["row"], "count": each["count"], "file": file})
    return json.dumps(kept) + "\n"


def _rows(source: SceneSource) -> Iterator[Mapping[str, Any]]:
    """Yields the rows with encoded images."""
    assert source.scenes is not None
    place = Path(source.scenes)
    if place.is_dir():
        files = _files_in(place)
        path, config = "parquet" if files[0].suffix == ".parquet" else "json", None
        options: dict[str, Any] = {"data_files": {source.scenes_split: list(map(str, files))}}
    else:
        found = _hub_place(source.scenes)
        path, config, options = found.path, source.scenes_config, {"revision": found.revision}
    rows = stream_rows(
        path,
        config,
        split=source.scenes_split,
        named=f"scenes {source.scenes}",
        correct="scenes_split or scenes_config, or download it and name the folder",
        **options,
    )
    return islice(rows.decode(False), None)


@cache
def _hub_place(name: str) -> HubPlace:
    return hub_place(named_repository(name, named="scenes", example="BUAADreamer/clevr_count_70k"))


def _files_in(folder: Path) -> list[Path]:
    files = [path for path in sorted(folder.iterdir()) if path.suffix in SUFFIXES]
    if len({path.suffix for path in files}) != 1:
        raise ValueError(f"scenes {folder} holds {len(files)} files; expected .parquet files or .jsonl files, not both")
    return files
