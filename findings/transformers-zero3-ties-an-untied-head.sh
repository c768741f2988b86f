#!/usr/bin/env bash
# Packages: transformers 5.23.0, deepspeed 0.19.8, torch 2.13.0; 2026-11-28
# Guess:    `from_pretrained` gives the same model with and without ZeRO-3: it only divides the tensors.
# Real:     if the configuration says that the output head is tied and the files hold a head that differs from the
#           embedding matrix, Transformers compares the two and loads the model untied, with a warning. Under ZeRO-3 it
#           compares what a process holds of them, which is nothing: the two seem equal, the head is tied and its stored
#           weights are dropped. There is no warning, and nothing is missing or unexpected.
#           InternVL is such a family: `InternVLConfig` is tied where `config.json` says nothing, the published InternVL 3
#           has a head of its own, and Transformers' conversion script writes no flag.
# Hurt:     the same training command starts from another model under ZeRO-3 than under DDP or ZeRO-2: its output head is
#           the embedding matrix. The checkpoint that it saves has no head of its own any more.
# Do:       set `tie_word_embeddings` to false in `config.json` (at the top) before training such a checkpoint, or pass
#           `tie_word_embeddings=False` to `from_pretrained`.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/tools"
"$folder/tools/bin/pip" install --quiet uv==0.13.8
"$folder/tools/bin/uv" venv --quiet --python python3 "$folder/env"
"$folder/tools/bin/uv" pip install --quiet --python "$folder/env/bin/python" \
    transformers==5.23.0 torch==2.13.0 deepspeed==0.19.8 accelerate==1.15.0

cat >"$folder/run.py" <<'PY'
"""Loads a small InternVL with a head of its own twice, plainly and under ZeRO-3 with one process."""
import json
import os
import sys
from pathlib import Path

os.environ |= {
    "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "RANK": "0", "LOCAL_RANK": "0",
    "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0",
}

import torch
import torch.distributed
from transformers import AutoModelForImageTextToText, InternVLConfig, InternVLForConditionalGeneration
from transformers.integrations import HfDeepSpeedConfig

torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
import deepspeed

folder = Path(sys.argv[1]) / "checkpoint"
torch.manual_seed(0)
config = InternVLConfig(
    text_config={"model_type": "qwen2", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48,
                 "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1},
    vision_config={"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
                   "image_size": [28, 28]},
    image_token_id=1, tie_word_embeddings=False,
)
InternVLForConditionalGeneration(config).save_pretrained(folder)
written = json.loads((folder / "config.json").read_text())
del written["tie_word_embeddings"]  # as the conversion script writes it
(folder / "config.json").write_text(json.dumps(written))


def load(name, **options):
    model, found = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True, **options)
    tied = model.lm_head.weight is model.model.language_model.embed_tokens.weight
    problems = sum(map(len, found.values()))
    print(f"{name}: tied {tied}, {problems} missing or unexpected tensors", flush=True)


load("plainly")
zero = HfDeepSpeedConfig({"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": 1})
deepspeed.init_distributed("gloo", auto_mpi_discovery=False)
load("under ZeRO-3")
load("under ZeRO-3, told", tie_word_embeddings=False)
PY

"$folder/env/bin/python" "$folder/run.py" "$folder" 2>"$folder/errors" | tee "$folder/out" | grep "tied" || {
    tail -5 "$folder/errors" >&2
    exit 1
}
grep -q "^plainly: tied False, 0 missing" "$folder/out"
grep -q "^under ZeRO-3, told: tied False, 0 missing" "$folder/out"
grep -q "will NOT tie" "$folder/errors" || { echo "changed: the plain load does not warn" >&2; exit 1; }
grep -q "^under ZeRO-3: tied True, 0 missing" "$folder/out" || { echo "changed: ZeRO-3 keeps the head" >&2; exit 1; }
[[ $(grep -c "will NOT tie" "$folder/errors") == 1 ]] || { echo "changed: ZeRO-3 warns" >&2; exit 1; }
echo "as described: a head of its own is loaded as the embedding matrix under ZeRO-3, without a warning"
