"""Where on its pictures do a prompt's vision tokens lie? A grid of cells per picture, row by row.

A token is a cell, in the order of the picture's rows, except where a picture is cut into tiles (InternVL): then the
tokens follow each other tile by tile, and those of the thumbnail come last. The tiles are joined into one grid, and the
thumbnail is a second grid over the same picture. Both were stretched to their size without regard to the picture's
aspect ratio, so stretching the grid over the picture puts every cell in its place.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

from eval.grading import Size
from eval.replies.pictures import TileLimits, pixel_limits
from models.families import family_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from analyze.attention.replies import PromptedReply
    from eval.replies.generation import Processor

MERGE = "spatial_merge_size"


@dataclass(frozen=True, kw_only=True)
class Cells:
    """The cells of all pictures of a prompt."""

    grids: tuple[tuple[int, int], ...]
    """Rows and columns of each grid."""
    pictures: tuple[int, ...]
    """The number of the picture over which each grid lies."""
    order: Int[np.ndarray, " cells"]
    """The number of the vision token of each cell."""

    @property
    def num_cells(self) -> int:
        return sum(rows * columns for rows, columns in self.grids)


def picture_cells(
    model: "PreTrainedModel", processor: "Processor", row: "PromptedReply", sizes: Sequence[Size]
) -> Cells:
    """Returns the cells of a prompt's pictures.

    Args:
        sizes: width and height of the image files.

    Raises:
        ValueError: if the number of vision tokens is not that of the cells, so that nothing can be drawn.
    """
    family, vision = family_of(model.config.model_type), model.config.vision_config
    if family.tiled:
        found = _tiles(processor, sizes)
    elif "image_position_ids" in row.images:  # column and row of each patch, -1 for padding (Gemma 4)
        sides = (row.images["image_position_ids"].amax(1) + 1) // vision.pooling_kernel_size
        found = _plain([(int(rows), int(columns)) for columns, rows in sides])
    else:
        merge = int(getattr(vision, MERGE))
        grids = row.images["image_grid_thw"]
        found = _plain([(int(rows) // merge, int(columns) // merge) for _, rows, columns in grids])
    if found.num_cells != row.num_vision_tokens:
        raise ValueError(
            f"{family.model_type}: the prompt has {row.num_vision_tokens} vision tokens, and its pictures' grids "
            f"{found.grids} have {found.num_cells} cells; expected one token per cell, so nothing can be drawn"
        )
    return found


def _plain(grids: Sequence[tuple[int, int]]) -> Cells:
    num_cells = sum(rows * columns for rows, columns in grids)
    return Cells(grids=tuple(grids), pictures=tuple(range(len(grids))), order=np.arange(num_cells))


def _tiles(processor: "Processor", sizes: Sequence[Size]) -> Cells:
    """Returns the cells of pictures that are cut into tiles, which follow each other row by row."""
    limits = pixel_limits(processor, min_pixels=None, max_pixels=None)
    assert isinstance(limits, TileLimits)
    side = round(int(processor.image_seq_length) ** 0.5)
    grids, pictures, order, first = [], [], [], 0
    for number, size in enumerate(sizes):
        columns, rows = limits.arrangement(size)
        tokens = first + np.arange(rows * columns * side**2).reshape(rows, columns, side, side)
        grids.append((rows * side, columns * side))
        pictures.append(number)
        order.append(tokens.transpose(0, 2, 1, 3).ravel())
        first += tokens.size
        if rows * columns > 1:  # the thumbnail
            grids.append((side, side))
            pictures.append(number)
            order.append(first + np.arange(side**2))
            first += side**2
    return Cells(grids=tuple(grids), pictures=tuple(pictures), order=np.concatenate(order))
