"""Reads COCO's photographs from the hub, row by row, in the layout of `detection-datasets/coco`.

A row has `image_id`, `image`, `width`, `height`, and under `objects` a `category` and an `area` for each instance.
There are no outlines and no crowd flags (`iscrowd` is used if a data set has it). Rows are read in order, only as many
as needed; one photograph at a time is in memory, and those of the split are stored in a folder.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

from data_builders.prompt_sets.images import UnusableImageError
from data_builders.recognition.coco import Annotations, Opened, Photograph, Presence, open_photograph, split_of
from data_builders.sources.files import files_sha256
from data_builders.sources.hub import HubPlace, hub_place, named_repository, stream_rows
from tracking.progress import progress

COLUMNS = ("image_id", "image", "width", "height", "objects")
OBJECT_COLUMNS = ("category", "area")
ASK_EVERY = 50


def hub_fingerprint(name: str) -> str:
    """Returns the commit of a hub data set, looked up once per process, or a fingerprint of a folder's files."""
    folder = Path(name)
    return files_sha256(sorted(folder.rglob("*.parquet"))) if folder.is_dir() else _place(name).commit


def fetch_hub_annotations(
    name: str, hub_split: str, num_rows: int, split: str, directory: Path, enough: Callable[[Annotations], bool]
) -> Annotations:
    """Reads rows until there are enough photographs, and stores those of the split in a folder.

    Args:
        name: a hub id, such as `owner/name@revision`, or a folder with the same layout.
        hub_split: the data set's own split.
        num_rows: maximum number of rows to read.
        split: this suite's split; photographs are assigned by number.
        directory: folder for the photographs.
        enough: returns whether there are enough; called every `ASK_EVERY` photographs.
    """
    rows, categories = _open_rows(name, hub_split)
    read = Annotations(categories=dict(enumerate(categories)))
    for row in progress(islice(rows, num_rows), label=name, unit="row"):
        image_id = row["image_id"]
        if split_of(image_id) != split or image_id in read.photographs:
            continue
        try:
            content, opened = _photograph_in(row)
        except UnusableImageError as error:
            read.left_out[f"image {image_id}"] = str(error)
            continue
        photograph = Photograph(image_id, f"{image_id:012d}", *opened.picture.size)
        (directory / photograph.file_name).write_bytes(content)
        read.photographs[image_id] = photograph
        for category, area, is_crowd in _objects_in(row):
            presence = read.presences.setdefault((image_id, category), Presence())
            presence.add(float(area), is_crowd=is_crowd, segmentation=None)
        if len(read.photographs) % ASK_EVERY == 0 and enough(read):
            break
    return read


@cache
def _place(name: str) -> HubPlace:
    return hub_place(named_repository(name, named="hub_dataset", example="detection-datasets/coco"))


def _open_rows(name: str, hub_split: str) -> tuple[Iterator[Mapping[str, Any]], Sequence[str]]:
    """Returns the rows, with encoded images, and the category names."""
    place = None if Path(name).is_dir() else _place(name)
    dataset = stream_rows(
        name if place is None else place.path,
        split=hub_split,
        revision=None if place is None else place.revision,
        named=f"hub_dataset {name}",
        correct="hub_split, or download it and name the folder",
    )
    features = dataset.features or {}
    objects = features.get("objects")
    if any(column not in features for column in COLUMNS) or not isinstance(objects, Mapping):
        raise ValueError(f"hub_dataset {name} has the columns {', '.join(features)}; expected {', '.join(COLUMNS)}")
    if any(column not in objects for column in OBJECT_COLUMNS):
        raise ValueError(f"hub_dataset {name}: objects hold {', '.join(objects)}; expected {', '.join(OBJECT_COLUMNS)}")
    names: list[str] = objects["category"].feature.names
    return iter(dataset.select_columns(list(COLUMNS)).decode(False)), names


def _photograph_in(row: Mapping[str, Any]) -> tuple[bytes, Opened]:
    content = (row["image"] or {}).get("bytes")
    if not content:
        raise UnusableImageError("missing_image", "has no bytes in its row")
    return content, open_photograph(content, (row["width"], row["height"]))


def _objects_in(row: Mapping[str, Any]) -> Iterator[tuple[int, float, bool]]:
    objects = row["objects"]
    crowds = objects.get("iscrowd") or [0] * len(objects["category"])
    for category, area, is_crowd in zip(objects["category"], objects["area"], crowds, strict=True):
        yield category, area, bool(is_crowd)
