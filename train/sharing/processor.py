"""How is each distinct prompt of a batch rendered and tokenized once, and each of its pictures processed once?

TRL (1.16) gives the processor every row of a batch, twice: before the replies as conversations, and after them as texts
with pictures. The rows of a group are the same. Rows are compared by their texts and then value by value.
"""

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from train.sharing.batch import join_pictures, split_pictures

PER_PICTURE = ("pixel_values", "image_grid_thw")
"""Fields with entries per picture, tile or patch; all others have an entry per row."""


class DistinctRows:
    """The distinct rows of a batch, and where each row is among them."""

    def __init__(self, rows: Sequence[Any]) -> None:
        self.first: list[int] = []
        """The row that each distinct one occurs in first."""
        self.places: list[int] = []
        """For each row, its place among the distinct ones."""
        seen: dict[Hashable, list[int]] = {}
        for number, row in enumerate(rows):
            alike = seen.setdefault(_words(row), [])
            place = next((place for place in alike if rows[self.first[place]] == row), None)
            if place is None:
                place = len(self.first)
                alike.append(place)
                self.first.append(number)
            self.places.append(place)

    @property
    def repeats(self) -> bool:
        return len(self.first) < len(self.places)

    def expanded(self, fields: dict[str, Any], num_pictures: Sequence[int]) -> dict[str, Any]:
        """Returns a processor's output for all rows.

        Args:
            fields: its output for the distinct rows.
            num_pictures: pictures, or tiles, per distinct row.
        """
        expanded = {name: self._repeated(value) for name, value in fields.items() if name not in PER_PICTURE}
        if "pixel_values" in fields:
            pixels, grids = (as_tensor(fields[name]) if name in fields else None for name in PER_PICTURE)
            assert pixels is not None
            pictures = split_pictures(pixels, grids, list(num_pictures))
            expanded |= join_pictures([picture for place in self.places for picture in pictures[place]])
        return expanded

    def _repeated(self, value: Any) -> Any:
        return value[self.places] if isinstance(value, Tensor) else [value[place] for place in self.places]


class DistinctProcessor:
    """A processor, or a tokenizer, that reads each distinct row of a batch once; the rest is that of the original."""

    def __init__(self, original: Any, *, tile_tokens: int | None = None) -> None:
        """Args:
        original: the processor.
        tile_tokens: image tokens per tile, if the model's family cuts pictures into tiles.
        """
        self._original = original
        self._tile_tokens = tile_tokens
        self._rendered: dict[Hashable, Any] = {}

    @property
    def image_processor(self) -> Any:
        """The original's; for tiles, one that only counts them: TRL asks it for nothing else."""
        original = self._original.image_processor
        return original if self._tile_tokens is None else TileCounter(original)

    def _num_pictures(self, fields: Any, num_images: list[int]) -> list[int]:
        """Returns the pictures, or tiles, of each row of the original's output."""
        if self._tile_tokens is None:
            return num_images
        return count_tiles(fields["input_ids"], self._original.image_token_id, self._tile_tokens)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)

    def __call__(self, images: Any = None, text: Any = None, **options: Any) -> Any:
        """Tokenizes texts, of which row i has the pictures `images[i]`."""
        if not isinstance(text, list):
            return self._original(images=images, text=text, **options)
        pictures = [()] * len(text) if images is None else [tuple(row or ()) for row in images]
        rows = DistinctRows(list(zip(text, pictures, strict=True)))
        fields = self._original(
            text=[text[row] for row in rows.first],
            **({} if images is None else {"images": [images[row] for row in rows.first]}),
            **options,
        )
        num_pictures = self._num_pictures(fields, [len(pictures[row]) for row in rows.first])
        return _like(fields, rows.expanded(fields, num_pictures))

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any:
        """Renders one conversation; or renders and tokenizes several."""
        if not options.get("tokenize"):
            key = _words(conversation), repr(sorted(options.items()))
            if key not in self._rendered:
                self._rendered[key] = self._original.apply_chat_template(conversation, **options)
            return self._rendered[key]
        rows = DistinctRows(conversation)
        distinct = [conversation[row] for row in rows.first]
        fields = self._original.apply_chat_template(conversation=distinct, **options)
        num_pictures = self._num_pictures(fields, [_num_images(row) for row in distinct])
        return _like(fields, rows.expanded(fields, num_pictures))


class TileCounter:
    """The image processor of a family with tiles, as far as TRL (1.16) uses it: it counts the tiles of pictures."""

    def __init__(self, original: Any) -> None:
        self._original = original

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)

    def __call__(self, images: Any, **options: Any) -> dict[str, Tensor]:
        """Returns `num_patches`, the tiles of each picture, of pictures in lists of a row."""
        flat = [image for row in images for image in row or ()]
        counts = [self._original.get_number_of_image_patches(image.height, image.width, options) for image in flat]
        return {"num_patches": torch.tensor(counts)}


def count_tiles(input_ids: Any, image_token: int, tile_tokens: int) -> list[int]:
    """Returns the tiles of each row of tokens, a tensor or lists, from the number of its image tokens."""
    rows = input_ids.tolist() if isinstance(input_ids, Tensor) else input_ids
    return [list(row).count(image_token) // tile_tokens for row in rows]


def as_tensor(value: Any) -> Tensor:
    """Returns a processor's field as one tensor; without `return_tensors` it is a list."""
    return torch.stack([torch.as_tensor(part) for part in value]) if isinstance(value, list) else torch.as_tensor(value)


def _words(value: Any) -> Hashable:
    """Returns everything in a row but its pictures."""
    if isinstance(value, dict):
        return tuple((name, _words(part)) for name, part in value.items())
    if isinstance(value, list | tuple):
        return tuple(_words(part) for part in value)
    return value if isinstance(value, str | int | float | bool | None) else type(value).__name__


def _num_images(conversation: Sequence[dict[str, Any]]) -> int:
    contents = [message["content"] for message in conversation if isinstance(message["content"], list)]
    return sum(part["type"] == "image" for content in contents for part in content)


def _like(fields: Any, expanded: dict[str, Any]) -> Any:
    return type(fields)({name: expanded[name] for name in fields})
