"""How do the images of a benchmark get to where prompts can name them? Files stay in place, others are stored once.

Images inside of rows (Parquet) are decoded and stored as PNG in a cache folder, neither scaled nor compressed with
loss: every model meets the same pixels, and what the processor may make of them is said by the run. An index from the
bytes as published to the stored file saves decoding them again.
"""

import fcntl
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

from data_builders.prompt_sets.images import DECODING_ERRORS, store_image
from tracking.product import write_text

IMAGES_DIR = "images"
INDEX_FILE = "index.json"


class PictureStore:
    """Stored pictures of one benchmark: `images/HASH.png` under a folder."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._index_path = directory / INDEX_FILE
        self._index: dict[str, str] = (
            json.loads(self._index_path.read_text(encoding="utf-8")) if self._index_path.is_file() else {}
        )

    def add(self, data: bytes) -> str:
        """Stores a picture and returns its name relative to the store's folder.

        Raises:
            ValueError: where it cannot be decoded.
        """
        digest = hashlib.sha256(data).hexdigest()
        name = self._index.get(digest)
        if name is None or not (self.directory / name).is_file():
            from PIL import Image
            from qwen_vl_utils.vision_process import to_rgb

            try:
                picture = to_rgb(Image.open(BytesIO(data)))
            except DECODING_ERRORS as error:
                raise ValueError(f"the image cannot be decoded ({type(error).__name__})") from error
            picture.info.clear()  # a colour profile or a transparency mark would be written, and read back otherwise
            (self.directory / IMAGES_DIR).mkdir(exist_ok=True)
            name = f"{IMAGES_DIR}/{store_image(picture, self.directory / IMAGES_DIR)}"
            self._index[digest] = name
        return name

    def save(self) -> None:
        write_text(self._index_path, json.dumps(self._index, indent=0) + "\n")


@contextmanager
def open_store(directory: Path) -> Iterator[PictureStore]:
    """Opens a store for one process at a time; others that come meanwhile wait, and then find the pictures there."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield PictureStore(directory)


def image_entry(row: Mapping[str, Any], columns: Sequence[str]) -> bytes | str:
    """Returns a row's image: its bytes, or the path that stands for it.

    Raises:
        ValueError: where the row has none.
    """
    for column in columns:
        entry = row.get(column)
        if isinstance(entry, Mapping):
            entry = entry.get("bytes") or entry.get("path")
        if isinstance(entry, bytes | str) and entry:
            return entry
    raise ValueError(f"no image in {' or '.join(columns)}")


def image_root(paths: Sequence[str], file: Path) -> Path:
    """Returns the folder that paths of images are relative to: that of the file, or the one above.

    Raises:
        ValueError: where images are missing; it says how many, the first, and what to do.
    """
    roots = (file.parent, file.parent.parent)
    root = max(roots, key=lambda folder: sum((folder / path).is_file() for path in paths))
    missing = [path for path in paths if not (root / path).is_file()]
    if missing:
        raise ValueError(f"{len(missing)} of {len(paths)} images are missing, the first is {root / missing[0]}")
    return root
