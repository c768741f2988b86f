#!/usr/bin/env bash
# Packages: peft 0.21.2, transformers 5.23.0, torch 2.13.0; 2026-11-28
# Guess:    for Qwen2.5-VL, `target_modules` with the usual names of a decoder's linear maps and `layers_to_transform=[2, 3]`
#           put LoRA on decoder layers 2 and 3, and on nothing else.
# Real:     the tower's blocks 2 and 3 get adapters too, on their gate_proj, up_proj and down_proj: any module with such a
#           name below any numbered module counts as a "layer". Nothing is printed.
# Hurt:     an experiment that trains only a block of decoder layers also trains the vision tower, at places that depend on
#           the layer numbers; what is then credited to the decoder may come from the tower.
# Do:       add `layers_pattern="layers"` (the tower calls its own `blocks`), or give `target_modules` as a regular
#           expression over whole names; and list the modules with adapters before training.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/tools"
"$folder/tools/bin/pip" install --quiet uv==0.13.8
"$folder/tools/bin/uv" venv --quiet --python python3 "$folder/env"
"$folder/tools/bin/uv" pip install --quiet --python "$folder/env/bin/python" peft==0.21.2 transformers==5.23.0 torch==2.13.0

cat >"$folder/run.py" <<'PY'
"""Adds LoRA to layers 2 and 3 of a small Qwen2.5-VL, without and with `layers_pattern`, and counts the adapters."""
import os

os.environ["HF_HUB_OFFLINE"] = "1"

from peft import LoraConfig, get_peft_model
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

NAMES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
config = Qwen2_5_VLConfig(
    text_config={
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 6, "num_attention_heads": 2,
        "num_key_value_heads": 1, "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3]},
    },
    vision_config={
        "depth": 6, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32,
        "fullatt_block_indexes": [5],
    },
)
for pattern in (None, "layers"):
    model = get_peft_model(
        Qwen2_5_VLForConditionalGeneration(config),
        LoraConfig(r=2, target_modules=NAMES, layers_to_transform=[2, 3], layers_pattern=pattern),
    )
    places = {"decoder": set(), "tower": set()}
    number = dict.fromkeys(places, 0)
    for name in model.base_model.targeted_module_names:
        part = "tower" if ".visual." in name else "decoder"
        number[part] += 1
        places[part].add(name.split("layers." if part == "decoder" else "blocks.")[1].split(".")[0])
    said = "; ".join(f"{number[part]} in the {part}, of {sorted(places[part])}" for part in places)
    print(f"layers_pattern {pattern}: adapters: {said}")
PY

"$folder/env/bin/python" "$folder/run.py" 2>/dev/null | tee "$folder/out"
for case in "layers_pattern None: adapters: 14 in the decoder, of ['2', '3']; 6 in the tower, of ['2', '3']" \
    "layers_pattern layers: adapters: 14 in the decoder, of ['2', '3']; 0 in the tower, of []"; do
    grep -qxF "$case" "$folder/out" || { echo "changed: expected '$case'" >&2; exit 1; }
done
echo "as described: layers_to_transform counts the tower's blocks as layers"
