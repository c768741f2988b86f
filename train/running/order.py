"""Which prompts share a batch? Where a batch is divided, only prompts of one kind: all with images, or all without.

A process whose part of a batch has images works in the vision tower; one whose part has none does not. ZeRO gathers
weights and reduces gradients in the order of their use, so such processes would wait for each other for ever. And a
pass that gets no image out of a batch of generations that has some fails in one process too: TRL (1.16) hands the
vision tower an empty tensor, and vLLM an empty list.
"""

from collections.abc import Sequence


def one_kind_a_batch(order: Sequence[int], kinds: Sequence[bool], batch_size: int) -> list[int]:
    """Returns the indices in batches of one kind, a batch as soon as its kind has enough; incomplete ones are left out.

    Args:
        order: indices of prompts; at most 2·(batch_size - 1) of them are left out.
        kinds: for each prompt, whether it has images.
        batch_size: prompts a batch, over all processes.
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
