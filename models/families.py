"""Where are the parts of each model family? One frozen record of name patterns per family; nothing is guessed.

Canonical parameter names are the ones Transformers 5 holds in memory; `spellings` maps the prefixes found in checkpoint
files to them (the first match is used, so longer prefixes come before shorter ones).
"""

import re
from dataclasses import dataclass, replace

from tracking.command import did_you_mean


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
    num_vision_blocks_key: tuple[str, ...] | None = ("vision_config", "depth")
    decoder_ties: bool = False
    """True if Transformers ties the head also where only the decoder's part of the configuration says so."""
    tied_by_default: bool = False
    """True if Transformers ties the head where no flag of the configuration says anything."""
    picture_fields: tuple[str, ...] = ("pixel_values", "image_grid_thw")
    """The processor's outputs that hold a prompt's pictures, which the model takes; empty without a tower."""
    position_sections: int = 3
    """Sections of a token's position: 3 for time, height and width (`get_rope_index`), 1 for a plain count."""
    picture_marks: tuple[str, ...] = ()
    """Attributes of the processor that name the tokens it adds before and after a picture's own."""
    attention_parts: tuple[str, ...] = ("self_attn.", "input_layernorm.")
    """Beginnings of the names, within a layer, of its attention with its norms."""
    mlp_parts: tuple[str, ...] = ("mlp.", "post_attention_layernorm.")
    """The same of its MLP with its norms."""
    buffers: tuple[str, ...] = ()
    """Last parts of the names of persistent buffers: tensors in the files that no optimizer trains."""
    optional_regions: tuple[str, ...] = ()
    """Regions that not every model of the family has."""
    idle_regions: tuple[str, ...] = ()
    """Regions that prompts of text and pictures never reach. They are frozen in every run."""
    eager_parts: tuple[str, ...] = ()
    """Parts of the configuration whose attention has one implementation, `eager`."""
    token_fields: tuple[str, ...] = ()
    """The processor's outputs with an entry per token that the model needs beside ids, mask and positions."""
    plain_layers: bool = True
    """True if a decoder layer is x + attention(x) and then h + MLP(h), of its input, mask and positions alone."""

    @property
    def text_only(self) -> bool:
        """True for a model without a vision tower, which uses a tokenizer instead of a processor."""
        return self.vision_blocks is None

    @property
    def parts(self) -> dict[str, tuple[str, ...]]:
        """The parts of a decoder layer that an expression can name -> beginnings of their names within the layer."""
        return {"attn": self.attention_parts, "mlp": self.mlp_parts}

    @property
    def region_names(self) -> tuple[str, ...]:
        """The regions outside the decoder layers."""
        named = dict.fromkeys(region for region, _ in self.regions)
        return tuple(named) if self.text_only else tuple(dict.fromkeys(("vision", *named)))

    def is_buffer(self, name: str) -> bool:
        """Returns whether a name is that of a persistent buffer, which is stored and never trained."""
        return name.rpartition(".")[2] in self.buffers

    def canonical(self, name: str) -> str:
        """Returns the canonical spelling of a parameter's name in a file."""
        for prefix, canonical_prefix in self.spellings:
            if name.startswith(prefix):
                return canonical_prefix + name.removeprefix(prefix)
        return name

    def place(self, name: str) -> tuple[str, int | None, str]:
        """Returns (region, index, rest) of a canonical name; the region of a decoder layer is `llm`.

        Raises:
            ValueError: if the name matches none of the family's patterns.
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
    ("model.language_model.model.", "model.language_model."),  # Qwen3-VL saved from zero.Init, see below
    ("model.language_model.", "model.language_model."),
    ("model.visual.", "model.visual."),
    ("visual.", "model.visual."),
    ("model.model.", "model.language_model."),
    ("model.", "model.language_model."),
)
"""In memory, on the hub (`model.layers.…`, `visual.…`), and with a doubled prefix.

A model loaded while ZeRO-3 is on (DeepSpeed's zero.Init) is saved by Transformers 5.23 as `model.model.layers.…`
(Qwen2-VL, Qwen2.5-VL) or `model.language_model.model.layers.…` (Qwen3-VL); Transformers can load both.
"""

_VLM_REGIONS = (
    ("vision", "model.visual.patch_embed."),
    ("projector", "model.visual.merger."),
    ("embed", "model.language_model.embed_tokens."),
    ("norm", "model.language_model.norm."),
    ("head", "lm_head."),
)

QWEN2_5_VL = Family(
    model_type="qwen2_5_vl",
    auto_class="AutoModelForImageTextToText",
    layers="model.language_model.layers.",
    vision_blocks="model.visual.blocks.",
    regions=_VLM_REGIONS,
    spellings=_VLM_SPELLINGS,
    decoder_ties=True,
)

QWEN2_VL = replace(QWEN2_5_VL, model_type="qwen2_vl")

QWEN3_VL = replace(
    QWEN2_5_VL,
    model_type="qwen3_vl",
    # The deepstack mergers map the output of some vision blocks into the first decoder layers, as the merger maps the
    # last block's output to the embeddings; all of them belong to the projector.
    regions=(
        ("vision", "model.visual.pos_embed."),
        ("projector", "model.visual.deepstack_merger_list."),
        *_VLM_REGIONS,
    ),
    decoder_ties=False,
)

QWEN2 = Family(
    model_type="qwen2",  # also Qwen2.5's text models
    auto_class="AutoModelForCausalLM",
    layers="model.layers.",
    vision_blocks=None,
    regions=(("embed", "model.embed_tokens."), ("norm", "model.norm."), ("head", "lm_head.")),
    spellings=(),
    num_layers_key=("num_hidden_layers",),
    num_vision_blocks_key=None,
    picture_fields=(),
    position_sections=1,
)

GEMMA4 = Family(
    model_type="gemma4",  # dense
    auto_class="AutoModelForImageTextToText",
    layers="model.language_model.layers.",
    vision_blocks="model.vision_tower.encoder.layers.",
    regions=(
        ("vision", "model.vision_tower.patch_embedder."),
        ("vision", "model.vision_tower.std_"),
        ("projector", "model.embed_vision."),
        ("embed", "model.language_model.embed_tokens."),
        # Per-layer embeddings: the inputs of all decoder layers beside the hidden states, packed into single tensors.
        ("ple", "model.language_model.embed_tokens_per_layer."),
        ("ple", "model.language_model.per_layer_model_projection."),
        ("ple", "model.language_model.per_layer_projection_norm."),
        ("norm", "model.language_model.norm."),
        ("head", "lm_head."),
        ("audio", "model.audio_tower."),
        ("audio", "model.embed_audio."),
    ),
    spellings=(),
    num_vision_blocks_key=("vision_config", "num_hidden_layers"),
    tied_by_default=True,
    picture_fields=("pixel_values", "image_position_ids"),
    position_sections=1,
    picture_marks=("boi_token", "eoi_token"),
    attention_parts=("self_attn.", "input_layernorm.", "post_attention_layernorm."),
    # The rest of a layer counts as its MLP: the term of the per-layer embeddings and the factor of its output.
    mlp_parts=(
        "mlp.",
        "pre_feedforward_layernorm.",
        "post_feedforward_layernorm.",
        "per_layer_input_gate.",
        "per_layer_projection.",
        "post_per_layer_input_norm.",
        "layer_scalar",
    ),
    buffers=("layer_scalar", "input_min", "input_max", "output_min", "output_max", "std_bias", "std_scale"),
    optional_regions=("ple", "audio"),
    idle_regions=("audio",),
    eager_parts=("audio_config",),
    token_fields=("mm_token_type_ids",),
    plain_layers=False,
)

FAMILIES = {family.model_type: family for family in (QWEN2_VL, QWEN2_5_VL, QWEN3_VL, QWEN2, GEMMA4)}


def family_of(model_type: str) -> Family:
    """Returns the record for the `model_type` of a `config.json`."""
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise ValueError(
            f"model_type {model_type!r} is not supported; supported are {', '.join(sorted(FAMILIES))}"
            f"{did_you_mean(str(model_type), FAMILIES)}"
        )
    return FAMILIES[model_type]
