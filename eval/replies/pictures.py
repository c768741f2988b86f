"""How are images prepared for a model? With `qwen_vl_utils`, and the same pixel limits for every engine.

The limits are the processor's, or those given. An image is opened, scaled to 8 bits a channel if it has more
(`data_builders/prompt_sets/depth.py`), composited onto white if it is transparent, and resized once to a multiple of
the model's cell size within the limits, by Qwen's `fetch_image`. A black image has the size of the image that it
replaces.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_builders.prompt_sets.depth import eight_bits

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Picture:
    """An image of a prompt, or a black one instead of it."""

    path: Path
    black: bool = False


@dataclass(frozen=True, kw_only=True)
class PixelLimits:
    """Pixel limits of an image, and the cell size."""

    min_pixels: int
    max_pixels: int
    patch_size: int
    """Patch side in pixels; a cell is two patches wide (a spatial merge of two, as in every supported family)."""

    def __post_init__(self) -> None:
        cell = (2 * self.patch_size) ** 2
        if not 0 < self.min_pixels <= self.max_pixels or self.max_pixels < cell:
            raise ValueError(
                f"min_pixels {self.min_pixels} and max_pixels {self.max_pixels}: expected 0 < min <= max, and at least "
                f"a cell ({cell} pixels) for max"
            )


def pixel_limits(processor: Any, *, min_pixels: int | None, max_pixels: int | None) -> PixelLimits | None:
    """Returns the effective limits: the processor's if none are given; None for a text-only model.

    Raises:
        ValueError: if limits are given for a text-only model, or are contradictory.
    """
    image_processor = getattr(processor, "image_processor", None)
    if image_processor is None:
        if min_pixels is not None or max_pixels is not None:
            raise ValueError("min_pixels and max_pixels have no effect on a text-only model; leave them out")
        return None
    assert image_processor.merge_size == 2, image_processor.merge_size
    own = image_processor.size
    return PixelLimits(
        min_pixels=own["shortest_edge"] if min_pixels is None else min_pixels,
        max_pixels=own["longest_edge"] if max_pixels is None else max_pixels,
        patch_size=image_processor.patch_size,
    )


def open_picture(picture: Picture, limits: PixelLimits) -> "Image":
    """Returns an image as the model receives it, in RGB.

    Raises:
        ValueError: if it is too narrow for the limits.
    """
    from PIL import Image
    from qwen_vl_utils.vision_process import fetch_image

    with Image.open(picture.path) as file:
        image = Image.new("RGB", file.size) if picture.black else eight_bits(file).copy()
    asked = {"image": image, "min_pixels": limits.min_pixels, "max_pixels": limits.max_pixels}
    try:
        shown: Image.Image = fetch_image(asked, image_patch_size=limits.patch_size)
    except ValueError as error:  # too narrow: a side below one cell, or an aspect ratio above 200
        raise ValueError(
            f"{picture.path}: {image.width} x {image.height} pixels cannot be brought to {limits.min_pixels} to "
            f"{limits.max_pixels} ({error}); raise max_pixels"
        ) from error
    return shown


def pictures_sha256(pictures: Sequence[Picture]) -> str | None:
    """Returns a sha256 of the image files; None if there are none."""
    if not pictures:
        return None
    digest = hashlib.sha256()
    for picture in pictures:
        digest.update(hashlib.sha256(picture.path.read_bytes()).digest())
    return digest.hexdigest()
