"""Can a model read a prompt once for several replies? And which part of it reads?"""

from typing import Any

import torch

from models.families import family_of

SEEING = ("vision", "projector")
"""Regions that a picture passes before it reaches the decoder."""
ATTENTION = ("sdpa", "eager")
"""Attention implementations of Transformers (5.23) that take a mask of any shape."""


def backbone_of(model: Any) -> Any:
    """Returns the model inside the language-model head, of a model that is not wrapped by DDP or DeepSpeed."""
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    return base.base_model


def hidden_size_of(backbone: Any) -> int:
    """Returns the width of the decoder."""
    return int(backbone.config.get_text_config().hidden_size)


def tower_changes(backbone: Any) -> bool:
    """True if a parameter of the vision tower or projector trains."""
    family = family_of(backbone.config.model_type)
    prefixes = tuple(
        prefix.removeprefix("model.")
        for region, prefix in (("vision", family.vision_blocks), *family.regions)
        if prefix is not None and region in SEEING
    )
    return any(parameter.requires_grad and name.startswith(prefixes) for name, parameter in backbone.named_parameters())


def obstacle(model: Any) -> str | None:
    """Returns why a model cannot share prompts, or None.

    Args:
        model: not wrapped by DDP or DeepSpeed.
    """
    config = model.config.get_text_config()
    if config._attn_implementation not in ATTENTION:
        return f"attn_implementation is {config._attn_implementation}; expected {' or '.join(ATTENTION)}"
    kinds = getattr(config, "layer_types", None) or ()
    if "sliding_attention" in kinds:
        return "the model has layers with sliding-window attention"
    if "linear_attention" in kinds:
        return "the model has layers with a recurrent state (linear attention), which no mask can divide into branches"
    dropped = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Dropout) and module.p > 0]
    if dropped:
        return f"dropout differs between replies ({dropped[0]})"
    if getattr(config, "attention_dropout", 0.0) > 0:
        return f"dropout differs between replies (attention_dropout {config.attention_dropout:g})"
    return None
