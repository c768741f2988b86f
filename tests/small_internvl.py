"""A small random InternVL in the layout of Transformers, with the real processor: tiles of 28 pixels, 4 tokens each."""

from pathlib import Path
from typing import Any

from models.pocket import INITIALIZER_RANGE, SPECIAL_TOKENS, TAG_TOKENS, pocket_corpus

TILE = 28
PATCH = 7
MAX_TILES = 4
"""With the thumbnail, a picture has up to five tiles."""
TILE_TOKENS = 4
"""(28 / 7)^2 patches, four of them to a token."""
MARKS = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
         "video_token": "<video>"}  # fmt: skip
"""Names under which InternVL's tokenizers know these tokens."""
TEMPLATE = (
    "{%- for message in messages -%}{{- '<|im_start|>' + message.role + '\n' -}}"
    "{%- if message.content is string -%}{{- message.content -}}"
    "{%- else -%}{%- for part in message.content -%}"
    "{%- if part.type == 'image' -%}{{- '<IMG_CONTEXT>\n' -}}"
    "{%- elif part.type == 'text' -%}{{- part.text -}}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}{{- '<|im_end|>\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)
"""ChatML as InternVL writes it: a picture is one token, which the processor expands and frames."""


def build_internvl_tokenizer() -> Any:
    """Trains Qwen's byte-level BPE on the pocket vocabulary, with InternVL's image tokens."""
    from tokenizers import AddedToken
    from transformers.models.qwen2.tokenization_qwen2 import Qwen2Tokenizer

    blank = Qwen2Tokenizer(eos_token="<|im_end|>", pad_token="<|endoftext|>", extra_special_tokens=MARKS)
    tokenizer = blank.train_new_from_iterator(pocket_corpus() * 4, vocab_size=1024, show_progress=False)
    tokenizer.add_special_tokens({"additional_special_tokens": [*SPECIAL_TOKENS[:3], *MARKS.values()]})
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TAG_TOKENS])
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def internvl_config(
    tokenizer: Any, *, decoder: str = "qwen2", head_size: int = 16, tied: bool = False, **vision: Any
) -> Any:
    """Returns the configuration of a small model with a decoder of four narrow layers.

    Args:
        decoder: model type of the decoder.
        head_size: width of the decoder's heads.
        tied: the flag at the top of the configuration.
        vision: changes of `vision_config`.
    """
    from transformers import InternVLConfig

    token_id = tokenizer.convert_tokens_to_ids
    text = {
        "model_type": decoder, "vocab_size": len(tokenizer), "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 4, "num_attention_heads": 64 // head_size, "num_key_value_heads": 32 // head_size,
        "head_dim": head_size, "max_position_embeddings": 512, "initializer_range": INITIALIZER_RANGE,
        "eos_token_id": token_id("<|im_end|>"), "bos_token_id": token_id("<|endoftext|>"),
        "pad_token_id": token_id("<|endoftext|>"),
    }  # fmt: skip
    tower = {
        "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48,
        "image_size": [TILE, TILE], "patch_size": [PATCH, PATCH], "attention_bias": True, "layer_scale_init_value": 0.5,
        "initializer_range": INITIALIZER_RANGE,
    }  # fmt: skip
    return InternVLConfig(
        text_config=text,
        vision_config={**tower, **vision},
        image_token_id=token_id(MARKS["context_image_token"]),
        image_seq_length=TILE_TOKENS,
        tie_word_embeddings=tied,
    )


def write_internvl(directory: Path, tokenizer: Any, **changes: Any) -> Path:
    """Writes a checkpoint with its tokenizer, image processor and processor.

    Args:
        changes: of the configuration, as `internvl_config` takes them.
    """
    import torch
    from transformers import InternVLForConditionalGeneration, InternVLProcessor
    from transformers.models.got_ocr2.image_processing_got_ocr2 import GotOcr2ImageProcessor
    from transformers.models.internvl.video_processing_internvl import InternVLVideoProcessor

    torch.manual_seed(0)
    model = InternVLForConditionalGeneration(internvl_config(tokenizer, **changes))
    embeddings = model.model.vision_tower.embeddings
    with torch.no_grad():  # Transformers starts them at zero
        embeddings.position_embeddings.normal_(std=INITIALIZER_RANGE)
        embeddings.cls_token.normal_(std=INITIALIZER_RANGE)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    processor = InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(size={"height": TILE, "width": TILE}, max_patches=MAX_TILES),
        tokenizer=tokenizer,
        video_processor=InternVLVideoProcessor(size={"height": TILE, "width": TILE}),
        image_seq_length=TILE_TOKENS,
        chat_template=TEMPLATE,
    )
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory
