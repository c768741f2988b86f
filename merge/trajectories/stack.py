"""How is one tensor read in all kept steps at once? Decoded step by step, then chunk by chunk in fp64.

    with open_stack(start, ends, name) as stack:
        gram = stack.gram()                       # ⟨Δ_s, Δ_t⟩, [steps, steps]

Steps of an ordinary checkpoint are read from its memory map. Decoded ones are held in their stored dtype up to
`MEMORY_BYTES`, beyond that in a temporary file, so that no number of steps fills the memory.
"""

import itertools
import math
import mmap
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from merge.trajectories.restored import RestoredCheckpoint
from models.checkpoint import Checkpoint
from models.shards import DTYPES

if TYPE_CHECKING:
    import torch

MEMORY_BYTES = 2**31
"""Bytes of decoded steps of one tensor that are held in memory."""
CHUNK_ELEMENTS = 2**17


@dataclass(frozen=True, kw_only=True)
class Stack:
    """One tensor's bytes at the start and after each step."""

    dtypes: tuple[str, ...]
    """Of the start and of each step, as safetensors spells them."""
    shape: tuple[int, ...]
    contents: tuple[memoryview, ...]

    def values(self, number: int, first: int = 0, last: int | None = None) -> "torch.Tensor":
        """Returns elements of the start (0) or of a step (from 1) in their stored dtype; read-only."""
        import torch

        warnings.filterwarnings("ignore", message="The given buffer is not writable", category=UserWarning)
        dtype, size = DTYPES[self.dtypes[number]]
        content = self.contents[number]
        last = len(content) // size if last is None else last
        if last <= first:
            return torch.empty(0, dtype=getattr(torch, dtype))
        return torch.frombuffer(content[first * size : last * size], dtype=getattr(torch, dtype))

    @property
    def num_elements(self) -> int:
        return len(self.contents[0]) // DTYPES[self.dtypes[0]][1]

    def chunks(self) -> Iterator[tuple[int, Float[np.ndarray, " chunk"], Float[np.ndarray, "steps chunk"]]]:
        """Yields the first element's index, the start's values and the steps' changes, exact in fp64."""
        for first, before in self._starts():
            last = first + len(before)
            changes = np.stack(
                [self.values(number, first, last).double().numpy() for number in range(1, len(self.contents))]
            )
            changes -= before
            yield first, before, changes

    def gram(self) -> Float[np.ndarray, "steps steps"]:
        """Returns the dot products of the steps' changes."""
        total = np.zeros((len(self.contents) - 1,) * 2)
        for _, _, changes in self.chunks():
            total += changes @ changes.T
        return total

    def start_squares(self) -> float:
        """Returns the squared norm of the start."""
        return math.fsum(float(before @ before) for _, before in self._starts())

    def change(self, number: int) -> "torch.Tensor":
        """Returns the change after a step (from 1) in the tensor's shape, subtracted in fp64 and rounded to fp32."""
        import torch

        change = torch.empty(self.num_elements, dtype=torch.float32)
        for first, before in self._starts():
            last = first + len(before)
            change[first:last] = self.values(number, first, last).double() - torch.from_numpy(before)
        return change.reshape(self.shape)

    def _starts(self) -> Iterator[tuple[int, Float[np.ndarray, " chunk"]]]:
        for first in range(0, self.num_elements, CHUNK_ELEMENTS):
            yield first, self.values(0, first, min(first + CHUNK_ELEMENTS, self.num_elements)).double().numpy()


@contextmanager
def open_stack(start: Checkpoint, ends: Sequence[Checkpoint], name: str) -> Iterator[Stack]:
    """Opens one tensor at the start and after each step; the memory is free again afterwards.

    Args:
        start: the checkpoint before the first step.
        ends: one checkpoint per step, with tensors of the same shape.
        name: canonical.

    Raises:
        ValueError: if a step's file is damaged.
    """
    checkpoints = (start, *ends)
    decoded = [end for end in ends if isinstance(end, RestoredCheckpoint) and name in end.record.tensors]
    spilled = sum(end.tensors[name].num_bytes for end in decoded) > MEMORY_BYTES
    with tempfile.TemporaryFile() if spilled else nullcontext() as file:
        found = [end.data(name) for end in ends] if file is None else _spill(ends, name, file)
        try:
            yield Stack(
                dtypes=tuple(checkpoint.tensors[name].dtype for checkpoint in checkpoints),
                shape=start.tensors[name].shape,
                contents=(start.data(name), *found),
            )
        finally:
            for checkpoint in checkpoints:
                checkpoint.release(name)


def _spill(ends: Sequence[Checkpoint], name: str, file: IO[bytes]) -> list[memoryview]:
    """Returns a tensor's bytes after each step, written to a file one step at a time."""
    sizes = [end.tensors[name].num_bytes for end in ends]
    for end in ends:
        file.write(end.data(name))
        end.release(name)
    file.flush()
    content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    return [content[last - size : last] for size, last in zip(sizes, itertools.accumulate(sizes), strict=True)]
