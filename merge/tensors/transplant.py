"""What does a tensor become when a change is carried over? onto + alpha * (end - start), of two or three checkpoints.

With `onto` the start itself this is linear interpolation: alpha 0 is the start, alpha 1 the end, both byte for byte.
Elsewhere the arithmetic is fp32 (fp64 for a tensor that is stored so), a chunk at a time, and the result is rounded to
the stored dtype once, to the nearest and ties to even. What leaves the dtype's range, or is NaN, is an error.
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
"""Stored dtypes that can be computed with."""
CHUNK_ELEMENTS = 2**20
"""Elements computed at a time: 4 MiB of fp32 for each operand."""


def blend_bytes(
    donors: Mapping[str, Checkpoint], blend: Blend, name: str, dtype: str, *, chunk_elements: int = CHUNK_ELEMENTS
) -> Iterator[bytes | memoryview]:
    """Yields a blended tensor's bytes, in order.

    Args:
        donors: the recipe's checkpoints by name.
        blend: which of them is carried over onto which.
        name: the tensor's canonical name; every donor concerned has it, in one shape.
        dtype: as safetensors spells it, such as `BF16`.
        chunk_elements: how many elements are computed at a time; the result does not depend on it.

    Raises:
        ValueError: where the tensor holds no floating-point numbers, or the result is not finite.
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
    import torch

    target = getattr(torch, DTYPES[dtype][0])
    arithmetic = torch.promote_types(target, torch.float32)
    num_elements = math.prod(stored[0].shape)
    for first in range(0, num_elements, chunk_elements):
        last = min(first + chunk_elements, num_elements)
        chunk = {donor: elements(donors[donor], name, first, last).to(arithmetic) for donor in blend.donors}
        # One operation at a time: a fused one would round differently where the vector units do not reach.
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


def elements(checkpoint: Checkpoint, name: str, first: int, last: int) -> "torch.Tensor":
    """Returns the elements first to last (exclusive) of a flattened tensor, in the stored dtype, as a copy."""
    import torch

    dtype, size = DTYPES[checkpoint.tensors[name].dtype]
    data = checkpoint.data(name)[first * size : last * size]
    return torch.frombuffer(bytearray(data), dtype=getattr(torch, dtype))
