"""How is a checkpoint loaded? Resolving its name, loading the model, and its processor."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.families import Family, family_of
from models.foreign import CONFIG_FILE
from models.hub import CODE_FILES, parse_repository, snapshot
from models.layout import read_model_config

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

CHECKPOINT_FILES = ["*.json", "*.safetensors", "*.txt", "*.jinja", "*.model"]
"""Files fetched from a hub checkpoint: never pickled weights, never code."""
CHECKPOINT_IGNORED = [*CODE_FILES, "*/*.safetensors", "*/*.json"]
"""Files not fetched: training checkpoints that some repositories keep in folders."""

DTYPE_ARGUMENT = {"help": "dtype of the model: auto (as stored), float32 or bfloat16"}
ATTENTION_ARGUMENT = {"help": "attention implementation: sdpa, eager or flash_attention_2"}
"""Metadata of the fields `dtype` and `attn_implementation` of all commands."""


def local_checkpoint(name: str, *, config_only: bool = False) -> Path:
    """Returns the folder of a checkpoint: a local folder unchanged, or the cached or fetched snapshot of a hub id.

    Args:
        name: a folder, or a hub id such as `Qwen/Qwen2.5-VL-3B-Instruct`, optionally followed by `@` and a branch, tag
            or commit.
        config_only: fetch only `config.json`.

    Raises:
        ValueError: if the name is neither a folder nor a checkpoint that the hub or its cache provides.
    """
    path = Path(name)
    if path.is_dir():
        return path
    repository = parse_repository(name)
    if repository is None:
        if path.exists():
            raise ValueError(f"checkpoint {name} is a file; expected the folder that holds it, {path.parent}")
        raise ValueError(
            f"checkpoint {name} does not exist; expected a folder or a hub id such as Qwen/Qwen2.5-VL-3B-Instruct"
        )
    return snapshot(repository, patterns=[CONFIG_FILE] if config_only else CHECKPOINT_FILES, ignored=CHECKPOINT_IGNORED)


def check_checkpoint(name: str) -> None:
    """Refuses what is plainly no checkpoint, in a moment; neither the hub nor its cache is asked.

    Raises:
        ValueError: where the name is neither a folder with a checkpoint nor a possible hub id.
    """
    path = Path(name)
    if not path.is_dir():
        if parse_repository(name) is None:
            local_checkpoint(name)  # says what is wrong
    elif not (path / CONFIG_FILE).is_file() and not any(path.glob("*.safetensors")):
        read_model_config(path)  # says what the folder is


def resolved_revision(name: str) -> str | None:
    """Returns the commit that a hub id resolves to in the cache, after `local_checkpoint`; None for a folder.

    Raises:
        ValueError: if it is not in the cache.
    """
    repository = parse_repository(name)
    return snapshot(repository, patterns=[], cached_only=True).name if repository else None


def load_model(
    directory: Path, *, dtype: "torch.dtype | str" = "auto", attn_implementation: str | None = None
) -> "PreTrainedModel":
    """Loads a checkpoint's weights (safetensors only, no code from the checkpoint) into its family's class.

    Raises:
        ValueError: if the checkpoint has no weights for a parameter, which Transformers would initialise at random.
    """
    import transformers

    options: dict[str, Any] = {"attn_implementation": attn_implementation} if attn_implementation else {}
    auto_class = getattr(transformers, _family(directory).auto_class)
    model: PreTrainedModel
    model, found = auto_class.from_pretrained(
        directory, dtype=dtype, use_safetensors=True, output_loading_info=True, **options
    )
    if missing := sorted(found["missing_keys"]):
        raise ValueError(f"{directory}: has no weights for {missing[0]!r} ({len(missing)} such); it is incomplete")
    return model


def load_processor(directory: Path) -> "ProcessorMixin | PreTrainedTokenizerBase":
    """Loads a checkpoint's processor, or a text-only model's tokenizer, with left padding as generation requires."""
    import transformers

    auto_class = transformers.AutoTokenizer if _family(directory).text_only else transformers.AutoProcessor
    processor: ProcessorMixin | PreTrainedTokenizerBase = auto_class.from_pretrained(directory, padding_side="left")
    return processor


def _family(directory: Path) -> Family:
    return family_of(read_model_config(directory)["model_type"])
