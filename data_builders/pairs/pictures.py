"""Loads a pair's two images and its masks as arrays, for the checks of `data_builders/validate/`."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from data_builders.pairs.pair import Pair
from data_builders.prompt_sets.depth import eight_bits

Found = Iterator[tuple[str, str]]
"""Kinds of defects with findings."""


@dataclass(frozen=True)
class PairPictures:
    """The pixels of a pair."""

    directory: Path
    pair: Pair

    @cached_property
    def target(self) -> UInt8[np.ndarray, "height width 3"]:
        return read_rgb(self.directory / self.pair.target_image)

    @cached_property
    def source(self) -> UInt8[np.ndarray, "height width 3"]:
        return read_rgb(self.directory / self.pair.source_image)

    @cached_property
    def differs(self) -> Bool[np.ndarray, "height width"]:
        """Mask of differing pixels; both images must have the same size."""
        red, green, blue = np.moveaxis(self.target != self.source, -1, 0)  # `any` over three channels is slow
        different: Bool[np.ndarray, "height width"] = red | green | blue
        return different

    def mask(self, name: str) -> UInt8[np.ndarray, "height width"]:
        """Returns a mask of the set as an integer array.

        Raises:
            FileNotFoundError, OSError: if there is none, or it cannot be decoded.
        """
        with Image.open(self.directory / name) as image:
            return np.asarray(image.convert("L"))


def read_rgb(path: Path) -> UInt8[np.ndarray, "height width 3"]:
    """Returns an image's pixels."""
    with Image.open(path) as image:
        return np.asarray(eight_bits(image).convert("RGB"))


def box_around(mask: Bool[np.ndarray, "height width"]) -> tuple[int, int, int, int] | None:
    """Returns the smallest box (xyxy, right and bottom exclusive) around all true pixels, None if there are none."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
