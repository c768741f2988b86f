"""Where do the parts of each model family stand? One frozen record of name patterns a family, and nothing guessed.

Canonical parameter names are the ones Transformers 5 holds in memory; `spellings` maps the prefixes found in checkpoint
files to them (longest prefix first).
"""

import re
from dataclasses import dataclass

from tracking.command import did_you_mean

ATTENTION_PARTS = ("self_attn.", "input_layernorm.")
"""A layer's attention with the norm that feeds it."""
MLP_PARTS = ("mlp.", "post_attention_layernorm.")
"""A layer's MLP with the norm that feeds it."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """Name patterns of one architecture; every parameter matches exactly one of them."""

    model_type: str
    auto_class: str
    """The class of Transformers that loads it."""
    layers: str
    """Prefix of the decoder layers, before the layer number."""
    vision_blocks: str | None
    """Prefix of the vision tower's blocks, before the block number; None without a tower."""
    regions: tuple[tuple[str, str], ...]
    """(region, prefix) for everything else."""
    spellings: tuple[tuple[str, str], ...]
    """(prefix in files, canonical prefix)."""
    num_layers_key: tuple[str, ...] = ("text_config", "num_hidden_layers")
    num_vision_blocks_key: tuple[str, ...] = ("vision_config", "depth")

    def canonical(self, name: str) -> str:
        """Returns the canonical spelling of a parameter's name in a file."""
        for prefix, canonical_prefix in self.spellings:
            if name.startswith(prefix):
                return canonical_prefix + name.removeprefix(prefix)
        return name

    def place(self, name: str) -> tuple[str, int | None, str]:
        """Returns (region, index, rest) of a canonical name; the region of a decoder layer is `llm`.

        Raises:
            ValueError: where the name fits none of the family's patterns.
        """
        for region, prefix in (("llm", self.layers), ("vision", self.vision_blocks)):
            if prefix and (match := re.match(re.escape(prefix) + r"(\d+)\.(.+)$", name)):
                return region, int(match.group(1)), match.group(2)
        for region, prefix in self.regions:
            if name.startswith(prefix):
                return region, None, name.removeprefix(prefix)
        raise ValueError(
            f"parameter {name!r} fits no decoder layer and no region of the family {self.model_type}; "
            "expected every parameter to belong to one (models/families.py)"
        )


_VLM_SPELLINGS = (
    ("model.language_model.", "model.language_model."),
    ("model.visual.", "model.visual."),
    ("visual.", "model.visual."),
    ("model.", "model.language_model."),
)

QWEN2_5_VL = Family(
    model_type="qwen2_5_vl",
    auto_class="AutoModelForImageTextToText",
    layers="model.language_model.layers.",
    vision_blocks="model.visual.blocks.",
    regions=(
        ("vision", "model.visual.patch_embed."),
        ("projector", "model.visual.merger."),
        ("embed", "model.language_model.embed_tokens."),
        ("norm", "model.language_model.norm."),
        ("head", "lm_head."),
    ),
    spellings=_VLM_SPELLINGS,
)

QWEN2_VL = Family(
    model_type="qwen2_vl",
    auto_class=QWEN2_5_VL.auto_class,
    layers=QWEN2_5_VL.layers,
    vision_blocks=QWEN2_5_VL.vision_blocks,
    regions=QWEN2_5_VL.regions,
    spellings=_VLM_SPELLINGS,
)

FAMILIES = {family.model_type: family for family in (QWEN2_VL, QWEN2_5_VL)}


def family_of(model_type: str) -> Family:
    """Returns the record of a model type as `config.json` names it."""
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise ValueError(
            f"model_type {model_type!r} is not supported; supported are {', '.join(sorted(FAMILIES))}"
            f"{did_you_mean(str(model_type), FAMILIES)}"
        )
    return FAMILIES[model_type]
