"""Applies the change between two checkpoints to a third: onto + alpha * (end - start).

If `onto` is the start, this is linear interpolation: alpha 0 gives the start and alpha 1 the end, both byte for byte.
Otherwise the arithmetic is fp32 (fp64 for a tensor stored in fp64), a chunk at a time, and the result is rounded once
to the stored dtype, to nearest with ties to even. A result that is NaN or out of the dtype's range is an error.
"""

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from merge.recipes.recipe import Blend
from models.checkpoint import Checkpoint, cast_bytes
from models.shards import DTYPES

if TYPE_CHECKING:
    import torch

FLOATING = ("F64", "F32", "F16", "BF16")
"""Stored dtypes that can be blended."""
CHUNK_ELEMENTS = 2**20
"""Elements per chunk: 4 MiB of fp32 per operand."""


def blend_bytes(
    donors: Mapping[str, Checkpoint], blend: Blend, name: str, dtype: str, *, chunk_elements: int = CHUNK_ELEMENTS
) -> Iterator[bytes | memoryview]:
    """Yields a blended tensor's bytes, in order.

    Args:
        donors: the recipe's checkpoints by name.
        blend: the checkpoints to combine and the factor.
        name: the tensor's canonical name; all donors involved have it with the same shape.
        dtype: as safetensors spells it, such as `BF16`.
        chunk_elements: elements per chunk; the result does not depend on it.

    Raises:
        ValueError: if the tensor is not floating-point, or the result is not finite.
    """
    onto = blend.start if blend.onto is None else blend.onto
    if blend.alpha == 0:
        yield cast_bytes(donors[onto], name, dtype)
        return
    if blend.alpha == 1 and onto == blend.start:
        yield cast_bytes(donors[blend.end], name, dtype)
        return
    stored = [donors[donor].tensors[name] for donor in blend.donors]
    for tensor in stored:
        if not {tensor.dtype, dtype} <= set(FLOATING):
            raise ValueError(
                f"{tensor.file}: tensor {name!r} holds {tensor.dtype}, which cannot be blended; "
                f"expected {', '.join(FLOATING)}, or a recipe that takes it whole from one donor"
            )
    if donors[blend.start].family.is_buffer(name) and _same_everywhere(donors, blend, name):
        yield cast_bytes(donors[onto], name, dtype)  # an infinite clip bound has no difference
        return
    import torch

    target = getattr(torch, DTYPES[dtype][0])
    arithmetic = torch.promote_types(target, torch.float32)
    num_elements = math.prod(stored[0].shape)
    for first in range(0, num_elements, chunk_elements):
        last = min(first + chunk_elements, num_elements)
        chunk = {donor: elements(donors[donor], name, first, last).to(arithmetic) for donor in blend.donors}
        # Separate operations: a fused multiply-add would round differently in the tail that is not vectorised.
        change = chunk[blend.end].sub(chunk[blend.start])
        result = change.mul_(blend.alpha).add_(chunk[onto]).to(target)
        finite = result.isfinite()
        if not bool(finite.all()):
            position = first + int(finite.logical_not().nonzero()[0])
            raise ValueError(
                f"tensor {name!r}: {blend} is {result[position - first].item()} at element {position} in "
                f"{dtype} ({num_elements} elements); expected finite numbers: choose a smaller alpha, or other donors"
            )
        yield result.view(torch.uint8).numpy().data


def _same_everywhere(donors: Mapping[str, Checkpoint], blend: Blend, name: str) -> bool:
    first, *others = (donors[donor] for donor in blend.donors)
    return all(
        other.tensors[name].dtype == first.tensors[name].dtype and other.data(name) == first.data(name)
        for other in others
    )


def elements(checkpoint: Checkpoint, name: str, first: int, last: int) -> "torch.Tensor":
    """Returns the elements first to last (exclusive) of a flattened tensor, in the stored dtype, as a copy."""
    import torch

    dtype, size = DTYPES[checkpoint.tensors[name].dtype]
    data = checkpoint.data(name)[first * size : last * size]
    return torch.frombuffer(bytearray(data), dtype=getattr(torch, dtype))
