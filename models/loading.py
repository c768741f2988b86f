"""How is a checkpoint loaded? Resolving its name, loading the model, and its processor."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.checkpoint import Checkpoint, kept_float32, open_checkpoint, usual_dtype
from models.families import Family, family_of
from models.foreign import CONFIG_FILE
from models.hub import CODE_FILES, parse_repository, snapshot
from models.layout import cannot_build, read_model_config
from models.processor import check_files, check_picture_token, check_tokenizer
from models.shards import DTYPES
from models.tying import is_tied

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

CHECKPOINT_FILES = ["*.json", "*.safetensors", "*.txt", "*.jinja", "*.model"]
"""Files fetched from a hub checkpoint: never pickled weights, never code."""
CHECKPOINT_IGNORED = [*CODE_FILES, "*/*.safetensors", "*/*.json"]
"""Files not fetched: training checkpoints that some repositories keep in folders."""

EXPECTED = "a folder or a hub id such as Qwen/Qwen2.5-VL-3B-Instruct"
"""What names a checkpoint."""
PEFT_PREFIX = "base_model.model."
DTYPE_ARGUMENT = {"help": "dtype of the model: auto (as stored), float32 or bfloat16"}
DEFAULT_ATTENTION = "sdpa"
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
    if not name:
        raise ValueError(f"the checkpoint's name is empty; expected {EXPECTED}")
    if path.is_dir():
        return path
    repository = parse_repository(name)
    if repository is None:
        if path.exists():
            holder = path.parent if path.parent.name else path.absolute().parent
            raise ValueError(f"checkpoint {name} is a file; expected the folder that holds it, {holder}")
        raise ValueError(f"checkpoint {name} does not exist; expected {EXPECTED}")
    return snapshot(repository, patterns=[CONFIG_FILE] if config_only else CHECKPOINT_FILES, ignored=CHECKPOINT_IGNORED)


def check_checkpoint(name: str) -> None:
    """Refuses what is plainly no checkpoint, in a moment; neither the hub nor its cache is asked.

    Raises:
        ValueError: where the name is neither a folder with a checkpoint nor a possible hub id.
    """
    path = Path(name)
    if not name or not path.is_dir():
        if parse_repository(name) is None:
            local_checkpoint(name)  # says what is wrong
    elif not (path / CONFIG_FILE).is_file():
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

    Args:
        directory: the checkpoint.
        dtype: dtype of the model; `auto` keeps the stored one. Tensors that the family keeps in fp32 among others
            (`Family.float32`) stay in fp32.
        attn_implementation: sdpa if None. An attention that the checkpoint's `config.json` names is ignored:
            Transformers 5.23 would prefer it to the argument.

    Raises:
        ValueError: if Transformers rejects the configuration, if the checkpoint has no weights for a parameter, which
            Transformers would initialise at random, or if the attention is not available here.
    """
    import torch
    import transformers

    family = _family(directory)
    stored = open_checkpoint(directory) if family.float32 else None
    if stored is not None and dtype == "auto":
        dtype = getattr(torch, DTYPES[usual_dtype(stored)][0])  # Transformers may find that of a tensor in fp32
    auto_class = getattr(transformers, family.auto_class)
    asked = attn_implementation or DEFAULT_ATTENTION
    try:
        config = transformers.AutoConfig.from_pretrained(directory)
    except Exception as error:  # of any kind, as in `shapes_from_config`
        raise cannot_build(str(directory / CONFIG_FILE), error) from error
    # Where a family is tied by default, Transformers compares the two weights. Under ZeRO-3 (5.23) each process holds
    # a part of them or nothing, and an untied head would be taken for the embedding matrix.
    config.tie_word_embeddings = is_tied(read_model_config(directory))
    config._attn_implementation = asked  # also of the decoder and the tower (read in 5.23)
    for part in family.idle_parts:  # such a part refuses to be built with anything else
        if getattr(config, part, None) is not None:
            getattr(config, part)._attn_implementation = "eager"
    model: PreTrainedModel
    try:
        model, found = auto_class.from_pretrained(
            directory, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True
        )
    except ImportError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"attn_implementation {asked!r} is not available here: {reason}") from error
    if missing := sorted(found["missing_keys"]):
        raise ValueError(f"{directory}: has no weights for {missing[0]!r} ({len(missing)} such); it is incomplete")
    if others := sorted(attentions_of(model) - {asked}):
        raise ValueError(f"attn_implementation {asked!r} was asked for, but {others[0]!r} would run; name that instead")
    if stored is not None:  # an engine that partitions parameters while they are loaded puts them back itself
        put_back_float32(model, stored, chosen=lambda parameter: not hasattr(parameter, "ds_tensor"))
    return model


def put_back_float32(
    model: "torch.nn.Module",
    checkpoint: Checkpoint,
    *,
    chosen: "Callable[[torch.nn.Parameter], bool]" = lambda parameter: True,
) -> None:
    """Replaces what was rounded of the tensors that a family keeps in fp32 by the checkpoint's own values.

    Transformers 5.23 loads all tensors in one dtype, and DeepSpeed 0.19.8 casts all parameters to the engine's. A
    parameter that ZeRO-3 has partitioned gets this process's part.

    Args:
        model: the model, wrapped by an engine or PEFT or not.
        checkpoint: the checkpoint that it was loaded from.
        chosen: which parameters are put back.
    """
    import torch

    wanted = set(kept_float32(checkpoint))
    for name, parameter in model.named_parameters() if wanted else ():
        canonical = name.removeprefix(PEFT_PREFIX)
        if canonical in wanted and parameter.dtype != torch.float32 and chosen(parameter):
            _put(parameter, checkpoint.tensor(canonical))


def _put(parameter: Any, value: "torch.Tensor") -> None:
    import torch

    shard = getattr(parameter, "ds_tensor", None)
    if shard is None:
        parameter.data = value.to(parameter.device)
        return
    # Read in DeepSpeed 0.19.8: a partitioned parameter is gathered in the dtype of its parts.
    padded = torch.zeros(shard.numel() * parameter.ds_zero_partition_world_size)
    padded[: value.numel()] = value.flatten()
    first = shard.numel() * parameter.ds_zero_partition_rank
    shard.data = padded[first : first + shard.numel()].clone().to(shard.device)
    parameter.data = value.to(parameter.device) if parameter.numel() else torch.empty(0, device=parameter.device)


def attentions_of(model: "PreTrainedModel") -> set[str]:
    """Returns the attention implementations that the parts of a model run with, those without a choice aside."""
    from transformers import PreTrainedModel

    parts = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    fixed = [getattr(model.config, name, None) for name in family_of(model.config.model_type).idle_parts]
    return {str(part.config._attn_implementation) for part in parts if all(part.config is not one for one in fixed)}


def load_processor(directory: Path) -> "ProcessorMixin | PreTrainedTokenizerBase":
    """Loads a checkpoint's processor, or a text-only model's tokenizer, with left padding as generation requires.

    Raises:
        ValueError: if files are missing or damaged, or if the tokenizer loses text or does not fit the model.
    """
    import transformers

    config, family = read_model_config(directory), _family(directory)
    check_files(directory, family)
    auto_class = transformers.AutoTokenizer if family.text_only else transformers.AutoProcessor
    processor: Any
    try:
        processor = auto_class.from_pretrained(directory, padding_side="left")
    except Exception as error:  # damaged files lead to any kind; tokenizers raises Exception itself
        reason = (str(error).splitlines() or [""])[0]
        if not isinstance(error, OSError | ValueError) or not reason:
            reason = f"{type(error).__name__}: {reason}"
        raise ValueError(f"{directory}: its tokenizer or processor cannot be loaded ({reason})") from error
    check_tokenizer(processor if family.text_only else processor.tokenizer, directory, config, family)
    if not family.text_only:
        check_picture_token(processor, directory, config)
    checked: ProcessorMixin | PreTrainedTokenizerBase = processor
    return checked


def _family(directory: Path) -> Family:
    return family_of(read_model_config(directory)["model_type"])
