"""What is a model with its adapter merged in? A checkpoint whose tensors are computed when they are read.

    W' = round(W + s·B·A)

The product and the sum are computed in fp32 (fp64 for weights stored in fp64), and rounded once to the stored dtype.
These are the bits of PEFT 0.21's `merge_and_unload()`, except for convolutions. With `safe_merge=True`, and for
adapters held in bf16 (`autocast_adapter_dtype=False`), PEFT rounds the product to bf16 too, which rounds twice.
"""

import hashlib
import threading
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from models.adapters.reading import Adapter, LowRank, Replacement, Update, read_tensor
from models.checkpoint import Checkpoint
from models.foreign import merge_advice
from models.tying import is_tied

if TYPE_CHECKING:
    import torch

BLOCK_ELEMENTS = 2**20
"""Elements merged at a time: four times as fast as a large matrix at once, whose copies are new memory each."""
MIN_BLOCK_ROWS = 16
"""With fewer rows, down to one, the product's kernel is another one and so are the last bits."""
APPLIED = "merged in fp32, rounded once to the stored dtype"


@dataclass(frozen=True, kw_only=True)
class MergedCheckpoint(Checkpoint):
    """A base checkpoint with an adapter merged in. Tensors without an update are the base's bytes.

    `directory`, `config` and `tensors` are the base's: the merge has its configuration, names, dtypes and shapes.
    """

    base: Checkpoint
    adapter: Adapter
    _latest: dict[str, memoryview] = field(default_factory=dict, repr=False)
    """The tensor that was merged last, because readers come back for its next chunk."""
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def data(self, name: str) -> memoryview:
        """Returns a tensor's bytes: as stored in the base, or merged, in the same dtype."""
        update = self.adapter.updates.get(name)
        if update is None:
            return self.base.data(name)
        with self._lock:
            if name not in self._latest:
                import torch

                self._latest.clear()
                merged = merge_tensor(self.base.tensor(name), update)
                self._latest[name] = merged.contiguous().view(torch.uint8).numpy().reshape(-1).data
            return self._latest[name]

    def release(self, name: str, first_byte: int = 0, last_byte: int | None = None) -> None:
        """Releases a base tensor's memory; merged tensors replace one another."""
        if name not in self.adapter.updates:
            self.base.release(name, first_byte, last_byte)

    def fingerprint(self) -> str:
        """Returns a fingerprint of the base's and the adapter's."""
        return hashlib.sha256(f"{self.base.fingerprint()} {self.adapter.fingerprint()}".encode()).hexdigest()

    @property
    def facts(self) -> dict[str, Any]:
        """What a run records about the model: base and adapter, each with its identity."""
        return {
            "checkpoint": str(self.adapter.directory),
            "sha256": self.adapter.sha256(),
            "base": str(self.base.directory),
            "base_fingerprint": self.base.fingerprint(),
            "base_in_config": self.adapter.base_name,
            "num_updates": len(self.adapter.updates),
            "applied": APPLIED,
        }


def merge_tensor(weight: "torch.Tensor", update: Update) -> "torch.Tensor":
    """Returns an updated weight in the base weight's dtype and shape.

    Raises:
        ValueError: if the result is not finite.
    """

    if isinstance(update, Replacement):
        rounded = read_tensor(update.stored).to(weight.dtype)
    else:
        rounded = _merge_low_rank(weight.flatten(1), update).reshape(weight.shape)
    if not _all_finite(rounded):
        source = update.stored.file if isinstance(update, Replacement) else update.up.file
        raise ValueError(f"{source}: merged, {update.name!r} has NaN or infinite values in {weight.dtype}")
    return rounded


def _merge_low_rank(weight: "torch.Tensor", update: LowRank) -> "torch.Tensor":
    """Returns W + s·B·A of a matrix, rescaled row by row with DoRA, a block of rows at a time."""
    import torch

    arithmetic = torch.promote_types(weight.dtype, torch.float32)
    up, down = update.factors(arithmetic)
    magnitude = None if update.magnitude is None else read_tensor(update.magnitude).to(arithmetic).reshape(-1, 1)
    num_blocks = max(1, min(-(-weight.numel() // BLOCK_ELEMENTS), len(weight) // MIN_BLOCK_ROWS))
    num_blocks = 1 if update.transposed else num_blocks
    rounded = torch.empty_like(weight)
    for number in range(num_blocks):
        rows = slice(len(weight) * number // num_blocks, len(weight) * (number + 1) // num_blocks)
        merged = (up @ down).T if update.transposed else up[rows] @ down
        merged = merged.mul_(update.scale).add_(weight[rows])
        if magnitude is not None:
            merged *= magnitude[rows] / torch.linalg.norm(merged, dim=1, keepdim=True)
        rounded[rows] = merged
    return rounded


def _all_finite(values: "torch.Tensor") -> bool:
    """True if no element is NaN or infinite; by the exponents' bits of 16-bit numbers, ten times as fast as torch."""
    import torch

    if values.element_size() != 2:
        return bool(values.isfinite().all())
    infinity = int(torch.tensor(float("inf"), dtype=values.dtype).view(torch.int16))
    return not values.numel() or int((values.contiguous().view(torch.int16).numpy() & 0x7FFF).max()) < infinity


def merge_adapter(base: Checkpoint, adapter: Adapter) -> MergedCheckpoint:
    """Returns the base with an adapter merged in, computed lazily.

    Raises:
        ValueError: if the adapter changes the head or the embedding matrix of a model that ties the two.
    """
    if is_tied(base.config):
        for name, update in adapter.updates.items():
            if base.family.place(name)[0] in ("embed", "head"):
                file = update.up.file if isinstance(update, LowRank) else update.stored.file
                raise ValueError(
                    f"{file}: changes {name!r}, while {base.directory} ties head and embeddings, so that merging would "
                    f"change both; {_untied(base, adapter, update)}"
                )
    own = {one.name: getattr(base, one.name) for one in fields(Checkpoint)}
    return MergedCheckpoint(**own, base=base, adapter=adapter)


def _untied(base: Checkpoint, adapter: Adapter, update: Update) -> str:
    """Returns the way out for an adapter that changes one of two tied matrices."""
    if isinstance(update, LowRank):
        return (
            f"save {base.directory} with a head of its own (tie_word_embeddings false, lm_head.weight stored), and "
            "name that as the base"
        )
    return (
        "with a head of its own, as PEFT makes it, the merged model can be read by train.verify and eval.run; "
        "analyze.deltas and merge.splice do not compare it with a tied base. To make it, "
        f"{merge_advice(adapter.directory)}"
    )
