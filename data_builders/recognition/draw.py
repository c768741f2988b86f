"""Removes an object from a photograph by inpainting within its outline with OpenCV; other pixels are unchanged.

Telea (2004, "An image inpainting technique based on the fast marching method") and Navier-Stokes (Bertalmio et al.
2001). Both extend the surroundings of the outline, so a large object leaves a blur, and shadows remain.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from data_builders.recognition.coco import Polygon

SUBPIXEL_BITS = 4
MAX_DILATION = 100
PAINTED = 255
"""Mask value of painted pixels; others are 0."""

METHODS: dict[str, Callable[[Any], int]] = {
    "telea": lambda cv2: cv2.INPAINT_TELEA,
    "ns": lambda cv2: cv2.INPAINT_NS,
}
"""Name -> OpenCV's constant."""


def draw_mask(
    polygons: Iterable[Polygon], annotated_size: tuple[int, int], size: tuple[int, int], dilation: int
) -> UInt8[np.ndarray, "height width"]:
    """Returns `PAINTED` in and around the polygons, 0 elsewhere.

    Args:
        polygons: in pixels of the annotated image.
        annotated_size, size: size of that image, and of the mask.
        dilation: pixels of the mask around each polygon.
    """
    import cv2

    mask = np.zeros((size[1], size[0]), dtype=np.uint8)
    scale = np.array(size) / annotated_size
    for polygon in polygons:
        corners = np.array(polygon).reshape(-1, 2) * scale - 0.5  # OpenCV's origin is the centre of the first pixel
        cv2.fillPoly(mask, [np.round(corners * 2**SUBPIXEL_BITS).astype(np.int32)], PAINTED, shift=SUBPIXEL_BITS)
    if dilation:
        width = 2 * dilation + 1
        cv2.dilate(mask, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (width, width)), dst=mask)
    return mask


def paint_out(picture: Image.Image, mask: UInt8[np.ndarray, "height width"], method: str, radius: float) -> Image.Image:
    """Returns the image with the masked pixels inpainted.

    Args:
        picture: in RGB.
        mask: `PAINTED` for the pixels to paint; same size.
        method: one of `METHODS`.
        radius: radius in pixels of the neighbourhood of a painted pixel.
    """
    import cv2

    pixels = np.asarray(picture)
    painted = cv2.inpaint(pixels, mask, radius, METHODS[method](cv2))
    assert np.array_equal(painted[mask == 0], pixels[mask == 0]), "a pixel outside the mask was painted"
    return Image.fromarray(painted)
