"""Stores images in a prompt set, from any representation in a row, opened as in Qwen's own code.

Pictures of more than 8 bits a channel are scaled first (`depth.py`). `qwen_vl_utils.fetch_image` composites transparent
images onto white, converts them to RGB and resizes them to whole cells between `min_pixels` and `max_pixels`. The
result is stored as PNG named by the hash of its pixels, so an image that occurs in many rows is stored once. Nothing is
fetched from the network.
"""

import base64
import hashlib
import os
import shutil
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from data_builders.prompt_sets.depth import eight_bits
from tracking.product import partial_path

BASE64_BEGINNINGS = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR", "Qk0", "Qk1", "SUkq", "TU0A")
"""Prefixes of JPEG, PNG, GIF, WebP, BMP and TIFF in base64."""
COMPRESS_LEVEL = 1
"""A one-megapixel photograph takes 0.11 s to write, against 0.25 s at Pillow's default 6, with 1/8 more bytes."""

DECODING_ERRORS = (
    OSError, ValueError, SyntaxError, EOFError, IndexError, RuntimeError, struct.error, Image.DecompressionBombError,
)  # fmt: skip
"""Exceptions of Pillow's decoders for truncated or damaged files."""

REFERENCE_KEYS = ("path", "image", "image_url", "url")


@dataclass(frozen=True, kw_only=True)
class PixelLimits:
    """Size limits of stored images, and the patch size."""

    min_pixels: int = field(
        default=4 * 28 * 28, metadata={"help": "minimum number of pixels of an image; smaller ones are enlarged"}
    )
    max_pixels: int = field(
        default=16384 * 28 * 28, metadata={"help": "maximum number of pixels of an image; larger ones are reduced"}
    )
    patch_size: int = field(
        default=14, metadata={"help": "side of the model's image patch in pixels: 14, or 16 for Qwen3-VL"}
    )

    def __post_init__(self) -> None:
        if self.patch_size < 1:
            raise ValueError(f"patch_size is {self.patch_size}; it must be at least 1")
        if not 0 < self.min_pixels <= self.max_pixels:
            raise ValueError(
                f"min_pixels {self.min_pixels}, max_pixels {self.max_pixels}: expected 0 < min_pixels <= max_pixels"
            )


class UnusableImageError(Exception):
    """An unusable image; `reason` is counted, `str()` describes the problem."""

    def __init__(self, reason: str, found: str) -> None:
        super().__init__(found)
        self.reason = reason


def open_image(
    entry: Any, root: Path | None, pixels: PixelLimits, window: tuple[float, float] | None = None
) -> Image.Image:
    """Returns an image in RGB, resized to whole cells of the model.

    Args:
        entry: bytes, a path, a data URI, base64, a Pillow image, or a mapping with one of them.
        root: base of relative paths.
        pixels: size limits.
        window: scale of pictures with more than 8 bits; by default each picture's own range.

    Raises:
        UnusableImageError: if it cannot be found or decoded. The message contains no local paths.
    """
    from qwen_vl_utils import fetch_image

    try:
        reference = _open_reference(entry, root)
        asked = {
            "image": eight_bits(reference, window),
            "min_pixels": pixels.min_pixels,
            "max_pixels": pixels.max_pixels,
        }
        image: Image.Image = fetch_image(asked, image_patch_size=pixels.patch_size)
    except DECODING_ERRORS as error:
        raise UnusableImageError("broken_image", type(error).__name__) from error
    image.info.clear()  # a written colour profile or transparency mark would change the image
    return image


def _open_reference(entry: Any, root: Path | None) -> Image.Image:
    """Opens an entry as Qwen's `fetch_image` does."""
    if isinstance(entry, Image.Image):
        return entry
    if isinstance(entry, bytes):
        return Image.open(BytesIO(entry))
    if isinstance(entry, Mapping):
        found = next((entry[key] for key in ("bytes", *REFERENCE_KEYS) if entry.get(key)), None)
        if found is None:
            raise UnusableImageError("missing_image", f"neither bytes nor any of {', '.join(REFERENCE_KEYS)}")
        return _open_reference(found, root)
    if not isinstance(entry, str):
        raise UnusableImageError("missing_image", type(entry).__name__)
    if entry.startswith("data:"):
        if not entry.startswith("data:image") or "base64," not in entry:
            raise UnusableImageError("broken_image", entry[:40])
        return _from_base64(entry.partition("base64,")[2])
    if entry.startswith(BASE64_BEGINNINGS):
        return _from_base64(entry)
    if "://" in entry and not entry.startswith("file://"):
        raise UnusableImageError("remote_image", entry[:200])
    path = Path(entry.removeprefix("file://"))
    if not path.is_absolute() and root is None:
        raise UnusableImageError("missing_image", entry[:200])
    path = path if root is None else root / path
    if not path.is_file():
        raise UnusableImageError("missing_image", entry[:200])
    return Image.open(path)


def _from_base64(text: str) -> Image.Image:
    return Image.open(BytesIO(base64.b64decode(text)))


def has_reference(entry: Mapping[str, Any]) -> bool:
    """True if a mapping holds an image: its content or a reference to it."""
    return any(entry.get(key) for key in ("bytes", *REFERENCE_KEYS))


def is_blank(image: Image.Image) -> bool:
    """True if all pixels have the same colour: some upstream sets have such images in text-only rows."""
    return image.getcolors(maxcolors=1) is not None


def store_image(image: Image.Image, directory: Path) -> str:
    """Stores an image named by the hash of its pixels, unless it exists; returns the file name."""
    digest = hashlib.sha256(f"{image.width}x{image.height}".encode() + image.tobytes()).hexdigest()
    path = directory / f"{digest[:32]}.png"
    if not path.exists():
        partial = partial_path(path)
        image.save(partial, format="PNG", compress_level=COMPRESS_LEVEL)
        partial.replace(path)
    return path.name


def place_file(source: Path, target: Path) -> None:
    """Hard-links a file to a second path, or copies it if links are not possible."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except FileExistsError:
        return
    except OSError:  # another file system, one without hard links, or another user's file
        shutil.copyfile(source, target)
