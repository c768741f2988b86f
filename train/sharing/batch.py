"""Which rows of a batch have the same prompt? Compared token by token and picture by picture, value by value."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from train.sharing.layout import Group


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One picture as the vision tower receives it, or one tile of it if the family cuts pictures into tiles."""

    pixels: Float[Tensor, "patches values"] | Float[Tensor, "1 channels height width"]
    grid: Int[Tensor, "3"] | None
    """Number of patches in time, height and width; None for a tile."""
    size: tuple[int, ...]
    """The grid as numbers, or the shape of a tile."""

    def equals(self, other: "Picture") -> bool:
        """True if every pixel value is the same."""
        return self.size == other.size and (
            self.pixels.data_ptr() == other.pixels.data_ptr() or torch.equal(self.pixels, other.pixels)
        )


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Prompts with replies as TRL (1.16) passes them to its log-probabilities; prompts are padded on the left."""

    ids: Int[Tensor, "rows columns"]
    mask: Int[Tensor, "rows columns"]
    num_reply_columns: int
    types: Int[Tensor, "rows columns"] | None = None
    """1 for image tokens (`mm_token_type_ids`)."""
    pictures: tuple[tuple[Picture, ...], ...] | None = None
    """Per row; None if the batch has no picture."""

    @classmethod
    def of(
        cls,
        ids: Int[Tensor, "rows columns"],
        mask: Int[Tensor, "rows columns"],
        num_reply_columns: int,
        *,
        pixels: Tensor | None,
        grids: Int[Tensor, "pictures 3"] | None,
        num_pictures: list[int] | None,
        types: Int[Tensor, "rows columns"] | None,
    ) -> "Batch":
        """Returns a batch with the pictures of each row, or their tiles; without pixels it has none."""
        pictures = None
        if pixels is not None:
            assert num_pictures is not None
            pictures = split_pictures(pixels, grids, num_pictures)
        return cls(ids=ids, mask=mask, num_reply_columns=num_reply_columns, types=types, pictures=pictures)

    @property
    def num_prompt_columns(self) -> int:
        return self.ids.shape[1] - self.num_reply_columns

    def part(self, rows: Sequence[int]) -> "Batch":
        """Returns some of the rows."""
        pictures = None if self.pictures is None else tuple(self.pictures[row] for row in rows)
        kept = list(rows)
        return Batch(
            ids=self.ids[kept],
            mask=self.mask[kept],
            num_reply_columns=self.num_reply_columns,
            types=None if self.types is None else self.types[kept],
            pictures=pictures if pictures is not None and any(pictures) else None,
        )

    def has_pictures(self, rows: Sequence[int]) -> bool:
        """True if one of some rows has a picture."""
        return self.pictures is not None and any(self.pictures[row] for row in rows)

    def groups(self) -> list[Group]:
        """Returns the distinct prompts with their rows, in order of appearance."""
        num_prompt_columns = self.num_prompt_columns
        masks, ids = self.mask.tolist(), self.ids.tolist()
        found: dict[tuple[int, ...], list[list[int]]] = {}
        for row, (tokens, mask) in enumerate(zip(ids, masks, strict=True)):
            read = tuple(
                token if kept else -1
                for token, kept in zip(tokens[:num_prompt_columns], mask[:num_prompt_columns], strict=True)
            )
            alike = found.setdefault(read, [])
            for rows in alike:
                if self._same_pictures(rows[0], row):
                    rows.append(row)
                    break
            else:
                alike.append([row])
        groups = [
            Group(
                rows=tuple(rows),
                prompt_columns=tuple(column for column, token in enumerate(read) if token != -1),
                reply_columns=tuple(_kept(masks[row], num_prompt_columns) for row in rows),
            )
            for read, alike in found.items()
            for rows in alike
        ]
        return sorted(groups, key=lambda group: group.rows)

    def _same_pictures(self, one: int, other: int) -> bool:
        if self.pictures is None:
            return True
        ours, theirs = self.pictures[one], self.pictures[other]
        return len(ours) == len(theirs) and all(a.equals(b) for a, b in zip(ours, theirs, strict=True))


def split_pictures(
    pixels: Tensor, grids: Int[Tensor, "pictures 3"] | None, num_pictures: list[int]
) -> tuple[tuple[Picture, ...], ...]:
    """Returns the pictures of each row of a batch.

    Args:
        pixels: [patches, values] with grids; [tiles, channels, height, width] without.
        grids: None if the family cuts pictures into tiles, which are then the pictures here.
        num_pictures: pictures, or tiles, of each row.
    """
    if grids is None:
        tiles = iter(Picture(pixels=tile, grid=None, size=tuple(tile.shape)) for tile in pixels.split(1))
        return tuple(tuple(next(tiles) for _ in range(count)) for count in num_pictures)
    sizes = [tuple(size) for size in grids.tolist()]
    parts = torch.split(pixels, [t * h * w for t, h, w in sizes])
    pictures = iter(
        Picture(pixels=part, grid=grid, size=size) for part, grid, size in zip(parts, grids, sizes, strict=True)
    )
    return tuple(tuple(next(pictures) for _ in range(count)) for count in num_pictures)


def join_pictures(pictures: list[Picture]) -> dict[str, Tensor]:
    """Returns pictures as the model's arguments; none at all for no picture."""
    if not pictures:
        return {}
    grids = [picture.grid for picture in pictures if picture.grid is not None]
    return {
        "pixel_values": torch.cat([picture.pixels for picture in pictures]),
        **({"image_grid_thw": torch.stack(grids)} if grids else {}),
    }


def _kept(mask: list[int], first: int) -> tuple[int, ...]:
    return tuple(column for column in range(first, len(mask)) if mask[column])
