"""How does each distinct picture go through the vision tower once? A layer before the model's `get_image_features`.

Pictures are compared value by value. While the tower cannot change, their features are kept for the next pass.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from train.sharing.batch import Picture, join_pictures, split_pictures

NUM_SAMPLES = 32
"""Values of a picture that are looked at before two pictures are compared in full."""


@dataclass(frozen=True, kw_only=True)
class Features:
    """One picture's part of the tower's output."""

    pooled: Float[Tensor, "tokens hidden"]
    is_stacked: bool
    """Whether the output has all pictures in one tensor (tiles of equal size) or as a list of tensors."""
    levels: tuple[Float[Tensor, "tokens hidden"], ...] | None
    """What Qwen3-VL adds to the first decoder layers (deepstack); None in other families."""
    kind: type
    """Class of the output."""
    levels_are_split: bool
    """Whether the output has each level by picture (Transformers 5.23) or as one tensor (5.17)."""


@dataclass
class PictureReader:
    """The features of pictures, computed once per distinct picture."""

    _kept: dict[Any, list[tuple[Picture, Features]]] = field(default_factory=dict)
    num_read: int = 0
    """Pictures that went through a tower so far."""

    def forget(self) -> None:
        """Drops all features."""
        self._kept.clear()

    @contextmanager
    def reading(self, backbone: Any, *, keep: bool) -> Iterator[None]:
        """Within it, the model computes the features of each distinct picture once.

        Args:
            backbone: a model with `get_image_features`, as Transformers (5.23) calls it in its forward pass.
            keep: the tower does not change, so that features can be used again in later passes.
        """
        if not hasattr(type(backbone), "get_image_features"):  # a text-only model
            yield
            return
        features = partial(self._features, backbone, backbone.get_image_features, keep)
        with instead(backbone, "get_image_features", features):
            yield

    def _features(
        self,
        backbone: Any,
        compute: Any,
        keep: bool,
        pixel_values: Tensor,
        image_grid_thw: Tensor | None = None,
        **options: Any,
    ) -> Any:
        num_pictures = len(pixel_values if image_grid_thw is None else image_grid_thw)
        ((*pictures,),) = split_pictures(pixel_values, image_grid_thw, [num_pictures])
        store = self._kept if keep else {}
        found = [_find(store, _key(backbone, picture), picture) for picture in pictures]
        missing: list[Picture] = []
        for picture, features in zip(pictures, found, strict=True):
            if features is None and not any(picture.equals(other) for other in missing):
                missing.append(picture)
        if not missing:
            assert found
            return _joined([features for features in found if features is not None])
        with torch.set_grad_enabled(torch.is_grad_enabled() and not keep):
            output = compute(**join_pictures(missing), **options)
        self.num_read += len(missing)
        if len(missing) == len(pictures) and not keep:
            return output
        for index, picture in enumerate(missing):
            # A copy, since the picture is a part of a tensor with one picture per reply.
            own = replace(picture, pixels=picture.pixels.clone()) if keep else picture
            store.setdefault(_key(backbone, picture), []).append((own, _taken(output, index)))
        found = [_find(store, _key(backbone, picture), picture) for picture in pictures]
        return _joined([features for features in found if features is not None])


@contextmanager
def instead(owner: Any, name: str, method: Any) -> Iterator[None]:
    """Temporarily puts a function in the place of a method of one object."""
    before = vars(owner).get(name)
    setattr(owner, name, method)
    try:
        yield
    finally:
        if before is None:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


def _key(backbone: Any, picture: Picture) -> tuple[Any, ...]:
    """Returns what pictures with the same features have in common, cheap to compute."""
    flat = picture.pixels.reshape(-1)
    sample = flat[:: max(1, flat.numel() // NUM_SAMPLES)].tolist()
    device = picture.pixels.device.type
    arithmetic = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    return id(backbone), arithmetic, picture.size, tuple(sample)


def _find(store: dict[Any, list[tuple[Picture, Features]]], key: Any, picture: Picture) -> Features | None:
    return next((features for other, features in store.get(key, []) if other.equals(picture)), None)


def _taken(output: Any, index: int) -> Features:
    """Returns one picture's features."""
    levels, split = output.get("deepstack_features"), True
    if levels is not None:
        split = not isinstance(levels[0], Tensor)
        sizes = [len(pooled) for pooled in output.pooler_output]
        levels = tuple((level if split else torch.split(level, sizes))[index] for level in levels)
    return Features(
        pooled=output.pooler_output[index],
        is_stacked=isinstance(output.pooler_output, Tensor),
        levels=levels,
        kind=type(output),
        levels_are_split=split,
    )


def _joined(parts: list[Features]) -> Any:
    """Returns the features of several pictures as the tower's output."""
    pooled = tuple(part.pooled for part in parts)
    fields: dict[str, Any] = {"pooler_output": torch.stack(pooled) if parts[0].is_stacked else pooled}
    if parts[0].levels is not None:
        levels = zip(*(part.levels or () for part in parts), strict=True)
        join = tuple if parts[0].levels_are_split else torch.cat
        fields["deepstack_features"] = [join(level) for level in levels]
    return parts[0].kind(**fields)
