"""Small random Gemma 4 checkpoints: real classes, with everything that sets the family apart.

`small` is built like E2B and E4B: per-layer embeddings, layers that read the keys and values of earlier ones, a tower
with clipped linear maps, a tower for sound. `large` is built like 31B: pictures whose tokens see each other, keys used
as values in the layers with full attention, standardized picture features.
"""

from pathlib import Path
from typing import Any

from models.pocket import INITIALIZER_RANGE, TAG_TOKENS, build_tokenizer

TOKENS = {
    "image_token": "<|image|>", "boi_token": "<|image>", "eoi_token": "<image|>",
    "audio_token": "<|audio|>", "boa_token": "<|audio>", "eoa_token": "<audio|>",
}  # fmt: skip
CHAT_TEMPLATE = (
    "{{- '<bos>' -}}"
    "{%- for message in messages -%}"
    "{{- '<|turn>' + ('model' if message.role == 'assistant' else message.role) + '\n' -}}"
    "{%- if message.content is string -%}{{- message.content -}}"
    "{%- else -%}{%- for part in message.content -%}"
    "{%- if part.type == 'image' -%}{{- '<|image|>' -}}"
    "{%- elif part.type == 'text' -%}{{- part.text -}}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
    "{{- '<turn|>\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|turn>model\n' -}}{%- endif -%}"
)
NUM_LAYERS, NUM_SHARING, NUM_BLOCKS = 6, 2, 2
SLIDING_WINDOW = 24
"""Shorter than a prompt with a picture, longer than a short text."""
MAX_SOFT_TOKENS = 70
"""The fewest that the image processor takes."""
KINDS = ("small", "large")


def gemma_tokenizer() -> Any:
    """Returns the pocket model's byte-level BPE with Gemma 4's special tokens."""
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerFast

    pocket = build_tokenizer()
    blank = pocket.backend_tokenizer.to_str()
    from tokenizers import Tokenizer

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(blank), bos_token="<bos>", eos_token="<eos>", pad_token="<pad>",
        extra_special_tokens=TOKENS,
    )  # fmt: skip
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|turn>", "<turn|>"]})
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TAG_TOKENS])
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def gemma_processor(tokenizer: Any) -> Any:
    from transformers import Gemma4Processor
    from transformers.models.gemma4.feature_extraction_gemma4 import Gemma4AudioFeatureExtractor
    from transformers.models.gemma4.image_processing_gemma4 import Gemma4ImageProcessor
    from transformers.models.gemma4.video_processing_gemma4 import Gemma4VideoProcessor

    sizes = {"patch_size": 8, "pooling_kernel_size": 2, "max_soft_tokens": MAX_SOFT_TOKENS}
    return Gemma4Processor(
        feature_extractor=Gemma4AudioFeatureExtractor(),
        image_processor=Gemma4ImageProcessor(**sizes),
        tokenizer=tokenizer,
        video_processor=Gemma4VideoProcessor(**sizes),
        chat_template=CHAT_TEMPLATE,
        image_seq_length=MAX_SOFT_TOKENS,
    )


def gemma_config(tokenizer: Any, kind: str) -> Any:
    from transformers import Gemma4Config

    number = tokenizer.convert_tokens_to_ids
    small = kind == "small"
    text = {
        "vocab_size": len(tokenizer), "vocab_size_per_layer_input": len(tokenizer), "hidden_size": 64,
        "intermediate_size": 48, "num_hidden_layers": NUM_LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 16, "global_head_dim": 32, "max_position_embeddings": 512, "sliding_window": SLIDING_WINDOW,
        "layer_types": ["sliding_attention", "full_attention"] * (NUM_LAYERS // 2),
        "hidden_size_per_layer_input": 8 if small else 0, "num_kv_shared_layers": NUM_SHARING if small else 0,
        "use_double_wide_mlp": small, "attention_k_eq_v": not small,
        "num_global_key_value_heads": None if small else 1,
        "use_bidirectional_attention": None if small else "vision", "final_logit_softcapping": 30.0,
        "initializer_range": INITIALIZER_RANGE, "pad_token_id": number("<pad>"), "eos_token_id": number("<eos>"),
        "bos_token_id": number("<bos>"),
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": NUM_BLOCKS, "num_attention_heads": 2,
        "num_key_value_heads": 2, "head_dim": 16, "patch_size": 8, "pooling_kernel_size": 2,
        "position_embedding_size": 160, "use_clipped_linears": small, "standardize": not small,
        "initializer_range": INITIALIZER_RANGE,
    }  # fmt: skip
    audio = {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "subsampling_conv_channels": [8, 4],
        "output_proj_dims": 24,
    }  # fmt: skip
    return Gemma4Config(
        text_config=text,
        vision_config=vision,
        audio_config=audio if small else None,
        initializer_range=INITIALIZER_RANGE,
        image_token_id=number("<|image|>"),
        boi_token_id=number("<|image>"),
        eoi_token_id=number("<image|>"),
        audio_token_id=number("<|audio|>"),
        boa_token_id=number("<|audio>"),
        eoa_token_index=number("<audio|>"),
        video_token_id=number("<|video|>"),
    )


def write_gemma4(directory: Path, kind: str = "small", *, seed: int = 0) -> Path:
    """Writes a random checkpoint whose buffers differ from those that Transformers would start with."""
    import torch
    from transformers import Gemma4ForConditionalGeneration

    tokenizer = gemma_tokenizer()
    processor = gemma_processor(tokenizer)  # adds the token for videos
    torch.manual_seed(seed)
    model = Gemma4ForConditionalGeneration(gemma_config(tokenizer, kind))
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            last = name.rpartition(".")[2]
            if last in ("layer_scalar", "std_scale"):
                buffer.uniform_(0.7, 1.3)
            elif last == "std_bias":
                buffer.normal_(std=0.3)
            elif last.endswith(("_min", "_max")) and ".layers.0.self_attn." in name:  # others have no limit
                buffer.fill_(-2.0 if last.endswith("_min") else 2.0)
        model.model.vision_tower.patch_embedder.position_embedding_table.normal_(std=0.3)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<turn|>")]
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory
