"""Makes a benchmark's images available as files: existing files are used in place, embedded ones are stored once.

Images embedded in rows (Parquet) are decoded and stored as PNG in a cache folder, without scaling or lossy compression:
every model gets the same pixels, and preprocessing is set by the run. An index from the published bytes to the stored
file avoids decoding them again.
"""

import fcntl
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

from data_builders.prompt_sets.depth import eight_bits
from data_builders.prompt_sets.images import DECODING_ERRORS, store_image
from tracking.product import write_text

IMAGES_DIR = "images"
INDEX_FILE = "index-2.json"
"""The first kind of index, `index.json`, named pictures of 16 bits that were clipped to white."""


class PictureStore:
    """Stored pictures of one benchmark: `images/HASH.png` under a folder."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._index_path = directory / INDEX_FILE
        self._index: dict[str, str] = (
            json.loads(self._index_path.read_text(encoding="utf-8")) if self._index_path.is_file() else {}
        )

    def add(self, data: bytes) -> str:
        """Stores an image and returns its path relative to the store's folder.

        Raises:
            ValueError: if it cannot be decoded.
        """
        digest = hashlib.sha256(data).hexdigest()
        name = self._index.get(digest)
        if name is None or not (self.directory / name).is_file():
            from PIL import Image
            from qwen_vl_utils.vision_process import to_rgb

            try:
                picture = to_rgb(eight_bits(Image.open(BytesIO(data))))
            except DECODING_ERRORS as error:
                raise ValueError(f"the image cannot be decoded ({type(error).__name__})") from error
            picture.info.clear()  # otherwise a colour profile or transparency mark would be written
            (self.directory / IMAGES_DIR).mkdir(exist_ok=True)
            name = f"{IMAGES_DIR}/{store_image(picture, self.directory / IMAGES_DIR)}"
            self._index[digest] = name
        return name

    def save(self) -> None:
        write_text(self._index_path, json.dumps(self._index, indent=0) + "\n")


@contextmanager
def open_store(directory: Path) -> Iterator[PictureStore]:
    """Opens a store for one process at a time; other processes wait and then use the stored images."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield PictureStore(directory)


def image_entry(row: Mapping[str, Any], columns: Sequence[str]) -> bytes | str:
    """Returns a row's image: its bytes, or its path.

    Raises:
        ValueError: if the row has none.
    """
    for column in columns:
        entry = row.get(column)
        if isinstance(entry, Mapping):
            entry = entry.get("bytes") or entry.get("path")
        if isinstance(entry, bytes | str) and entry:
            return entry
    raise ValueError(f"no image in {' or '.join(columns)}")


def image_root(paths: Sequence[str], file: Path) -> Path:
    """Returns the folder that image paths are relative to: the file's folder, or its parent.

    Raises:
        ValueError: if images are missing; the message gives their number, the first one, and what to do.
    """
    roots = (file.parent, file.parent.parent)
    root = max(roots, key=lambda folder: sum((folder / path).is_file() for path in paths))
    missing = [path for path in paths if not (root / path).is_file()]
    if missing:
        raise ValueError(f"{len(missing)} of {len(paths)} images are missing, the first is {root / missing[0]}")
    return root
