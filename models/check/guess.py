"""What would a record of this family need? Groups of parameters of a model that has none, with guessed regions.

The groups are exact: they come from the model that Transformers builds on the meta device. The regions are guesses from
names, to be checked by whoever writes the record.
"""

import json
import re
from dataclasses import dataclass
from typing import Any

from models.families import FAMILIES
from models.layout import shapes_from_config
from tracking.command import did_you_mean

AUTO_CLASSES = ("AutoModelForImageTextToText", "AutoModelForCausalLM")
VISION_WORDS = ("visual", "vision", "vit", "image_encoder", "patch")
PROJECTOR_WORDS = ("merger", "projector", "connector", "adapter")
UNKNOWN_CLASS = "Unrecognized configuration class"
"""Part of the message of an auto class that builds no model of a type (read in Transformers 5.23)."""
LAYER_PARTS = ("self_attn.", "input_layernorm.", "mlp.", "post_attention_layernorm.")
"""What `.attn` and `.mlp` have in most families."""
NUMBER = re.compile(r"\.\d+\.")


@dataclass(frozen=True, kw_only=True)
class Guess:
    """Groups of parameters: a stack of layers, or parameters outside of stacks."""

    prefix: str
    region: str
    num_tensors: int
    num_layers: int = 0
    """Length of the stack; 0 outside of stacks."""
    unknown_parts: tuple[str, ...] = ()
    """Of decoder layers: first parts of names that most families do not have."""

    def __str__(self) -> str:
        size = f"{self.num_layers} layers, " if self.num_layers else ""
        parts = f"; to be placed in .attn or .mlp: {', '.join(self.unknown_parts)}" if self.unknown_parts else ""
        return f"  {self.region:<12}{self.prefix:<48} {size}{self.num_tensors} tensors{parts}"


def names_of(config: dict[str, Any]) -> tuple[str, list[str]]:
    """Returns the class of Transformers that builds a model, and the names of its parameters.

    Raises:
        ValueError: if neither class knows the configuration's model type, or the one that does cannot build the model.
    """
    errors = []
    for auto_class in AUTO_CLASSES:
        try:
            shapes, _ = shapes_from_config(config, auto_class=auto_class)
        except ValueError as error:
            errors.append(error)
            continue
        return auto_class, list(shapes)
    unknown = unknown_type(config["model_type"])
    if unknown is not None:
        raise ValueError(unknown)
    known = next((error for error in errors if UNKNOWN_CLASS not in str(error)), errors[-1])
    raise ValueError(str(known).splitlines()[-1]) from known


def unknown_type(model_type: str) -> str | None:
    """Returns why no class of Transformers that is tried here builds a model type; None if one does."""
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    )

    refused = f"Transformers builds no model of the type {model_type!r}"
    if model_type not in CONFIG_MAPPING:
        lower = model_type.lower()
        longer = [name for name in FAMILIES if name.startswith(lower)]
        return f"{refused}{did_you_mean(lower, [lower] if lower in CONFIG_MAPPING else longer or FAMILIES)}"
    if model_type not in {**MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, **MODEL_FOR_CAUSAL_LM_MAPPING_NAMES}:
        return f"{refused} with {' or '.join(AUTO_CLASSES)}; expected a decoder that generates text"
    return None


def guess_groups(names: list[str]) -> list[Guess]:
    """Returns the groups of parameters: stacks of layers first, then the others by their prefix."""
    stacks: dict[str, list[str]] = {}
    single: list[str] = []
    for name in names:
        match = NUMBER.search(name)
        if match is None:
            single.append(name)
        else:
            stacks.setdefault(name[: match.start() + 1], []).append(name)
    decoder = max(
        (prefix for prefix in stacks if not _has(prefix, (*VISION_WORDS, *PROJECTOR_WORDS))),
        key=lambda prefix: len(stacks[prefix]),
        default=None,
    )
    merged: dict[str, Guess] = {}
    for prefix, members in stacks.items():
        rests = {member.removeprefix(prefix).partition(".")[2] for member in members}
        parts = tuple(sorted({rest.partition(".")[0] for rest in rests if not rest.startswith(LAYER_PARTS)}))
        region = "llm" if prefix == decoder else _region(prefix)
        count = len({member.removeprefix(prefix).partition(".")[0] for member in members})
        merged[prefix] = Guess(
            prefix=prefix,
            region=region,
            num_tensors=len(members),
            num_layers=count,
            unknown_parts=parts if region == "llm" else (),
        )
    for name in single:
        prefix = name.rpartition(".")[0] + "." if name.endswith((".weight", ".bias")) else name
        known = merged.get(prefix)
        count = 1 if known is None else known.num_tensors + 1
        merged[prefix] = Guess(prefix=prefix, region=_region(name), num_tensors=count)
    return list(merged.values())


def record_text(config: dict[str, Any], auto_class: str, groups: list[Guess]) -> str:
    """Returns a record to start from, as Python source."""
    model_type = str(config["model_type"])
    layers = next((group.prefix for group in groups if group.region == "llm"), "?")
    tower = next((group.prefix for group in groups if group.region == "vision" and group.num_layers), None)
    regions = "".join(
        f"        ({group.region!r}, {group.prefix!r}),\n".replace("'", '"')
        for group in groups
        if group.prefix not in (layers, tower)
    )
    tower_config = config.get("vision_config")
    keys = "" if isinstance(config.get("text_config"), dict) else '    num_layers_key=("num_hidden_layers",),\n'
    if tower is None:
        keys += "    num_vision_blocks_key=None,\n    picture_fields=(),\n"
    elif isinstance(tower_config, dict) and "depth" not in tower_config:
        keys += '    num_vision_blocks_key=("vision_config", "num_hidden_layers"),\n'
    if "mrope_section" not in json.dumps(config):
        keys += "    position_sections=1,\n"
    has_head = any(group.region == "head" for group in groups)
    if not has_head and any(group.region == "?" for group in groups):
        regions += "        # no head was recognised: it is one of those marked ?, or tied to the embeddings\n"
    elif not has_head:
        regions += '        ("head", "lm_head."),  # tied in this configuration\n'
    return (
        f"{model_type.upper()} = Family(\n"
        f'    model_type="{model_type}",\n'
        f'    auto_class="{auto_class}",\n'
        f'    layers="{layers}",\n'
        f"    vision_blocks={'None' if tower is None else chr(34) + tower + chr(34)},\n"
        f"    regions=(\n{regions}    ),\n"
        "    spellings=(),  # (prefix in files, prefix in memory), where they differ\n"
        f"{keys})"
    )


def _region(name: str) -> str:
    lowered = name.lower()
    if _has(lowered, PROJECTOR_WORDS):
        return "projector"
    if _has(lowered, VISION_WORDS):
        return "vision"
    if "embed" in lowered or ".wte" in lowered:
        return "embed"
    if "lm_head" in lowered or lowered.startswith("head"):
        return "head"
    return "norm" if "norm" in lowered else "?"


def _has(name: str, words: tuple[str, ...]) -> bool:
    return any(word in name.lower() for word in words)
