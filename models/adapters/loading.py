"""How is a model with an adapter loaded? The base, with the merged weights copied into it."""

from typing import TYPE_CHECKING

from models.adapters.merged import MergedCheckpoint
from models.loading import load_model

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def load_merged(
    merged: MergedCheckpoint, *, dtype: "torch.dtype | str" = "auto", attn_implementation: str | None = None
) -> "PreTrainedModel":
    """Loads a base with an adapter merged in: the weights that the written merge would have.

    Args:
        merged: the model.
        dtype: as for `load_model`; weights are merged and rounded in the stored dtype before they are converted to it.
        attn_implementation: as for `load_model`.

    Raises:
        ValueError: if base or adapter cannot be read, or the attention is not available here.
    """
    model = load_model(merged.base.directory, dtype=dtype, attn_implementation=attn_implementation)
    parameters = dict(model.named_parameters())
    for name in merged.adapter.updates:
        parameters[name].data.copy_(merged.tensor(name))
    return model
