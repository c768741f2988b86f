"""What do the parts outside the stacks of layers save for the backward pass? Embeddings, head, patches and projector.

Read in Transformers 5.23 and TRL 1.16, as the layers in `activations.py`.
"""

from models.layout import Parameter
from train.planning.activations import NORM_BYTES, Layer, Precision, Tokens

TOKEN_TILE = 4_096
VOCABULARY_TILE = 32_768
"""TRL 1.16: `TOKEN_CHUNK_SIZE`, `_CHUNKED_LOGPROB_CHUNK_SIZE`."""

TOKEN_NUMBER_BYTES = 8
TARGET_BYTES = 16
"""Bytes per token for target, normaliser and entropy."""


def ends_bytes(tokens: Tokens, precision: Precision, *, layer: Layer, norm_trains: bool) -> int:
    """Returns the bytes saved below and above the decoder layers.

    Below: token ids, rotary cosines and sines. Above: the tensors saved by the final norm, and the hidden states and
    targets saved for the log-probabilities.
    """
    rotary = 2 * precision.stream_bytes * (layer.attention_output.num_in // layer.num_heads)
    norm = NORM_BYTES * layer.width + 4 + (precision.stream_bytes * layer.width if norm_trains else 0)
    loss = precision.stream_bytes * layer.width + TARGET_BYTES
    return tokens.num_tokens * (TOKEN_NUMBER_BYTES + rotary + norm + loss)


def tile_bytes(tokens: Tokens, precision: Precision) -> int:
    """Returns the bytes of the tile of logits in which log-probabilities and their gradients are computed."""
    return min(tokens.num_tokens, TOKEN_TILE) * VOCABULARY_TILE * precision.compute_bytes


def patches_bytes(precision: Precision, *, num_patches: int, pixels_a_patch: int, patch_width: int) -> int:
    """Returns the bytes that the vision tower's first convolution saves if it trains: input and a weight copy."""
    num_copied = patch_width * pixels_a_patch if precision.weight_copies else 0
    return precision.compute_bytes * (num_patches * pixels_a_patch + num_copied)


def projector_bytes(
    projector: list[Parameter], trainable: set[str], precision: Precision, *, num_patches: int, patch_width: int
) -> int:
    """Returns an upper bound on the bytes saved by the projector: a norm, and GELU between two linear maps."""
    trains = any(parameter.name in trainable for parameter in projector)
    norm = NORM_BYTES * patch_width + 4 + (precision.stream_bytes * patch_width if trains else 0)
    a_patch = norm + (3 if trains else 1) * precision.compute_bytes * patch_width
    weights = sum(parameter.num_elements for parameter in projector if len(parameter.shape) == 2)
    return num_patches * a_patch + (precision.compute_bytes * weights if precision.weight_copies else 0)
