"""How does a picture enter a model? Through `qwen_vl_utils`, with the same fewest and most pixels for every engine.

The limits are the processor's own, or those given. A picture is opened, laid on white where it is transparent, and
resized once to a multiple of the model's cells that lies within the limits: Qwen's own `fetch_image`. A black picture
has the size of the one that it stands for.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Picture:
    """A picture of a prompt, or a black one in its place."""

    path: Path
    black: bool = False


@dataclass(frozen=True, kw_only=True)
class PixelLimits:
    """Between how many pixels a picture is shown, and in cells of which size."""

    min_pixels: int
    max_pixels: int
    patch_size: int
    """Pixels a side; a cell is two patches wide (a spatial merge of two, as every family here has it)."""

    def __post_init__(self) -> None:
        cell = (2 * self.patch_size) ** 2
        if not 0 < self.min_pixels <= self.max_pixels or self.max_pixels < cell:
            raise ValueError(
                f"min_pixels {self.min_pixels} and max_pixels {self.max_pixels}: expected 0 < min <= max, and at least "
                f"a cell ({cell} pixels) for max"
            )


def pixel_limits(processor: Any, *, min_pixels: int | None, max_pixels: int | None) -> PixelLimits | None:
    """Returns the limits in force: the processor's own where none are given; None for a text-only model.

    Raises:
        ValueError: where limits are given for a text-only model, or exclude each other.
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
    """Returns a picture as the model is to see it, in RGB.

    Raises:
        ValueError: where it is too narrow for the limits.
    """
    from PIL import Image
    from qwen_vl_utils.vision_process import fetch_image

    with Image.open(picture.path) as file:
        image = Image.new("RGB", file.size) if picture.black else file.copy()
    asked = {"image": image, "min_pixels": limits.min_pixels, "max_pixels": limits.max_pixels}
    try:
        shown: Image.Image = fetch_image(asked, image_patch_size=limits.patch_size)
    except ValueError as error:  # too narrow: a side of none of the model's cells, or of one to 200
        raise ValueError(
            f"{picture.path}: {image.width} x {image.height} pixels cannot be brought to {limits.min_pixels} to "
            f"{limits.max_pixels} ({error}); raise max_pixels"
        ) from error
    return shown


def pictures_sha256(pictures: Sequence[Picture]) -> str | None:
    """Returns a sha256 of the files that are shown; None for no pictures."""
    if not pictures:
        return None
    digest = hashlib.sha256()
    for picture in pictures:
        digest.update(hashlib.sha256(picture.path.read_bytes()).digest())
    return digest.hexdigest()
