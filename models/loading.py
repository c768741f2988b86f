"""How does a checkpoint become a model that runs? Resolving its name, loading it, and its processor."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.layout import CONFIG_FILE, layout_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, ProcessorMixin

CHECKPOINT_FILES = ["*.json", "*.safetensors", "*.txt", "*.jinja", "*.model"]
"""What is fetched of a hub checkpoint: never pickled weights, never code."""


def local_checkpoint(name: str, *, config_only: bool = False) -> Path:
    """Returns the folder of a checkpoint: a local folder as it is, or the cached or fetched snapshot of a hub id.

    Args:
        name: a folder, or a hub id such as `Qwen/Qwen2.5-VL-3B-Instruct`.
        config_only: fetch `config.json` alone.

    Raises:
        ValueError: where the name is neither a folder nor a checkpoint the hub or its cache can give.
    """
    path = Path(name)
    if path.is_dir():
        return path
    if path.is_absolute() or name.startswith(".") or name.count("/") != 1:
        raise ValueError(
            f"checkpoint {name} does not exist; expected a folder or a hub id such as Qwen/Qwen2.5-VL-3B-Instruct"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = [CONFIG_FILE] if config_only else CHECKPOINT_FILES
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        raise ValueError(
            f"checkpoint {name!r} is no local folder and cannot be had from the hub or its cache "
            f"({type(error).__name__}); expected an existing folder or a reachable hub id"
        ) from error


def load_model(
    directory: Path, *, dtype: "torch.dtype | str" = "auto", attn_implementation: str | None = None
) -> "PreTrainedModel":
    """Loads a checkpoint's weights (safetensors only, no code from the checkpoint) into its family's class."""
    import transformers

    layout = layout_of(directory)
    options: dict[str, Any] = {"attn_implementation": attn_implementation} if attn_implementation else {}
    auto_class = getattr(transformers, layout.family.auto_class)
    model: PreTrainedModel = auto_class.from_pretrained(directory, dtype=dtype, use_safetensors=True, **options)
    return model


def load_processor(directory: Path) -> "ProcessorMixin":
    """Loads a checkpoint's processor, padding on the left as generation needs it."""
    import transformers

    processor: ProcessorMixin = transformers.AutoProcessor.from_pretrained(directory, padding_side="left")
    return processor
