"""How are images prepared for a model? With `qwen_vl_utils`, and the same limits for every engine.

The limits are the processor's, or those given. An image is opened, scaled to 8 bits a channel if it has more
(`data_builders/prompt_sets/depth.py`), and composited onto white if it is transparent. For Qwen's models it is resized
once to a multiple of the model's cell size within the limits, by Qwen's `fetch_image`. For models that cut an image
into tiles (InternVL) or give it a number of tokens (Gemma 4) it keeps its size: the processor resizes it. A black
image has the size of the image that it replaces.
"""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from data_builders.prompt_sets.depth import eight_bits
from data_builders.prompt_sets.prompts import Prompt
from eval.grading import BoxSpace, Size, box_space
from models.families import family_of

if TYPE_CHECKING:
    from PIL.Image import Image


MIN_PIXELS_ARGUMENT = {"help": "minimum number of pixels of an image; by default the processor's"}
MAX_PIXELS_ARGUMENT = {"help": "maximum number of pixels of an image; by default the processor's"}
"""Metadata of the fields `min_pixels` and `max_pixels` of all commands."""


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


@dataclass(frozen=True, kw_only=True)
class TileLimits:
    """Size and number of the tiles into which an image is cut; a thumbnail of it is added to several tiles."""

    tile_width: int
    tile_height: int
    min_tiles: int
    max_tiles: int

    def arrangement(self, size: Size) -> tuple[int, int]:
        """Returns the columns and rows of tiles of an image of a size: the nearest to its aspect ratio."""
        from transformers.models.got_ocr2.image_processing_got_ocr2 import get_optimal_tiled_canvas

        width, height = size
        columns, rows = get_optimal_tiled_canvas(
            (height, width), (self.tile_height, self.tile_width), self.min_tiles, self.max_tiles
        )
        return columns, rows


@dataclass(frozen=True, kw_only=True)
class TokenLimits:
    """Number of tokens of an image: the processor resizes it, up or down, to the most cells within it."""

    max_tokens: int
    patch_size: int
    """Patch side in pixels."""
    pooled: int
    """Patches along a side of a cell, which becomes a token."""

    def resized(self, size: Size) -> Size:
        """Returns the size to which the processor brings an image of a size.

        Raises:
            ValueError: if not even one cell fits.
        """
        from transformers.models.gemma4.image_processing_gemma4 import get_aspect_ratio_preserving_size

        width, height = size
        max_patches = self.max_tokens * self.pooled**2
        rows, columns = get_aspect_ratio_preserving_size(height, width, self.patch_size, max_patches, self.pooled)
        return columns, rows

    def num_tokens(self, size: Size) -> int:
        """Returns the number of tokens of an image of a size, with the one before and the one after it."""
        columns, rows = self.resized(size)
        return columns * rows // (self.patch_size * self.pooled) ** 2 + 2


Limits: TypeAlias = PixelLimits | TileLimits | TokenLimits


def pixel_limits(processor: Any, *, min_pixels: int | None, max_pixels: int | None) -> Limits | None:
    """Returns the effective limits: the processor's if none are given; None for a text-only model.

    Raises:
        ValueError: if limits are given for a model that does not have them, or are contradictory.
    """
    image_processor = getattr(processor, "image_processor", None)
    if image_processor is None:
        if min_pixels is not None or max_pixels is not None:
            raise ValueError("min_pixels and max_pixels have no effect on a text-only model; leave them out")
        return None
    if getattr(image_processor, "max_soft_tokens", None) is not None:
        return _token_limits(image_processor, is_limited=min_pixels is not None or max_pixels is not None)
    if getattr(image_processor, "crop_to_patches", None) is not None:
        return _tile_limits(image_processor, is_limited=min_pixels is not None or max_pixels is not None)
    assert image_processor.merge_size == 2, image_processor.merge_size
    own = image_processor.size
    return PixelLimits(
        min_pixels=own["shortest_edge"] if min_pixels is None else min_pixels,
        max_pixels=own["longest_edge"] if max_pixels is None else max_pixels,
        patch_size=image_processor.patch_size,
    )


def _tile_limits(image_processor: Any, *, is_limited: bool) -> TileLimits:
    tile = image_processor.size
    limits = TileLimits(
        tile_width=tile["width"],
        tile_height=tile["height"],
        min_tiles=image_processor.min_patches,
        max_tiles=image_processor.max_patches,
    )
    if is_limited:
        raise ValueError(
            "min_pixels and max_pixels have no effect on a model that cuts an image into tiles "
            f"({limits.min_tiles} to {limits.max_tiles} of {limits.tile_width} x {limits.tile_height} pixels); leave "
            "them out, or change min_patches and max_patches in the checkpoint's preprocessor_config.json"
        )
    return limits


def _token_limits(image_processor: Any, *, is_limited: bool) -> TokenLimits:
    if is_limited:
        raise ValueError(
            "min_pixels and max_pixels have no effect on a model that resizes every image to a number of tokens (at "
            f"most {image_processor.max_soft_tokens}); leave them out, or change max_soft_tokens in the checkpoint's "
            "processor_config.json"
        )
    return TokenLimits(
        max_tokens=image_processor.max_soft_tokens,
        patch_size=image_processor.patch_size,
        pooled=image_processor.pooling_kernel_size,
    )


def num_picture_tokens(processor: Any, size: Size) -> int:
    """Returns the number of tokens that a processor writes for an image of a size, in place of its one token.

    Raises:
        ValueError: if the processor rejects the size.
    """
    limits = pixel_limits(processor, min_pixels=None, max_pixels=None)
    if isinstance(limits, TokenLimits):
        return limits.num_tokens(size)
    width, height = size
    counted = processor._get_num_multimodal_tokens(image_sizes=[(height, width)])  # no public name (5.23)
    return int(counted.num_image_tokens[0])


def open_picture(picture: Picture, limits: Limits) -> "Image":
    """Returns an image as the model's processor receives it, in RGB.

    Raises:
        ValueError: if it is too narrow for the limits.
    """
    from PIL import Image
    from qwen_vl_utils.vision_process import fetch_image, to_rgb

    with Image.open(picture.path) as file:
        image = Image.new("RGB", file.size) if picture.black else eight_bits(file).copy()
    if not isinstance(limits, PixelLimits):
        whole: Image.Image = to_rgb(image)
        return whole
    asked = {"image": image, "min_pixels": limits.min_pixels, "max_pixels": limits.max_pixels}
    try:
        shown: Image.Image = fetch_image(asked, image_patch_size=limits.patch_size)
    except ValueError as error:  # too narrow: a side below one cell, or an aspect ratio above 200
        raise ValueError(
            f"{picture.path}: {image.width} x {image.height} pixels cannot be brought to {limits.min_pixels} to "
            f"{limits.max_pixels} ({error}); raise max_pixels"
        ) from error
    return shown


def resized_size(size: Size, limits: Limits) -> Size:
    """Returns the size in which the model sees an image of a size, in pixels; that of all its tiles together."""
    from qwen_vl_utils.vision_process import smart_resize

    if isinstance(limits, TokenLimits):
        return limits.resized(size)
    if isinstance(limits, TileLimits):
        tile_columns, tile_rows = limits.arrangement(size)
        return tile_columns * limits.tile_width, tile_rows * limits.tile_height
    width, height = size
    rows, columns = smart_resize(
        height, width, factor=2 * limits.patch_size, min_pixels=limits.min_pixels, max_pixels=limits.max_pixels
    )
    return columns, rows


@dataclass(frozen=True, kw_only=True)
class AnswerSpaces:
    """How one model writes boxes: a function from a prompt to the coordinates of its answer.

    Known limit: if the images of a prompt have different sizes, it is not known which one the box is about; then its
    coordinates are taken as pixels.
    """

    name: str | None
    """One of `BOX_SPACES`; None for pixels."""
    limits: Limits | None
    """None for a text-only model."""

    def __call__(self, prompt: Prompt, directory: Path) -> BoxSpace | None:
        """Returns the coordinates of the answer to a prompt that asks for a box; None for other prompts.

        Args:
            directory: the folder of the prompt's images.
        """
        if prompt.answer_kind != "box":
            return None
        return self.of_images({_size(directory / image) for image in prompt.images})

    def of_images(self, sizes: Collection[Size]) -> BoxSpace | None:
        """Returns the coordinates of an answer about images of these sizes."""
        if self.name is None or self.limits is None or len(set(sizes)) != 1:
            return None
        size = next(iter(sizes))
        return box_space(self.name, image_size=size, resized_size=resized_size(size, self.limits))


def answer_spaces(model_type: str, limits: Limits | None, *, name: str | None = None) -> AnswerSpaces:
    """Returns how a model of a family writes boxes, or as `name` says."""
    return AnswerSpaces(name=name or family_of(model_type).box_space, limits=limits)


def _size(path: Path) -> Size:
    from PIL import Image

    with Image.open(path) as file:
        return file.size


def pictures_sha256(pictures: Sequence[Picture]) -> str | None:
    """Returns a sha256 of the image files; None if there are none."""
    if not pictures:
        return None
    digest = hashlib.sha256()
    for picture in pictures:
        digest.update(hashlib.sha256(picture.path.read_bytes()).digest())
    return digest.hexdigest()
