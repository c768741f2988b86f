"""What is on which photograph? Reads annotations in COCO's format, and the photographs.

`instances_*.json` holds `images`, `annotations` and `categories` (https://cocodataset.org/#format-data): each
annotation outlines one instance of a category with polygons, in stored pixels (ignoring EXIF orientation), and
`iscrowd` marks a region with many instances. The file for COCO's training images has 450 MB; it is parsed value by
value, and only what a set needs is kept. A second pass reads the outlines of the selected photographs.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from json import JSONDecodeError, JSONDecoder
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from PIL import Image

from data_builders.prompt_sets.depth import eight_bits
from data_builders.prompt_sets.images import DECODING_ERRORS, UnusableImageError

MINI_COCO = Path(__file__).parent / "mini_coco"
"""Rendered scenes in COCO's format from `data_builders/mini_coco_build.py`; they need no download."""
ANNOTATIONS_FILE = "instances_mini.json"
IMAGES_DIR = "images"

SPLIT_SHARES = {"train": 60, "validation": 10, "test": 30}
"""Percentage of photographs per split."""

CHUNK_CHARS = 2**20
MIN_POLYGON_NUMBERS = 6
"""Minimum polygon: x and y of three corners."""
MAX_COORDINATE = 1e6
ORIENTATION_TAG = 0x0112
"""EXIF tag of the orientation."""
UPRIGHT = 1
PLAIN_SUFFIXES = {"JPEG": ".jpg", "PNG": ".png"}
"""Formats that are stored unchanged."""

Polygon = list[float]
"""x, y, x, y, …; the centre of the first pixel is at 0.5, 0.5."""


class Photograph(NamedTuple):
    """An image as described by the annotations."""

    image_id: int
    file_name: str
    width: int
    height: int

    @property
    def size(self) -> tuple[int, int]:
        return self.width, self.height


@dataclass(slots=True)
class Presence:
    """The instances of one category on a photograph."""

    num_instances: int = 0
    num_crowds: int = 0
    num_without_outline: int = 0
    """Instances without polygons."""
    num_run_lengths: int = 0
    """Those of them that have a mask as run lengths instead."""
    largest_area: float = 0.0
    """Area of each instance, in pixels."""
    total_area: float = 0.0

    def add(self, area: float, *, is_crowd: bool, segmentation: Any) -> None:
        if is_crowd:
            self.num_crowds += 1
            return
        self.num_instances += 1
        self.num_without_outline += polygons_of(segmentation) is None
        self.num_run_lengths += isinstance(segmentation, dict)
        self.largest_area = max(self.largest_area, area)
        self.total_area += area


@dataclass(frozen=True, kw_only=True)
class Annotations:
    """The annotations of one split's photographs."""

    categories: dict[int, str] = field(default_factory=dict)
    photographs: dict[int, Photograph] = field(default_factory=dict)
    presences: dict[tuple[int, int], Presence] = field(default_factory=dict)
    """Keyed by photograph and category."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Name of a photograph -> reason why it cannot be used."""


def split_of(image_id: int) -> str:
    """Returns the only split for a photograph."""
    bucket = int.from_bytes(hashlib.sha256(str(image_id).encode()).digest()[:8], "big") % sum(SPLIT_SHARES.values())
    for split, share in SPLIT_SHARES.items():
        if bucket < share:
            return split
        bucket -= share
    raise AssertionError(f"bucket {bucket} is outside the shares {SPLIT_SHARES}")


def read_annotations(path: Path, split: str) -> Annotations:
    """Reads the annotations of a split's photographs.

    Raises:
        ValueError: if the file is not a COCO instances file; names file and entry.
    """
    read = Annotations()
    for name, number, entry in _entries(path, ("categories", "images", "annotations")):
        try:
            if name == "categories":
                read.categories[entry["id"]] = str(entry["name"])
            elif name == "images" and split_of(_whole(entry, "id")) == split:
                size = _whole(entry, "width"), _whole(entry, "height")
                photograph = Photograph(entry["id"], str(entry["file_name"]), *size)
                read.photographs[photograph.image_id] = photograph
                if min(size) < 1:
                    found = f"has {size[0]} x {size[1]} pixels in its annotations; expected at least 1 x 1"
                    read.left_out[photograph.file_name] = found
            elif name == "annotations" and split_of(_whole(entry, "image_id")) == split:
                place = entry["image_id"], _whole(entry, "category_id")
                presence = read.presences.setdefault(place, Presence())
                is_crowd = bool(entry.get("iscrowd"))
                presence.add(float(entry["area"]), is_crowd=is_crowd, segmentation=entry.get("segmentation"))
        except (KeyError, TypeError, ValueError) as error:
            what = f"has no {error}" if isinstance(error, KeyError) else str(error)
            raise ValueError(f"{path}: entry {number} of {name} {what}; expected COCO's instances_*.json") from error
    if not read.categories:
        raise ValueError(f"{path} names no categories; expected COCO's instances_*.json")
    for image_id, category_id in read.presences:
        if image_id not in read.photographs or category_id not in read.categories:
            found = f"image {image_id} with category {category_id}"
            raise ValueError(f"{path}: an annotation names {found}; expected both in its lists")
    return read


def read_outlines(path: Path, wanted: Iterable[tuple[int, int]]) -> dict[tuple[int, int], list[list[Polygon]]]:
    """Returns the polygons of every instance, for the requested photographs and categories."""
    outlines: dict[tuple[int, int], list[list[Polygon]]] = {place: [] for place in wanted}
    for _, _, entry in _entries(path, ("annotations",)):
        place = entry["image_id"], entry["category_id"]
        if place in outlines and not entry.get("iscrowd"):
            polygons = polygons_of(entry["segmentation"])
            assert polygons is not None, place
            outlines[place].append(polygons)
    return outlines


def polygons_of(segmentation: Any) -> list[Polygon] | None:
    """Returns the polygons of an instance; None if it has none (such as for a run-length mask) or malformed ones."""
    if not isinstance(segmentation, list) or not segmentation:
        return None
    for polygon in segmentation:
        if not isinstance(polygon, list) or len(polygon) < MIN_POLYGON_NUMBERS or len(polygon) % 2:
            return None
        if not all(type(number) in (int, float) and abs(number) < MAX_COORDINATE for number in polygon):
            return None
    return [[float(number) for number in polygon] for polygon in segmentation]


def _whole(entry: Mapping[str, Any], name: str) -> int:
    if type(entry[name]) is not int:
        raise TypeError(f"has the {name} {entry[name]!r}, which is no whole number")
    return entry[name]  # type: ignore[no-any-return]


def _entries(path: Path, names: tuple[str, ...]) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Yields (list name, index, entry) for the named top-level lists of a JSON file."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist; expected COCO's instances_*.json")
    try:
        with path.open(encoding="utf-8") as file:
            text = _JsonText(file)
            for name in text.keys():  # noqa: SIM118 (it continues reading)
                if name not in names or text.peek() != "[":
                    text.value()
                    continue
                for number, entry in enumerate(text.items()):
                    if not isinstance(entry, dict):
                        raise ValueError(f"entry {number} of {name} is a {type(entry).__name__}; expected an object")
                    yield name, number, entry
    except JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error.msg}); expected COCO's instances_*.json, whole") from error


class _JsonText:
    """A streaming JSON parser that keeps at most one value and `CHUNK_CHARS` in memory."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._text = ""
        self._at = 0
        self._decode = JSONDecoder().raw_decode

    def peek(self) -> str:
        """Returns the next non-whitespace character, or an empty string at the end."""
        while True:
            while self._at < len(self._text):
                if not self._text[self._at].isspace():
                    return self._text[self._at]
                self._at += 1
            if not self._read_on():
                return ""

    def value(self) -> Any:
        """Reads one complete value."""
        self.peek()
        while True:
            try:
                value, end = self._decode(self._text, self._at)
            except JSONDecodeError:
                if not self._read_on():
                    raise
                continue
            if end < len(self._text) or not self._read_on():  # a number may continue in the unread part
                self._at = end
                return value

    def keys(self) -> Iterator[str]:
        """Yields the keys of an object; the caller must read each value before the next key."""
        for key in self._members("{", "}"):
            self._take(":")
            yield key

    def items(self) -> Iterator[Any]:
        """Yields the values of a list."""
        yield from self._members("[", "]")

    def _members(self, opening: str, closing: str) -> Iterator[Any]:
        self._take(opening)
        if self.peek() == closing:
            self._take(closing)
            return
        while True:
            yield self.value()
            if self.peek() == closing:
                self._take(closing)
                return
            self._take(",")

    def _take(self, expected: str) -> None:
        if self.peek() != expected:
            raise JSONDecodeError(f"expected {expected!r}, found {self.peek()!r}", self._text, self._at)
        self._at += 1

    def _read_on(self) -> bool:
        """Reads more text, at least as much as the current value has taken so far."""
        rest = self._text[self._at :]
        read = self._file.read(max(CHUNK_CHARS, len(rest)))
        self._text, self._at = rest + read, 0
        return bool(read)


class Opened(NamedTuple):
    """A photograph's pixels, and whether its file may be stored unchanged."""

    picture: Image.Image
    plain_suffix: str | None
    """The file, if every reader sees these pixels: RGB, JPEG or PNG, without rotation or transparency."""


def open_photograph(content: bytes, size: tuple[int, int]) -> Opened:
    """Returns a photograph's stored pixels in RGB, ignoring EXIF orientation.

    Raises:
        UnusableImageError: if it cannot be decoded, or its size differs from its annotations.
    """
    try:
        with Image.open(BytesIO(content)) as opened:
            opened.load()
            is_upright = opened.getexif().get(ORIENTATION_TAG, UPRIGHT) == UPRIGHT
            is_plain = opened.mode == "RGB" and is_upright and "transparency" not in opened.info
            plain_suffix = PLAIN_SUFFIXES.get(opened.format or "") if is_plain else None
            picture = eight_bits(opened).convert("RGB")
    except DECODING_ERRORS as error:
        raise UnusableImageError("broken_image", f"cannot be decoded ({type(error).__name__})") from error
    if picture.size != size:
        found = f"has {picture.width} x {picture.height} pixels, its annotations {size[0]} x {size[1]}"
        raise UnusableImageError("wrong_size", found)
    picture.info.clear()  # a written colour profile or orientation would change the image
    return Opened(picture, plain_suffix)


def read_photograph(path: Path) -> bytes:
    """Returns a photograph's file.

    Raises:
        UnusableImageError: if it is missing or cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        found = "is not there" if isinstance(error, FileNotFoundError) else f"cannot be read ({type(error).__name__})"
        raise UnusableImageError("missing_image", found) from error


def fingerprint(path: Path) -> str:
    """Returns the sha256 of an annotation file."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist; expected COCO's instances_*.json")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
