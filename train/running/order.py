"""Which prompts share a batch? If a batch is divided, only prompts of one kind: all with images, or all without.

A process runs the vision tower only if its part of a batch has images. ZeRO gathers weights and reduces gradients in
the order of their use, so processes of different kinds would deadlock. With a single process, a pass without images
from a generation batch that has some also fails: TRL (1.16) passes an empty tensor to the vision tower, and an empty
list to vLLM.
"""

from collections.abc import Sequence


def one_kind_a_batch(order: Sequence[int], kinds: Sequence[bool], batch_size: int) -> list[int]:
    """Returns the indices in batches of one kind, each emitted as soon as it is full; incomplete batches are dropped.

    Args:
        order: prompt indices; at most 2·(batch_size - 1) of them are dropped.
        kinds: for each prompt, whether it has images.
        batch_size: prompts per batch, over all processes.
    """
    waiting: dict[bool, list[int]] = {True: [], False: []}
    batched: list[int] = []
    for index in order:
        same = waiting[kinds[index]]
        same.append(index)
        if len(same) == batch_size:
            batched += same
            same.clear()
    return batched
