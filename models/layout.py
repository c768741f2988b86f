"""What is this model made of? Names, shapes and places of its parameters, from `config.json` alone.

The model is built on the meta device: no weights are read and no memory is taken, so a 7B model costs what a pocket
model costs.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from models.families import Family, family_of
from models.foreign import CONFIG_FILE, explain_folder
from models.shards import parse_json_object

WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of an element, by the name of its dtype."""


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One parameter by its canonical name, and where it stands."""

    name: str
    shape: tuple[int, ...]
    region: str
    """`llm` for a decoder layer, or vision, projector, embed, norm, head."""
    index: int | None
    """Number of the decoder layer or vision block, where it stands in one."""
    rest: str
    """The name inside its layer or region."""

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """All parameters of one model, each once."""

    family: Family
    num_layers: int
    num_vision_blocks: int
    tied: bool
    """True where the output head is the embedding matrix."""
    parameters: dict[str, Parameter] = field(repr=False)

    def __iter__(self) -> Iterator[Parameter]:
        return iter(self.parameters.values())

    @property
    def num_elements(self) -> int:
        return sum(parameter.num_elements for parameter in self)


def layout_of(path: Path) -> Layout:
    """Reads the layout from a `config.json`, or from the folder that holds one.

    Raises:
        ValueError: where the file is missing, malformed, of an unsupported family, or names parameters that fit no
            region.
    """
    return layout_from_config(read_model_config(path))


def read_model_config(path: Path) -> dict[str, Any]:
    """Reads a model's `config.json`, or the one in the given folder.

    Raises:
        ValueError: where it is missing, malformed, of an unsupported family, or describes quantised weights.
    """
    instead = explain_folder(path) if path.is_dir() else None
    path = path / CONFIG_FILE if path.is_dir() else path
    if not path.is_file():
        raise ValueError(instead or f"{path} does not exist; expected a checkpoint folder with a {CONFIG_FILE}")
    config = parse_json_object(path.read_bytes(), str(path))
    if "model_type" not in config:
        raise ValueError(f"{path} names no model_type; expected the configuration of a Transformers model")
    try:
        family_of(config["model_type"])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if config.get("quantization_config"):
        method = config["quantization_config"]
        raise ValueError(
            f"{path}: describes quantised weights (quantization_config, "
            f"{method.get('quant_method') if isinstance(method, dict) else method}); "
            "expected the checkpoint they were made from"
        )
    return config


def config_value(config: dict[str, Any], *keys: str) -> Any:
    """Returns a decoder's or tower's value: nested as Transformers 5 writes it, or flat as published ones have it."""
    *sections, key = keys
    for section in sections:
        nested = config.get(section)
        config = nested if isinstance(nested, dict) and key in nested else config
    return config.get(key)


def is_tied(config: dict[str, Any]) -> bool:
    """True where the output head is the embedding matrix.

    As Transformers 5.23 decides: the model's or its decoder's configuration says so; one that says nothing is untied.
    """
    text = config.get("text_config")
    return any(part.get("tie_word_embeddings") is True for part in (config, text) if isinstance(part, dict))


def layout_from_config(config: dict[str, Any]) -> Layout:
    """Returns the layout of the model a configuration describes."""
    family = family_of(config["model_type"])
    import torch
    import transformers
    from transformers.modeling_utils import set_zero3_state

    values = {key: value for key, value in config.items() if key not in ("model_type", "transformers_version")}
    parsed = transformers.AutoConfig.for_model(family.model_type, **values)
    # While ZeRO-3 is on, Transformers would cut the model over the processes, and its tensors would have no shape left;
    # within set_zero3_state (read in 5.23) it takes that for done.
    with torch.device("meta"), set_zero3_state():
        model = getattr(transformers, family.auto_class).from_config(parsed, dtype=torch.bfloat16)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}  # tied ones once
    return layout_from_shapes(family, shapes, tied=bool(parsed.tie_word_embeddings))


def layout_from_shapes(family: Family, shapes: dict[str, tuple[int, ...]], *, tied: bool) -> Layout:
    """Places every parameter of the given canonical names and shapes."""
    parameters = {}
    for name, shape in shapes.items():
        region, index, rest = family.place(name)
        parameters[name] = Parameter(name=name, shape=shape, region=region, index=index, rest=rest)
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
