"""Sizes of the measurement and of its rehearsal, and random checkpoints with these sizes.

The rehearsal runs the same code; only the numbers here and the device differ.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracking.command import REPOSITORY_ROOT

CONFIG_3B = REPOSITORY_ROOT / "configs" / "frankenstein_3b" / "config.json"
CONFIG_7B = REPOSITORY_ROOT / "configs" / "openmmreasoner_7b" / "config.json"
SFT, RL = "in", "rl"
"""The two checkpoints: random weights, and the same after small random changes of the decoder."""
UPDATE_STD = 1e-4
CELL = 28
"""Side length in pixels of one vision token."""
NUM_PROMPTS = 8
NUM_ANSWERS = 3
SPACE = "Ġ"
"""A space in byte-level BPE."""
SMALL: dict[str, Any] = {
    "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 1024, "max_position_embeddings": 2048,
    "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]},
}  # fmt: skip
"""Heads of 32: vLLM does not support smaller ones on a CPU."""
SMALL_VISION = {
    "depth": 2, "hidden_size": 64, "intermediate_size": 96, "num_heads": 2, "out_hidden_size": 128,
    "fullatt_block_indexes": [1],
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """Everything that differs between measurement and rehearsal."""

    device: str
    small: bool
    picture_cells: int
    """Cells per side of an image; the square is its number of tokens."""
    reply_tokens: int
    shared_picture_cells: tuple[int, int]
    """Width and height of the picture in the step `sharing`, in cells."""
    shared_reply_tokens: int
    num_warm_up: int
    num_steps: int
    """Measured steps per visit of a contender."""
    attention_tokens: int
    attention_reply_tokens: int
    spectra: tuple[str, ...]
    compared_with_fp64: tuple[str, ...]
    """Spectra small enough for NumPy's decomposition in fp64."""
    num_rounds: int
    probe_shape: str
    probe_shape_7b: str
    probe_dtype: str
    num_problems: int
    num_new_tokens: int
    length_7b: int
    """Sequence length for timing forward and backward."""

    @property
    def picture_tokens(self) -> int:
        return self.picture_cells**2


REAL = Shapes(
    device="cuda", small=False, picture_cells=32, reply_tokens=32, shared_picture_cells=(40, 32),
    shared_reply_tokens=512, num_warm_up=1, num_steps=2, attention_tokens=8000,
    attention_reply_tokens=1000, spectra=("2048x2048", "2048x11008", "3584x18944"), compared_with_fp64=("2048x2048",),
    num_rounds=2, probe_shape="3b", probe_shape_7b="7b", probe_dtype="bfloat16", num_problems=2, num_new_tokens=12,
    length_7b=1152,
)  # fmt: skip
TINY = Shapes(
    device="cpu", small=True, picture_cells=4, reply_tokens=4, shared_picture_cells=(5, 4), shared_reply_tokens=4,
    num_warm_up=1, num_steps=2, attention_tokens=200,
    attention_reply_tokens=40, spectra=("48x48", "48x96"), compared_with_fp64=("48x48",), num_rounds=2,
    probe_shape="tiny", probe_shape_7b="tiny", probe_dtype="float32", num_problems=2, num_new_tokens=4, length_7b=48,
)  # fmt: skip


def shapes_for(*, rehearse: bool) -> Shapes:
    return TINY if rehearse else REAL


def model_config(source: Path, shapes: Shapes, tokenizer: Any, *, num_layers: int | None = None) -> Any:
    """Returns a published architecture with the tokens of the pocket tokenizer; in the rehearsal, in small."""
    from transformers import Qwen2_5_VLConfig

    values = json.loads(source.read_text(encoding="utf-8"))
    if shapes.small:
        values |= SMALL
        values["vision_config"] |= SMALL_VISION
    if num_layers is not None:
        values["num_hidden_layers"] = num_layers
    token_id = tokenizer.convert_tokens_to_ids
    values |= {
        "bos_token_id": token_id("<|endoftext|>"), "eos_token_id": token_id("<|im_end|>"),
        "pad_token_id": token_id("<|endoftext|>"), "image_token_id": token_id("<|image_pad|>"),
        "video_token_id": token_id("<|video_pad|>"), "vision_start_token_id": token_id("<|vision_start|>"),
        "vision_end_token_id": token_id("<|vision_end|>"),
    }  # fmt: skip
    return Qwen2_5_VLConfig.from_dict(values)


def random_model(config: Any, device: str, dtype: Any, *, seed: int = 0) -> Any:
    """Returns a model with random weights, initialised on its device."""
    import torch
    from transformers import Qwen2_5_VLForConditionalGeneration

    torch.manual_seed(seed)
    with torch.device(device):
        return Qwen2_5_VLForConditionalGeneration._from_config(config, dtype=dtype, attn_implementation="sdpa")


def write_checkpoint(directory: Path, shapes: Shapes, *, num_layers: int | None = None, changed: Path | None) -> None:
    """Writes a random 3B checkpoint in bf16 with tokenizer and processor.

    Args:
        directory: folder of the checkpoint.
        shapes: sizes.
        num_layers: number of decoder layers, if fewer.
        changed: folder of a second checkpoint in which every decoder weight is slightly changed.
    """
    import torch
    from transformers import Qwen2_5_VLProcessor
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

    from models.pocket import CHAT_TEMPLATE, build_tokenizer
    from tracking.product import partial_directory

    tokenizer = build_tokenizer()
    config = model_config(CONFIG_3B, shapes, tokenizer, num_layers=num_layers)
    model = random_model(config, shapes.device, torch.bfloat16)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    pixels = {"min_pixels": CELL**2, "max_pixels": shapes.picture_tokens * CELL**2}
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**pixels),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(**pixels),
        chat_template=CHAT_TEMPLATE,
    )
    places = [directory] if changed is None else [directory, changed]
    for place in places:
        if place == changed:
            with torch.no_grad():
                for parameter in model.model.language_model.layers.parameters():
                    parameter.add_(torch.randn_like(parameter), alpha=UPDATE_STD)
        if not place.exists():
            with partial_directory(place) as partial:
                model.save_pretrained(partial)
                processor.save_pretrained(partial)
                name_all_tokens(partial / "tokenizer.json", config.get_text_config().vocab_size)


def name_all_tokens(path: Path, vocabulary: int) -> None:
    """Gives every token that a random model may generate a distinct text, so that replies can be compared and graded.

    Texts are never tokenised into these tokens. Each ends in a number, so that some replies are right.
    """
    values = json.loads(path.read_text(encoding="utf-8"))
    vocab: dict[str, int] = values["model"]["vocab"]
    vocab |= {token["content"]: token["id"] for token in values["added_tokens"]}
    vocab |= {f"{SPACE}w{number}{SPACE}{number % NUM_ANSWERS}": number for number in range(len(vocab), vocabulary)}
    path.write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")


def prepare(work_dir: Path, shapes: Shapes) -> dict[str, float]:
    """Writes the two checkpoints and the prompts, unless an earlier step has; returns the time taken."""
    begin = time.perf_counter()
    checkpoints = [work_dir / name for name in (SFT, RL)]
    if not all(path.exists() for path in checkpoints):
        write_checkpoint(checkpoints[0], shapes, changed=checkpoints[1])
        release_memory()
    if not (work_dir / "prompts").exists():
        write_prompt_set(work_dir / "prompts", shapes)
    return {"prepared_s": time.perf_counter() - begin}


def write_prompt_set(directory: Path, shapes: Shapes) -> None:
    """Writes prompts with one image each."""
    import numpy as np
    from PIL import Image

    from benchmarks.probes import draw_picture
    from data_builders.prompt_sets.prompts import Prompt, write_prompts
    from tracking.product import partial_directory

    rng = np.random.default_rng(0)
    prompts = []
    with partial_directory(directory) as partial:
        (partial / "images").mkdir()
        for number in range(NUM_PROMPTS):
            path = partial / "images" / f"{number}.png"
            draw_picture(path, rng)
            with Image.open(path) as picture:
                picture.resize((shapes.picture_cells * CELL,) * 2).save(path)
            prompts.append(
                Prompt(
                    id=str(number), ability="vision", question=f"How many red objects are there ? {number}",
                    answer=str(number % NUM_ANSWERS), answer_kind="number", images=(f"images/{number}.png",),
                )
            )  # fmt: skip
        write_prompts(partial, "rl", prompts)


def release_memory() -> None:
    """Frees unreferenced memory."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def synchronise() -> None:
    """Synchronises with the GPU, if there is one."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_bytes() -> dict[str, int] | None:
    """Returns the peaks of the GPU's memory since they were last reset; None without a GPU."""
    import torch

    if not torch.cuda.is_available():
        return None
    return {"allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}
