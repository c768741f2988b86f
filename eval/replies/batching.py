"""How many items fit on the device at once? The requested batch size, halved if memory runs out."""

import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class BatchSize:
    """The batch size; permanently halved when the device runs out of memory."""

    def __init__(self, size: int) -> None:
        if size < 1:
            raise ValueError(f"batch size is {size}; it must be at least 1")
        self.size = size

    def run(
        self, items: Sequence[Item], work: Callable[[Sequence[Item]], Sequence[Result]]
    ) -> Iterator[tuple[Sequence[Item], Sequence[Result]]]:
        """Yields each batch with its results, in order.

        Raises:
            RuntimeError: if a single item does not fit.
        """
        done = 0
        while done < len(items):
            batch = items[done : done + self.size]
            try:
                results = work(batch)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if len(batch) == 1:
                    said = " ".join(str(error).split())
                    raise RuntimeError(f"out of memory with one at once; use a narrower dtype ({said})") from error
                self.size = len(batch) // 2
                results = None
            if results is None:  # outside the handler, whose exception would keep the memory alive
                print(
                    f"out of memory with {len(batch)} at once, going on with {self.size}", file=sys.stderr, flush=True
                )
                _release()
                continue
            yield batch, results
            done += len(batch)


def is_out_of_memory(error: RuntimeError) -> bool:
    """True for torch's out-of-memory errors: a class of its own on a GPU, only a message on a CPU (2.15)."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _release() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
