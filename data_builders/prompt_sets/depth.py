"""How is a picture with more than 8 bits a channel shown? Scaled by its own range of values.

Medical pictures are often greyscale PNG or TIFF files of 12 or 16 bits (Pillow's modes `I;16`, `I` and `F`). Pillow and
qwen-vl-utils clip all values above 255, so that such a picture turns white. Here the smallest value becomes black and
the largest white. A picture whose values fit into 8 bits keeps them. A given window replaces the range of values: what
is at or below its lower end becomes black, what is at or above its upper end white (as CT viewers do).

Known limits: two pictures of one patient are scaled separately, so their levels cannot be compared. Colour pictures of
16 bits are not affected: Pillow reads their upper 8 bits.
"""

from threading import Event
from typing import NamedTuple

import numpy as np
from PIL import Image

from tracking.progress import say

MAX_LEVEL = 255
MAX_16_BIT = 65535

_told = Event()
"""Set once this process has printed that pictures are scaled."""


class _Range(NamedTuple):
    low: float
    high: float


def is_deep(image: Image.Image) -> bool:
    """True if the picture has more than 8 bits a channel."""
    return image.mode.startswith("I") or image.mode == "F"


def eight_bits(image: Image.Image, window: tuple[float, float] | None = None) -> Image.Image:
    """Returns a picture with 8 bits a channel: the same one, or a grey copy scaled by its range of values.

    Args:
        image: any picture; one of 8 bits is returned as it is, also with a window.
        window: lowest and highest value of the scale, instead of the picture's own.

    For the first picture that a process scales, one line is printed.
    """
    if not is_deep(image):
        return image
    values = np.asarray(image).astype(np.float32)
    values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    found = _Range(float(values.min()), float(values.max()))
    low, high = found if window is None else window
    if window is None and low >= 0 and high <= MAX_LEVEL and not (image.mode == "F" and high <= 1):
        return Image.fromarray(np.rint(values).astype(np.uint8))
    if low == high:
        low, high = 0.0, max(float(MAX_16_BIT), high)
    _tell(image.mode, found)
    levels = np.clip((values - low) * (MAX_LEVEL / (high - low)), 0, MAX_LEVEL)
    return Image.fromarray(np.rint(levels).astype(np.uint8))


def _tell(mode: str, found: _Range) -> None:
    if not _told.is_set():
        say(
            f"note: a picture has more than 8 bits a channel (mode {mode}, values {found.low:g} to {found.high:g}); "
            "such pictures are scaled, each by its own range of values"
        )
    _told.set()
