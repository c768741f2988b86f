#!/usr/bin/env bash
# Packages: transformers 5.23.0, torch 2.13.0; 2026-11-28
# Guess:    `from_pretrained(…, attn_implementation="sdpa")` decides, and a checkpoint's `config.json` only has a default.
# Real:     if `config.json` has `_attn_implementation` (an older form, which people also write by hand when a guide asks for
#           flash attention), that value wins over the argument, without a message. Under the key without the underscore
#           the argument wins.
# Hurt:     two checkpoints of one comparison run with different attention although the command asks for the same: other
#           rounding, other greedy replies, other memory and speed. Logs that print the argument are wrong.
# Do:       remove the key from `config.json`, or set `config._attn_implementation` on a loaded configuration and pass that;
#           print `model.config._attn_implementation` of the loaded model.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/tools"
"$folder/tools/bin/pip" install --quiet uv==0.13.8
"$folder/tools/bin/uv" venv --quiet --python python3 "$folder/env"
"$folder/tools/bin/uv" pip install --quiet --python "$folder/env/bin/python" transformers==5.23.0 torch==2.13.0

cat >"$folder/run.py" <<'PY'
"""Loads one small checkpoint with sdpa asked for, with three forms of its configuration."""
import json
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

folder = Path(sys.argv[1])
Qwen2ForCausalLM(
    Qwen2Config(
        vocab_size=32, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2,
    )
).save_pretrained(folder)
plain = json.loads((folder / "config.json").read_text())
for key in ("none", "attn_implementation", "_attn_implementation"):
    (folder / "config.json").write_text(json.dumps(plain | ({} if key == "none" else {key: "eager"})))
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa")
    print(f"key {key}: asked for sdpa, runs {model.config._attn_implementation}")
PY

"$folder/env/bin/python" "$folder/run.py" "$folder/checkpoint" 2>/dev/null | tee "$folder/out"
for case in "key none: asked for sdpa, runs sdpa" "key attn_implementation: asked for sdpa, runs sdpa" \
    "key _attn_implementation: asked for sdpa, runs eager"; do
    grep -qx "$case" "$folder/out" || { echo "changed: expected '$case'" >&2; exit 1; }
done
echo "as described: the checkpoint's configuration decides against the argument"
