"""Which weights can an adapter change? Read from its names, ranks and factors, without merging it.

A weight without an update has the base's bits in every merge. So has one whose update is zero, as all are before
training (B = 0). All other updates count as changes, even if rounding would swallow some of them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from models.adapters.reading import Adapter, LowRank, Update, read_tensor
from models.blocks import ALL_REGIONS, BLOCKS, block_names, format_layers
from models.checkpoint import Checkpoint
from models.layout import Layout, Parameter
from models.shards import DTYPES
from tracking.tables import format_columns
from train.freezing.freeze import FreezePlan

NONE, ZERO, LOW_RANK, IN_FULL = "none", "zero", "low rank", "in full"


@dataclass(frozen=True, kw_only=True)
class Reach:
    """What an adapter does to one parameter."""

    name: str
    update: str
    """`none`, `zero` (an update that changes nothing), `low rank`, or `in full` (a weight of its own)."""
    rank: int | None
    """Of an update by factors."""
    frozen: bool

    @property
    def can_change(self) -> bool:
        return self.update not in (NONE, ZERO)

    @property
    def described(self) -> str:
        return f"an update of rank {self.rank}" if self.update == LOW_RANK else "a weight trained in full"


def reach_of(adapter: Adapter, base: Checkpoint, plan: FreezePlan) -> list[Reach]:
    """Returns what an adapter does to every parameter of its base, in the model's order.

    The update of a head that the base ties to its embeddings counts for the embedding matrix.
    """
    updates = {_own_name(name, base, plan.layout): update for name, update in adapter.updates.items()}
    frozen = set(plan.frozen)
    return [
        Reach(
            name=name,
            update=_kind(updates.get(name), base),
            rank=update.rank if isinstance(update := updates.get(name), LowRank) else None,
            frozen=name in frozen,
        )
        for name in plan.layout.parameters
    ]


def _own_name(name: str, base: Checkpoint, layout: Layout) -> str:
    if name in layout.parameters:
        return name
    assert layout.tied and base.family.place(name)[0] == "head", name
    return next(parameter.name for parameter in layout if parameter.region == "embed")


def _kind(update: Update | None, base: Checkpoint) -> str:
    if update is None:
        return NONE
    if isinstance(update, LowRank):
        return ZERO if update.is_zero() else LOW_RANK
    if update.name not in base.tensors:
        return IN_FULL
    import torch

    stored = base.tensors[update.name]
    rounded = read_tensor(update.stored).to(getattr(torch, DTYPES[stored.dtype][0]))
    return ZERO if rounded.equal(base.tensor(update.name)) else IN_FULL


def format_reach(reached: Sequence[Reach], plan: FreezePlan) -> list[str]:
    """Returns a table: per block and region the tensors and layers that can change, ranks, and zero updates."""
    rows = [("block", "tensors", "can change", "layers", "ranks", "zero updates", "")]
    for block in (*BLOCKS, *ALL_REGIONS):
        own = [one for one in reached if block_names(_parameter(one, plan), plan.partition) == block]
        if not own:
            continue
        changing = [one for one in own if one.can_change]
        num_frozen = sum(one.frozen for one in own)
        kept = sum(one.frozen and not one.can_change for one in own)
        rows.append(
            (
                block,
                str(len(own)),
                str(len(changing)),
                format_layers({index for one in changing if (index := _parameter(one, plan).index) is not None}),
                ", ".join(_ranks(changing)),
                str(sum(one.update == ZERO for one in own)),
                f"{kept} of {num_frozen} frozen untouched" if num_frozen else "",
            )
        )
    return format_columns(rows, right=(1, 2, 5))


def _parameter(reach: Reach, plan: FreezePlan) -> Parameter:
    return plan.layout.parameters[reach.name]


def _ranks(reached: Sequence[Reach]) -> Iterator[str]:
    """Yields the ranks of the updates, smallest first, and whether a weight was trained in full."""
    yield from (str(rank) for rank in sorted({one.rank for one in reached if one.rank is not None}))
    if any(one.update == IN_FULL for one in reached):
        yield IN_FULL
