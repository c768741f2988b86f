"""How does one model in memory become each variant, and the base again? Tensors of a unit are overwritten in place.

    live = LiveModel(model, donors)            # the donors are `start` and the END checkpoints
    live.become("full@0")                      # all tensors
    with live.edited(variant):
        ...                                    # inside its unit: START + alpha (END - START), or END - alpha (...)

What is written equals, bit for bit, what `merge.splice` would store and `load_model` would load: END - alpha (END -
START) is computed as START + (1 - alpha) (END - START), which is exact at alpha 0 and 1. Nothing is written to disk.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from analyze.transplant.plan import START, Unit, Variant
from merge.recipes.recipe import Blend, Owner
from merge.tensors.live import write_tensor
from models.checkpoint import Checkpoint
from models.layout import stored_tensors
from models.shards import same_bytes


class LiveModel:
    """A loaded model whose tensors are overwritten by those of the donors and by blends of them."""

    def __init__(self, model: Any, donors: Mapping[str, Checkpoint]) -> None:
        """Takes over a model that was loaded from the donor `start`."""
        self.model = model
        self.base = START
        self._donors = donors
        self._tensors = stored_tensors(model)
        missing = sorted(set(self._tensors) - set(donors[START].tensors))
        if missing:
            raise ValueError(
                f"{donors[START].directory}: the model that its config.json describes expects {missing[0]!r} "
                f"({len(missing)} such), which its files lack"
            )

    def become(self, base: str) -> None:
        """Overwrites all tensors with those of a donor."""
        if base != self.base:
            self.write(self._tensors, base)
            self.base = base

    @contextmanager
    def edited(self, variant: Variant) -> Iterator[None]:
        """Has the variant's unit hold its blend while the context is open, and the base's tensors again afterwards."""
        assert variant.base == self.base, (variant.base, self.base)
        if variant.unit is None:
            yield
            return
        try:
            self.write(variant.unit.tensors, variant.owner)
            yield
        finally:
            self.write(variant.unit.tensors, self.base)

    def write(self, names: Iterable[str], owner: Owner) -> None:
        """Overwrites tensors with those of an owner."""
        for name in names:
            write_tensor(self._tensors[name], owner, self._donors, name)

    def is_changed(self, unit: Unit, end: str) -> bool:
        """Returns whether END differs from START in any byte of a unit."""
        start, other = self._donors[START], self._donors[end]
        return any(
            start.tensors[name].dtype != other.tensors[name].dtype or not same_bytes(start.data(name), other.data(name))
            for name in unit.tensors
        )

    def hashes(self) -> dict[str, str]:
        """Returns the sha256 of every tensor's bytes."""
        return {name: _sha256(tensor) for name, tensor in self._tensors.items()}

    def all_blended(self, end: str, share: float) -> dict[str, str]:
        """Returns the hashes of START + share (END - START) in all tensors, and restores the model."""
        try:
            self.write(self._tensors, Blend(start=START, end=end, alpha=share))
            return self.hashes()
        finally:
            self.write(self._tensors, self.base)


def _sha256(tensor: torch.Tensor) -> str:
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.sha256(data.data).hexdigest()
