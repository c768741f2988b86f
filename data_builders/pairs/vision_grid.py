"""Into how many patches does a processor divide an image? Computed without loading a processor.

Qwen's processors resize an image so that both sides are multiples of a cell (patch x merge) and its area is between two
limits (`smart_resize` in Transformers' `image_processing_qwen2_vl.py`; the results are tested against it). Images with
different grids cannot be swapped; a model that outputs boxes in pixels uses those of the resized image.
"""

import json
import math
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tracking.command import did_you_mean

MAX_ASPECT = 200
"""Transformers rejects larger aspect ratios."""

Size = tuple[int, int]
"""Width and height in pixels."""


@dataclass(frozen=True, kw_only=True)
class VisionGrid:
    """The settings that determine a processor's patch grid."""

    patch_size: int
    merge_size: int
    min_pixels: int
    max_pixels: int

    def resized(self, size: Size) -> Size:
        """Returns the size of an image after resizing.

        Raises:
            ValueError: for an aspect ratio above 200.
        """
        width, height = size
        if max(size) > MAX_ASPECT * min(size):
            raise ValueError(f"picture of {width} x {height}: its sides differ by more than {MAX_ASPECT} times")
        cell = self.patch_size * self.merge_size
        fitted = (round(width / cell) * cell, round(height / cell) * cell)  # 0 for a narrow side, enlarged below
        area = fitted[0] * fitted[1]
        if area > self.max_pixels:
            shrink = math.sqrt(width * height / self.max_pixels)
            fitted = (
                max(cell, math.floor(width / shrink / cell) * cell),
                max(cell, math.floor(height / shrink / cell) * cell),
            )
        elif area < self.min_pixels:
            grow = math.sqrt(self.min_pixels / (width * height))
            fitted = (math.ceil(width * grow / cell) * cell, math.ceil(height * grow / cell) * cell)
        return fitted

    def patches(self, size: Size) -> Size:
        """Returns rows and columns of patches, the last two values of `image_grid_thw`."""
        width, height = self.resized(size)
        return height // self.patch_size, width // self.patch_size

    def describe(self) -> dict[str, int]:
        """Returns the four settings."""
        return asdict(self)


PROCESSORS = {
    "qwen2_vl": VisionGrid(patch_size=14, merge_size=2, min_pixels=56 * 56, max_pixels=28 * 28 * 16384),
    "qwen2_5_vl": VisionGrid(patch_size=14, merge_size=2, min_pixels=56 * 56, max_pixels=28 * 28 * 16384),
    "qwen3_vl": VisionGrid(patch_size=16, merge_size=2, min_pixels=256 * 256, max_pixels=4096 * 4096),
    "pocket": VisionGrid(patch_size=14, merge_size=2, min_pixels=28 * 28, max_pixels=16 * 28 * 28),
}
"""Family -> settings from the `preprocessor_config.json` of its published checkpoints."""


def read_size(name: str, text: str | int) -> Size:
    """Parses a size argument: the side of a square in pixels, or `WIDTHxHEIGHT`."""
    match = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", str(text))
    if match is None:
        raise ValueError(f"{name} is {text!r}; expected pixels, such as 448, or width and height, such as 480x320")
    width, height = match[1], match[2] or match[1]
    return int(width), int(height)


def open_vision_grid(processor: str) -> VisionGrid:
    """Returns the grid of a family's published processor, or of a checkpoint folder's processor.

    Raises:
        ValueError: if it is neither, or the folder's processor is not one of Qwen's.
    """
    if processor in PROCESSORS:
        return PROCESSORS[processor]
    directory = Path(processor)
    if not directory.is_dir():
        raise ValueError(
            f"processor {processor!r} is neither a checkpoint's folder nor one of {', '.join(PROCESSORS)}"
            f"{did_you_mean(processor, PROCESSORS)}"
        )
    path, found = _read_image_processor(directory)
    size = found.get("size") or {}
    try:
        return VisionGrid(
            patch_size=int(found["patch_size"]),
            merge_size=int(found["merge_size"]),
            min_pixels=int(size["shortest_edge"] if "shortest_edge" in size else found["min_pixels"]),
            max_pixels=int(size["longest_edge"] if "longest_edge" in size else found["max_pixels"]),
        )
    except KeyError as error:
        raise ValueError(f"{path}: its image processor has no {error}; expected one of Qwen's VL models") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: sizes that are no numbers ({error}); expected one of Qwen's VL models") from error


def _read_image_processor(directory: Path) -> tuple[Path, dict[str, Any]]:
    for name, key in (("preprocessor_config.json", None), ("processor_config.json", "image_processor")):
        path = directory / name
        if path.is_file():
            try:
                read = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise ValueError(f"{path} is not readable as JSON ({error})") from error
            found = read.get(key, {}) if key and isinstance(read, dict) else read
            if not isinstance(found, dict):
                raise ValueError(f"{path} holds a {type(found).__name__}; expected an image processor's settings")
            return path, found
    raise ValueError(
        f"{directory} holds neither preprocessor_config.json nor processor_config.json; expected a checkpoint's folder"
    )
