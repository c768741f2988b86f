"""What are a model's parameters? Their names, shapes and positions, from `config.json` alone; persistent buffers too.

The model is built on the meta device: no weights are read and no memory is allocated, so a 7B model costs no more than
a pocket model.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.families import Family, family_of
from models.foreign import CONFIG_FILE, explain_folder
from models.shards import parse_json_object, read_header
from models.tying import as_loaded

if TYPE_CHECKING:
    import torch

WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes per element, by dtype name."""


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One parameter or persistent buffer: its canonical name and its position in the model."""

    name: str
    shape: tuple[int, ...]
    region: str
    """`llm` for a decoder layer, or vision, projector, embed, norm, head; mtp in the files of some families."""
    index: int | None
    """Number of the decoder layer or vision block; None outside of them."""
    rest: str
    """The name within its layer or region."""
    carried: bool = False
    """True for a tensor of a checkpoint's files that no model has in memory."""
    buffer: bool = False
    """True for a persistent buffer: stored in the files, part of the model, and trained by no optimizer."""

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """All parameters and persistent buffers of one model, each once."""

    family: Family
    num_layers: int
    num_vision_blocks: int
    tied: bool
    """True if the output head is the embedding matrix."""
    parameters: dict[str, Parameter] = field(repr=False)

    def __iter__(self) -> Iterator[Parameter]:
        return iter(self.parameters.values())

    @property
    def num_elements(self) -> int:
        return sum(parameter.num_elements for parameter in self if not parameter.buffer)

    @property
    def carried(self) -> tuple[str, ...]:
        """The tensors of a checkpoint's files that Transformers does not load: no model has them in memory."""
        return tuple(parameter.name for parameter in self if parameter.carried)

    @property
    def layer_kinds(self) -> tuple[str, ...]:
        """The kind of each decoder layer, as `layer_types` names it; empty words where all layers are of one kind."""
        rests: dict[int, list[str]] = {}
        for parameter in self:
            if parameter.region == "llm":
                assert parameter.index is not None
                rests.setdefault(parameter.index, []).append(parameter.rest)
        return tuple(self.family.kind_of(rests[index]) for index in sorted(rests))


def layout_of(path: Path) -> Layout:
    """Reads the layout from a `config.json`, or from a folder with one.

    A folder's layout also has the tensors of its files that Transformers does not load (`Family.carried`).

    Raises:
        ValueError: if the file is missing, malformed, of an unsupported family, or describes parameters that fit no
            region.
    """
    config = read_model_config(path)
    source = path / CONFIG_FILE if path.is_dir() else path
    layout, family = layout_from_config(config, source=str(source)), family_of(config["model_type"])
    return _with_carried(layout, path, config) if (family.carried or family.unread_parts) and path.is_dir() else layout


def _with_carried(layout: Layout, directory: Path, config: dict[str, Any]) -> Layout:
    stored = (tensor for file in sorted(directory.glob("*.safetensors")) for tensor in read_header(file).tensors)
    shapes = {layout.family.canonical(tensor.name): tensor.shape for tensor in stored}
    shapes = {name: shape for name, shape in shapes.items() if is_carried(config, layout.family, name)}
    added = layout_from_shapes(layout.family, shapes, tied=layout.tied, config=config).parameters
    return replace(layout, parameters={**layout.parameters, **added})


def is_carried(config: dict[str, Any], family: Family, name: str) -> bool:
    """True for a tensor of a checkpoint's files that Transformers does not load; false for a name without a place."""
    try:
        region, index, rest = family.place(name)
    except ValueError:
        return False
    first_reader = first_reading_layer(config, family) if family.unread_parts else None
    is_reader = region == "llm" and index is not None and first_reader is not None and index >= first_reader
    return region in family.carried or (is_reader and rest.startswith(family.unread_parts))


def read_model_config(path: Path) -> dict[str, Any]:
    """Reads a model's `config.json`, or the one in the given folder.

    Where the flags of a folder's configuration contradict each other about a tied head, its weights decide
    (`models/tying.py`).

    Raises:
        ValueError: if it is missing, malformed, of an unsupported family, or describes quantised weights.
    """
    instead = explain_folder(path) if path.is_dir() else None
    path = path / CONFIG_FILE if path.is_dir() else path
    if not path.is_file():
        raise ValueError(instead or f"{path} does not exist; expected a checkpoint folder with a {CONFIG_FILE}")
    config = parse_json_object(path.read_bytes(), str(path))
    if "model_type" not in config:
        raise ValueError(f"{path} has no model_type; expected the configuration of a Transformers model")
    try:
        _check_decoder(config, family_of(config["model_type"]))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if config.get("quantization_config"):
        method = config["quantization_config"]
        raise ValueError(
            f"{path}: describes quantised weights (quantization_config, "
            f"{method.get('quant_method') if isinstance(method, dict) else method}); "
            "expected the checkpoint they were made from"
        )
    return as_loaded(config, path.parent)


def _check_decoder(config: dict[str, Any], family: Family) -> None:
    """Rejects a decoder that the family's record does not describe; without a type, it is the family's first."""
    parts = [key for key in ("text_config", "vision_config") if isinstance(config.get(key), dict)]
    if family.text_only and parts:
        raise ValueError(
            f"model_type {family.model_type!r} is a text-only model, but {parts[0]} describes a part of a "
            "vision-language model; expected the model_type of that model, such as qwen2_5_vl"
        )
    decoder = config.get("text_config")
    found = decoder.get("model_type") if isinstance(decoder, dict) else None
    if family.decoders and found is not None and found not in family.decoders:
        raise ValueError(
            f"its decoder is a {found!r} (text_config.model_type); for a {family.model_type}, supported are "
            f"{', '.join(family.decoders)}"
        )


def config_value(config: dict[str, Any], *keys: str) -> Any:
    """Returns a value of the decoder or tower from a nested (Transformers 5) or flat (published checkpoints) config."""
    *sections, key = keys
    for section in sections:
        nested = config.get(section)
        config = nested if isinstance(nested, dict) and key in nested else config
    return config.get(key)


def head_size(config: dict[str, Any]) -> int:
    """Returns the width of the decoder's attention heads: as named, or the hidden size divided among them."""
    named = config_value(config, "text_config", "head_dim")
    if named:
        return int(named)
    hidden, num_heads = (config_value(config, "text_config", key) for key in ("hidden_size", "num_attention_heads"))
    return int(hidden // num_heads)


def layout_from_config(config: dict[str, Any], *, source: str = CONFIG_FILE) -> Layout:
    """Returns the layout of the model that a configuration describes; errors name the source."""
    shapes, tied = shapes_from_config(config, source=source)
    return layout_from_shapes(family_of(config["model_type"]), shapes, tied=tied)


def shapes_from_config(
    config: dict[str, Any], *, auto_class: str | None = None, source: str = CONFIG_FILE
) -> tuple[dict[str, tuple[int, ...]], bool]:
    """Returns the shape of every parameter of the model that a configuration describes, and whether it ties its head.

    Args:
        config: the content of a `config.json`.
        auto_class: the class of Transformers that builds the model; by default the one its family's record names.
        source: where the configuration was read, for the error.

    Raises:
        ValueError: if Transformers cannot build the model.
    """
    builder = auto_class or family_of(config["model_type"]).auto_class
    try:
        shapes, tied = _shapes_from_text(json.dumps(config), builder)
    except Exception as error:  # a wrong value leads to any kind of error, at the place that first uses it
        raise cannot_build(source, error) from error
    return dict(shapes), tied


@lru_cache(maxsize=32)
def _shapes_from_text(text: str, builder: str) -> tuple[dict[str, tuple[int, ...]], bool]:
    """Builds the model of a configuration on the meta device; a command asks for the same one several times."""
    import torch
    import transformers
    from transformers.modeling_utils import set_zero3_state

    config = json.loads(text)
    values = {key: value for key, value in config.items() if key not in ("model_type", "transformers_version")}
    parsed = transformers.AutoConfig.for_model(config["model_type"], **values)
    # Under ZeRO-3, Transformers would partition the model over the processes, and its tensors would lose their shapes;
    # within set_zero3_state (read in 5.23) it assumes that this has already happened.
    with torch.device("meta"), set_zero3_state():
        # The names do not depend on the attention; the one that the configuration names may not be installed.
        model = getattr(transformers, builder).from_config(parsed, dtype=torch.bfloat16, attn_implementation="eager")
    shapes = {name: tuple(tensor.shape) for name, tensor in stored_tensors(model).items()}
    return shapes, bool(parsed.tie_word_embeddings)


def cannot_build(source: str, error: Exception) -> ValueError:
    """Returns the error for a configuration that Transformers rejects, with the line of its message that says why."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    # Errors of a configuration's validation begin with a heading that ends with a colon.
    reason = lines[-1] if lines[0].endswith(":") else lines[0]
    named = type(error).__module__ != "builtins" or isinstance(error, ValueError)
    reason = reason if named else f"{type(error).__name__}: {reason}"
    return ValueError(f"{source}: Transformers cannot build the model that it describes ({reason})")


def stored_tensors(model: "torch.nn.Module") -> dict[str, "torch.Tensor"]:
    """Returns the tensors of a model that a checkpoint stores: parameters, tied ones once, and persistent buffers."""
    parameters = dict(model.named_parameters())
    stored = model.state_dict(keep_vars=True)
    return parameters | {name: buffer for name, buffer in model.named_buffers() if name in stored}


def layer_kind(config: dict[str, Any], family: Family, index: int) -> str:
    """Returns the kind of a decoder layer; layers of one kind have the same tensors and compute alike.

    It is empty where the configuration describes one kind only.
    """
    types = config_value(config, *family.num_layers_key[:-1], "layer_types")
    kind = str(types[index]) if isinstance(types, list) and index < len(types) else ""
    first_reader = first_reading_layer(config, family)
    return kind if first_reader is None or index < first_reader else f"{kind} with keys and values of an earlier layer"


def first_reading_layer(config: dict[str, Any], family: Family) -> int | None:
    """Returns the first of the last decoder layers that read the keys and values of earlier ones; None without any."""
    section = family.num_layers_key[:-1]
    count, num_readers = (config_value(config, *section, key) for key in ("num_hidden_layers", "num_kv_shared_layers"))
    return count - num_readers if type(count) is int and type(num_readers) is int and num_readers else None


def layout_from_shapes(
    family: Family, shapes: dict[str, tuple[int, ...]], *, tied: bool, config: dict[str, Any] | None = None
) -> Layout:
    """Builds the layout of tensors with the given canonical names and shapes.

    Args:
        family: the record of their family.
        shapes: name -> shape.
        tied: whether the output head is the embedding matrix.
        config: the configuration, if the tensors are those of files, of which Transformers may not load some.
    """
    parameters = {}
    for name, shape in shapes.items():
        region, index, rest = family.place(name)
        parameters[name] = Parameter(
            name=name,
            shape=shape,
            region=region,
            index=index,
            rest=rest,
            buffer=family.is_buffer(name),
            carried=config is not None and is_carried(config, family, name),
        )
    count = {
        region: 1
        + max((p.index for p in parameters.values() if p.region == region and p.index is not None), default=-1)
        for region in ("llm", "vision")
    }
    return Layout(
        family=family,
        num_layers=count["llm"],
        num_vision_blocks=count["vision"],
        tied=tied,
        parameters=parameters,
    )
