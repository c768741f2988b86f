"""What exactly does an adapter add to a weight? The change s·B·A as factors, never as a matrix."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from models.adapters.merged import MergedCheckpoint
from models.adapters.opening import place_of
from models.adapters.reading import LowRank
from models.checkpoint import Checkpoint

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float


@dataclass(frozen=True, kw_only=True)
class LowRankChange:
    """The change up·down of one weight, in fp64; of rank 0 where nothing changes."""

    up: "Float[torch.Tensor, 'rows rank']" = field(repr=False)
    down: "Float[torch.Tensor, 'rank columns']" = field(repr=False)

    @property
    def rank(self) -> int:
        """Number of columns of the factors, an upper bound of the change's rank."""
        return int(self.up.shape[1])

    @property
    def shape(self) -> tuple[int, int]:
        return int(self.up.shape[0]), int(self.down.shape[1])

    def elements(self, first: int, last: int) -> "Float[torch.Tensor, ' elements']":
        """Returns the elements first to last (exclusive) of the change, row after row."""
        columns = self.down.shape[1]
        top = first // columns
        rows = self.up[top : -(-last // columns)] @ self.down
        return rows.flatten()[first - top * columns : last - top * columns]


def is_adapted(start: Checkpoint, end: Checkpoint) -> bool:
    """True if the second checkpoint is an adapter on the first, or on the base of the adapter that the first is."""
    return isinstance(end, MergedCheckpoint) and place_of(start)[0] == place_of(end)[0]


def low_rank_change(start: Checkpoint, end: Checkpoint, name: str) -> LowRankChange | None:
    """Returns the exact change of a weight between two checkpoints, if adapters of one base alone make it.

    Args:
        start: the adapter's base, or the same base with another adapter.
        end: the base with an adapter.
        name: canonical name of the weight.

    Returns:
        None if the checkpoints have no base in common, or the weight does not change by s·B·A: because it was trained
        in full, or its rows are rescaled (DoRA).
    """
    if not isinstance(end, MergedCheckpoint) or not is_adapted(start, end):
        return None
    import torch

    terms: list[tuple[float, LowRank]] = []
    for sign, checkpoint in ((1.0, end), (-1.0, start)):
        update = checkpoint.adapter.updates.get(name) if isinstance(checkpoint, MergedCheckpoint) else None
        if update is None:
            continue
        if not isinstance(update, LowRank) or update.magnitude is not None:
            return None
        if not update.is_zero():
            terms.append((sign, update))
    shape = end.base.tensors[name].shape
    rows, columns = shape[0], int(torch.Size(shape[1:]).numel())
    ups, downs = [torch.empty(rows, 0, dtype=torch.float64)], [torch.empty(0, columns, dtype=torch.float64)]
    for sign, update in terms:
        up, down = update.factors(torch.float64)
        if update.transposed:
            up, down = down.T, up.T
        ups.append(sign * update.scale * up)
        downs.append(down)
    if len(terms) == 2 and torch.equal(ups[1], -ups[2]) and torch.equal(downs[1], downs[2]):  # the same adapter twice
        ups, downs = ups[:1], downs[:1]
    return LowRankChange(up=torch.cat(ups, dim=1), down=torch.cat(downs))
