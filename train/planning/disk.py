"""How much disk space does a run need? Checkpoints for resuming, as many as are kept, the kept steps and the result.

Trainer saves weights and optimizer state. In addition to Trainer's weights, DeepSpeed (0.19.8) saves fp32 masters and
moments of trainable parameters; under ZeRO-1 and ZeRO-2 also the weights a second time and, on GPUs, the frozen
ones a third time; under ZeRO-3 the frozen ones. ZeRO-1 and ZeRO-2 also write a tied head separately.

A step that `keep_trajectory` keeps takes, for an element that trains, at most its value and the bit that says whether
it changed (`merge/trajectories/changes.py`). This is the bound for a step that changed every element in every bit. In
pocket runs a kept step takes half of it; frequent steps in bf16 change few elements and take far less.

Known limits: other files (tokenizer, random states: some MB) are not counted.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from merge.trajectories.changes import most_bytes
from train.planning.memory import MASTER_BYTES, MOMENT_BYTES, Engine, Tensor

RECORD_BYTES = 1024
"""Room for one tensor in a kept step's header and in the index; its name may be 200 characters long."""

Stored: TypeAlias = tuple[int, int]
"""Number of elements, and bytes per element."""


@dataclass(frozen=True, kw_only=True)
class Disk:
    """Bytes of one run."""

    checkpoint_bytes: int
    num_checkpoints: int
    """Kept at the end."""
    final_bytes: int
    num_kept_steps: int = 0
    """Of `keep_trajectory`."""
    kept_step_bytes: int = 0
    """At most."""

    @property
    def trajectory_bytes(self) -> int:
        """At most."""
        return self.num_kept_steps * self.kept_step_bytes

    @property
    def kept_bytes(self) -> int:
        return self.num_checkpoints * self.checkpoint_bytes + self.final_bytes + self.trajectory_bytes

    @property
    def passing_bytes(self) -> int:
        """Temporary space: a new checkpoint exists before the oldest is deleted, which is once it has been proved."""
        return self.checkpoint_bytes if self.num_checkpoints else 0


def weights_bytes(tensors: Sequence[Tensor], engine: Engine, *, head_elements: int, adapters: bool) -> int:
    """Returns the bytes of weights that Trainer saves: all, or under LoRA the adapters."""
    if adapters:
        return sum(t.num_elements * t.num_bytes for t in tensors if t.trains)
    head = head_elements * tensors[0].num_bytes if engine.stage in (1, 2) else 0
    return head + sum(t.num_elements * t.num_bytes for t in tensors)


def state_bytes(tensors: Sequence[Tensor], engine: Engine, *, adapters: bool) -> int:
    """Returns the bytes saved for resuming besides Trainer's weights; under LoRA, DeepSpeed omits frozen tensors."""
    trained = [tensor for tensor in tensors if tensor.trains]
    if not engine.stage:
        return 2 * sum(t.num_elements * t.num_bytes for t in trained)
    kept = sum(t.num_elements * t.num_bytes for t in trained) if engine.stage < 3 else 0
    frozen = sum(t.num_elements * t.num_bytes for t in tensors if not t.trains)
    if not adapters:
        kept += 2 * frozen if engine.stage < 3 else frozen
    return kept + (MASTER_BYTES + 2 * MOMENT_BYTES) * sum(t.num_elements for t in trained)


def most_step_bytes(tensors: Iterable[Stored]) -> int:
    """Returns the most bytes that a kept step can take.

    Args:
        tensors: number of elements, and bytes per element in the start checkpoint, of each tensor that trains.
    """
    return sum(most_bytes(number, width) + RECORD_BYTES for number, width in tensors)


def count_kept_steps(every: int, num_steps: int | None) -> int:
    """Returns the number of steps that `keep_trajectory` keeps, the last included; 1 if that of the run is unknown."""
    if not every:
        return 0
    return 1 if num_steps is None else -(-num_steps // every)


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
    keep_trajectory: int = 0,
    kept_tensors: Iterable[Stored] = (),
) -> Disk:
    """Returns the disk space of one run.

    Args:
        tensors: the parameters in memory.
        engine: the engine that saves them.
        head_elements: elements of a tied head; 0 if it is not tied.
        adapters: True under LoRA.
        stored_bytes: size of the start checkpoint, whose format `final/` has.
        num_steps: steps of the run; None if unknown.
        save_steps: steps between checkpoints; None for no checkpoints.
        num_kept: number of checkpoints kept; None for all.
        keep_trajectory: steps between kept ones; 0 for none.
        kept_tensors: number of elements, and bytes per element in the start checkpoint, of each tensor that trains.
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
        num_kept_steps=count_kept_steps(keep_trajectory, num_steps),
        kept_step_bytes=most_step_bytes(kept_tensors) if keep_trajectory else 0,
    )
