"""What does a run write? Checkpoints for resuming, as many as are kept, and the result.

Trainer saves weights and optimizer state. DeepSpeed (0.19.8) saves beside Trainer's weights: masters and moments of
what trains, in fp32; under ZeRO-1 and ZeRO-2 the weights once more, and in a file from a GPU what is frozen a third
time; under ZeRO-3 what is frozen. ZeRO-1 and ZeRO-2 also write a tied head beside the embeddings.

Known limits: files beside weights and optimizer state (tokenizer, random states: some MB) are not counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from train.planning.memory import MASTER_BYTES, MOMENT_BYTES, Engine, Tensor


@dataclass(frozen=True, kw_only=True)
class Disk:
    """Bytes of one run."""

    checkpoint_bytes: int
    num_checkpoints: int
    """Kept at the end."""
    final_bytes: int

    @property
    def kept_bytes(self) -> int:
        return self.num_checkpoints * self.checkpoint_bytes + self.final_bytes

    @property
    def passing_bytes(self) -> int:
        """What stands beside for a while: a new checkpoint before the oldest goes, which is when it has been proved."""
        return self.checkpoint_bytes if self.num_checkpoints else 0


def weights_bytes(tensors: Sequence[Tensor], engine: Engine, *, head_elements: int, adapters: bool) -> int:
    """Returns what Trainer saves of the weights: all of them, or under LoRA the adapters."""
    if adapters:
        return sum(t.num_elements * t.num_bytes for t in tensors if t.trains)
    head = head_elements * tensors[0].num_bytes if engine.stage in (1, 2) else 0
    return head + sum(t.num_elements * t.num_bytes for t in tensors)


def state_bytes(tensors: Sequence[Tensor], engine: Engine, *, adapters: bool) -> int:
    """Returns what is saved for resuming beside Trainer's weights; under LoRA, DeepSpeed leaves out what is frozen."""
    trained = [tensor for tensor in tensors if tensor.trains]
    if not engine.stage:
        return 2 * sum(t.num_elements * t.num_bytes for t in trained)
    kept = sum(t.num_elements * t.num_bytes for t in trained) if engine.stage < 3 else 0
    frozen = sum(t.num_elements * t.num_bytes for t in tensors if not t.trains)
    if not adapters:
        kept += 2 * frozen if engine.stage < 3 else frozen
    return kept + (MASTER_BYTES + 2 * MOMENT_BYTES) * sum(t.num_elements for t in trained)


def plan_disk(
    tensors: Sequence[Tensor],
    engine: Engine,
    *,
    head_elements: int,
    adapters: bool,
    stored_bytes: int,
    num_steps: int | None,
    save_steps: int | None,
    num_kept: int | None,
) -> Disk:
    """Returns what one run writes.

    Args:
        tensors: in memory.
        engine: that saves them.
        head_elements: of a tied head; 0 where it is apart.
        adapters: LoRA trains.
        stored_bytes: of the start checkpoint, which `final/` is written like.
        num_steps: of the run; None where it is unknown.
        save_steps: between checkpoints; None for none.
        num_kept: checkpoints kept; None for all.
    """
    weights = weights_bytes(tensors, engine, head_elements=head_elements, adapters=adapters)
    num_saved = 0
    if save_steps is not None:
        num_saved = 1 if num_steps is None else max(1, num_steps // save_steps)
        num_saved = min(num_saved, num_kept or num_saved)
    return Disk(
        checkpoint_bytes=weights + state_bytes(tensors, engine, adapters=adapters),
        num_checkpoints=num_saved,
        final_bytes=stored_bytes + (weights if adapters else 0),
    )
