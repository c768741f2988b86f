"""How is a model made without a download? Builds the pocket model, a real Qwen2.5-VL of about a million parameters.

It uses the real classes throughout (`Qwen2_5_VLForConditionalGeneration`, its processor, a Qwen byte-level BPE
tokenizer trained here on the pocket vocabulary), so code that runs on it runs unchanged on 3B and 7B checkpoints.
The weights are initialised from a seed; training teaches it to read images and to count.

    python -m models.pocket --output-dir outputs/pocket/init --seed 0

Known limits: images up to 16 cells of 28 pixels, prompts up to 512 tokens.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tracking.command import parse_arguments, run_command
from tracking.product import partial_directory
from tracking.run import OVERWRITE_ARGUMENT, open_run

if TYPE_CHECKING:
    from transformers import Qwen2_5_VLConfig
    from transformers.models.qwen2.tokenization_qwen2 import Qwen2Tokenizer

CHECKPOINT_DIR = "checkpoint"

COLOURS = ("red", "green", "blue", "yellow")
SHAPES = ("circle", "square", "triangle")
PLACES = ("northwest", "north", "northeast", "west", "centre", "east", "southwest", "south", "southeast")
PHRASES = (
    "user",
    "assistant",
    "How many objects are there ?",
    "What colour is the object in the centre ?",
    "What shape is it ?",
    "Where is it ?",
    "There are objects and circles squares triangles . What is",
    "Describe the colours shapes . Count . Work out it is + - * =",
)
"""Phrases whose words, together with the names above, form the pocket vocabulary."""

ROPE_THETA = 4.0
"""With few, small heads, 10,000 would make the height and width sections insensitive to a shift of one cell."""
INITIALIZER_RANGE = 0.08
"""About 1/sqrt(width): with the large models' 0.02, a width of 128 hardly uses the image for the first 300 steps."""

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
"""The special tokens of Qwen2.5-VL needed for a still image, in the order of their published ids."""

TAG_TOKENS = ("<think>", "</think>", "<answer>", "</answer>")

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message.role + '\n' -}}"
    "{%- if message.content is string -%}{{- message.content -}}"
    "{%- else -%}{%- for part in message.content -%}"
    "{%- if part.type == 'image' -%}{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}"
    "{%- elif part.type == 'text' -%}{{- part.text -}}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
    "{{- '<|im_end|>\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)
"""ChatML as Qwen2.5-VL writes it, without its default system message."""


@dataclass(frozen=True, kw_only=True)
class PocketShape:
    """Sizes of the pocket model; the defaults give about one million parameters."""

    num_layers: int = 6
    hidden_size: int = 128
    mlp_size: int = 320
    num_heads: int = 8
    num_kv_heads: int = 4
    num_vision_blocks: int = 2
    vision_hidden_size: int = 64
    vision_mlp_size: int = 128
    tie_embeddings: bool = True

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name != "tie_embeddings" and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads {self.num_heads} must be a multiple of num_kv_heads ({self.num_kv_heads})")
        if self.hidden_size % (16 * self.num_heads):
            raise ValueError(
                f"hidden_size {self.hidden_size} must be a multiple of 16 times num_heads ({self.num_heads}), "
                "so that the three rotary sections fill each head"
            )


@dataclass(frozen=True, kw_only=True)
class PocketArguments:
    """The output directory and the seed."""

    output_dir: str = field(metadata={"help": "output directory; the model is written to its subfolder checkpoint/"})
    seed: int = field(default=0, metadata={"help": "seed of the weights"})
    overwrite: bool = field(default=False, metadata=OVERWRITE_ARGUMENT)


def pocket_corpus() -> list[str]:
    """Returns the pocket tokenizer's training corpus: every word, at the start of a text and within it."""
    words = [*COLOURS, *SHAPES, *(f"{shape}s" for shape in SHAPES), *PLACES, *" ".join(PHRASES).split()]
    return [text for word in words for text in (word, f" {word}")]


def build_tokenizer() -> "Qwen2Tokenizer":
    """Trains Qwen's byte-level BPE on the pocket vocabulary: any text still encodes, byte by byte."""
    from tokenizers import AddedToken
    from transformers.models.qwen2.tokenization_qwen2 import Qwen2Tokenizer

    blank = Qwen2Tokenizer(eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer = blank.train_new_from_iterator(pocket_corpus() * 4, vocab_size=1024, show_progress=False)
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL_TOKENS)})
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TAG_TOKENS])
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_config(shape: PocketShape, tokenizer: "Qwen2Tokenizer") -> "Qwen2_5_VLConfig":
    """Returns the Qwen2.5-VL configuration for the given sizes and tokenizer."""
    from transformers import Qwen2_5_VLConfig

    head_size = shape.hidden_size // shape.num_heads
    # Same proportion as Qwen2.5-VL's sections 16/24/24 of a half head of 64 (time : height : width = 2 : 3 : 3).
    sections = [head_size // 8, head_size * 3 // 16, head_size * 3 // 16]
    token_id = tokenizer.convert_tokens_to_ids
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": shape.hidden_size,
            "intermediate_size": shape.mlp_size,
            "num_hidden_layers": shape.num_layers,
            "num_attention_heads": shape.num_heads,
            "num_key_value_heads": shape.num_kv_heads,
            "max_position_embeddings": 512,
            "rms_norm_eps": 1e-6,
            "initializer_range": INITIALIZER_RANGE,
            "tie_word_embeddings": shape.tie_embeddings,
            "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_THETA, "mrope_section": sections},
            "bos_token_id": token_id("<|endoftext|>"),
            "eos_token_id": token_id("<|im_end|>"),
            "pad_token_id": token_id("<|endoftext|>"),
        },
        vision_config={
            "depth": shape.num_vision_blocks,
            "initializer_range": INITIALIZER_RANGE,
            "hidden_size": shape.vision_hidden_size,
            "intermediate_size": shape.vision_mlp_size,
            "num_heads": 4,
            "out_hidden_size": shape.hidden_size,
            "window_size": 112,
            "fullatt_block_indexes": [shape.num_vision_blocks - 1],
        },
        tie_word_embeddings=shape.tie_embeddings,
        image_token_id=token_id("<|image_pad|>"),
        video_token_id=token_id("<|video_pad|>"),
        vision_start_token_id=token_id("<|vision_start|>"),
        vision_end_token_id=token_id("<|vision_end|>"),
    )


def write_pocket_checkpoint(output_dir: Path, *, shape: PocketShape, seed: int) -> None:
    """Writes an untrained pocket checkpoint: weights (fp32 safetensors), configuration, tokenizer and processor."""
    import torch
    from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

    tokenizer = build_tokenizer()
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(build_config(shape, tokenizer))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    pixels = {"min_pixels": 28 * 28, "max_pixels": 16 * 28 * 28}
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**pixels),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(**pixels),
        chat_template=CHAT_TEMPLATE,
    )
    with partial_directory(output_dir) as partial:
        model.save_pretrained(partial)
        processor.save_pretrained(partial)


def main(argv: list[str] | None = None) -> None:
    arguments, shape = parse_arguments(argv, PocketArguments, PocketShape, description=__doc__)
    output_dir = Path(arguments.output_dir)
    settings = {"seed": arguments.seed, **asdict(shape)}
    with open_run(output_dir, command="models.pocket", settings=settings, overwrite=arguments.overwrite) as run:
        if not run.finished and not (output_dir / CHECKPOINT_DIR).exists():
            write_pocket_checkpoint(output_dir / CHECKPOINT_DIR, shape=shape, seed=arguments.seed)
    print(f"checkpoint: {output_dir / CHECKPOINT_DIR}")


if __name__ == "__main__":
    run_command(main)
