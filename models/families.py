"""Where are the parts of each model family? One frozen record of name patterns per family; nothing is guessed.

Canonical parameter names are the ones Transformers 5 holds in memory; `spellings` maps the prefixes found in checkpoint
files to them (the first match is used, so longer prefixes come before shorter ones).
"""

import re
from collections.abc import Iterable
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
    deepstack_key: tuple[str, ...] | None = None
    """Where the configuration lists the vision blocks whose output is added to the first decoder layers."""
    box_space: str | None = None
    """Coordinates in which its models write boxes, as `BOX_SPACES` of `eval/grading/boxes.py` names them; None for the
    pixels of the image."""
    decoder_ties: bool = False
    """True if Transformers ties the head also where only the decoder's part of the configuration says so."""
    tied_by_default: bool = False
    """True if Transformers ties the head where no flag of the configuration says anything."""
    decoders: tuple[str, ...] = ()
    """Model types of the decoders (`text_config`) that this record describes; empty if the family has only one."""
    picture_fields: tuple[str, ...] = ("pixel_values", "image_grid_thw")
    """The processor's outputs that hold a prompt's pictures, as arguments of the model; empty without a tower."""
    position_sections: int = 3
    """Sections of a token's position: 3 for time, height and width (`get_rope_index`), 1 for a plain count."""
    picture_marks: tuple[str, ...] = ()
    """Attributes of the processor that name the tokens it adds before and after a picture's own."""
    tiled: bool = False
    """True if a picture is cut into tiles of one size, which the tower reads one by one."""
    ungated_saves: int = 2
    """Tensors that the activation of an MLP without a gate saves for its gradient: 2 of quick GELU, 1 of GELU."""
    layer_kinds: tuple[tuple[str, str], ...] = ()
    """(kind as `layer_types` names it, prefix of its own tensors) where decoder layers are of several kinds."""
    float32: tuple[str, ...] = ()
    """Endings of the tensors that files may store in fp32 among others in bf16; they are kept in fp32."""
    carried: tuple[str, ...] = ()
    """Regions that Transformers does not load: no model has them in memory, and nothing trains them."""
    attention_parts: tuple[str, ...] = ("self_attn.", "linear_attn.", "input_layernorm.")
    """Beginnings of the names, within a layer, of its attention, of either kind, with its norms."""
    mlp_parts: tuple[str, ...] = ("mlp.", "post_attention_layernorm.")
    """The same of its MLP with its norms."""
    buffers: tuple[str, ...] = ()
    """Last parts of the names of persistent buffers: tensors in the files that no optimizer trains."""
    unread_parts: tuple[str, ...] = ()
    """Beginnings of the names, within a layer, of tensors that files may have although the layer reads those of an
    earlier one. Transformers does not load them; they are carried."""
    optional_regions: tuple[str, ...] = ()
    """Regions that not every model of the family has."""
    idle_regions: tuple[str, ...] = ()
    """Regions that prompts of text and pictures never reach. They are frozen in every run."""
    idle_parts: tuple[str, ...] = ()
    """Parts of the configuration that describe idle regions. Their attention has one implementation, `eager`."""
    token_fields: tuple[str, ...] = ()
    """The processor's outputs with an entry per token that the model needs beside ids, mask and positions."""
    vllm: bool = True
    """False if replies by vLLM are not supported."""
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

    def keeps_float32(self, name: str) -> bool:
        """True for a tensor whose fp32 values must not be rounded to the dtype of the others."""
        return name.endswith(self.float32) if self.float32 else False

    def kind_of(self, rests: Iterable[str]) -> str:
        """Returns the kind of the decoder layer that has tensors of these names; empty if the family has one kind."""
        names = tuple(rests)
        return next((kind for kind, prefix in self.layer_kinds if any(name.startswith(prefix) for name in names)), "")

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
    box_space="resized",  # pixels of the image as the processor resizes it (QwenLM/Qwen3-VL, issues 676, 866 and 1486)
    decoder_ties=True,
)

QWEN2_VL = replace(
    QWEN2_5_VL,
    model_type="qwen2_vl",
    box_space="thousand",  # thousandths of the image's sides (arXiv 2409.12191)
)

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
    deepstack_key=("vision_config", "deepstack_visual_indexes"),
    ungated_saves=1,
    box_space="thousand",
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

QWEN3 = replace(QWEN2, model_type="qwen3")  # its layers also have q_norm and k_norm

INTERNVL = Family(
    model_type="internvl",  # InternVL 2.5, 3 and 3.5 in the layout of Transformers
    auto_class="AutoModelForImageTextToText",
    layers="model.language_model.layers.",
    vision_blocks="model.vision_tower.encoder.layer.",
    box_space="thousand",  # its documentation, chat data format, grounding data
    regions=(
        ("vision", "model.vision_tower.embeddings."),
        ("vision", "model.vision_tower.layernorm."),  # only where use_mean_pooling is false
        ("projector", "model.multi_modal_projector."),
        ("embed", "model.language_model.embed_tokens."),
        ("norm", "model.language_model.norm."),
        ("head", "lm_head."),
    ),
    spellings=(
        ("model.language_model.model.", "model.language_model."),
        ("model.", "model."),
        ("language_model.lm_head.", "lm_head."),
        ("language_model.model.", "model.language_model."),
        ("language_model.", "model.language_model."),
        ("vision_tower.", "model.vision_tower."),
        ("multi_modal_projector.", "model.multi_modal_projector."),
    ),
    num_vision_blocks_key=("vision_config", "num_hidden_layers"),
    tied_by_default=True,
    decoders=("qwen2", "qwen3", "llama"),
    picture_fields=("pixel_values",),
    position_sections=1,
    picture_marks=("start_image_token", "end_image_token"),
    tiled=True,
    ungated_saves=1,
)

QWEN3_5 = replace(
    QWEN2_5_VL,
    model_type="qwen3_5",  # also Qwen3.6 and Qwen3.8
    regions=(("vision", "model.visual.pos_embed."), *_VLM_REGIONS, ("mtp", "mtp.")),
    box_space="thousand",
    decoder_ties=False,
    layer_kinds=(("linear_attention", "linear_attn."), ("full_attention", "self_attn.")),
    # Qwen3.5 is published with these two in fp32 and all others in bf16, Qwen3.6 with all in bf16.
    float32=(".linear_attn.A_log", ".linear_attn.norm.weight"),
    carried=("mtp",),  # the layer that predicts a second token
)

QWEN3_5_TEXT = replace(
    QWEN2,
    model_type="qwen3_5_text",  # what Transformers makes of the decoder of a Qwen3.5 alone
    regions=(*QWEN2.regions, ("mtp", "mtp.")),
    spellings=(("model.language_model.", "model."),),
    layer_kinds=QWEN3_5.layer_kinds,
    float32=QWEN3_5.float32,
    carried=QWEN3_5.carried,
)

GEMMA4 = Family(
    model_type="gemma4",  # dense
    auto_class="AutoModelForImageTextToText",
    layers="model.language_model.layers.",
    vision_blocks="model.vision_tower.encoder.layers.",
    box_space="image",  # not verified; pixels of the image, as prompts can ask for
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
    unread_parts=("self_attn.k_proj.", "self_attn.v_proj.", "self_attn.k_norm."),  # E2B and E4B are published with them
    optional_regions=("ple", "audio"),
    idle_regions=("audio",),
    idle_parts=("audio_config",),
    token_fields=("mm_token_type_ids",),
    plain_layers=False,
    vllm=False,
)

FAMILIES = {
    family.model_type: family
    for family in (QWEN2_VL, QWEN2_5_VL, QWEN3_VL, QWEN3_5, QWEN2, QWEN3, QWEN3_5_TEXT, INTERNVL, GEMMA4)
}

OTHER_LAYOUTS = {
    "internvl_chat": "InternVL's own layout, which runs code of its repository; name the repository of the same model "
    "whose name ends in -hf (OpenGVLab/InternVL3-8B-hf) or -HF (OpenGVLab/InternVL3_5-8B-HF)",
}
"""model_type -> what it is, and the checkpoint to use instead."""


def family_of(model_type: str) -> Family:
    """Returns the record for the `model_type` of a `config.json`."""
    if isinstance(model_type, str) and model_type in OTHER_LAYOUTS:
        raise ValueError(f"model_type {model_type!r} is {OTHER_LAYOUTS[model_type]}")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise ValueError(
            f"model_type {model_type!r} is not supported; supported are {', '.join(sorted(FAMILIES))}"
            f"{did_you_mean(str(model_type), FAMILIES)}"
        )
    return FAMILIES[model_type]
