#!/usr/bin/env bash
# Packages: transformers 5.23.0, torch 2.13.0; 2026-11-28
# Guess:    gradient checkpointing changes memory and time, not gradients; `use_reentrant=True` is slower at worst.
# Real:     in Gemma 4 models whose last layers share the keys and values of earlier ones (`num_kv_shared_layers`: E2B and
#           E4B), reentrant checkpointing loses the gradient that flows through the shared keys and values, without a
#           message. They travel from layer to layer in a dictionary beside the hidden states, and reentrant checkpointing
#           computes them without a graph. Non-reentrant checkpointing is exact.
# Hurt:     `k_proj` and `v_proj` of the layers that own the keys and values, and all that feeds them, train with a wrong
#           gradient; nothing is missing, so no check for missing gradients notices. TRL 1.16 switches to reentrant
#           checkpointing by itself for PEFT under ZeRO-3.
# Do:       `gradient_checkpointing_kwargs={"use_reentrant": False}`; for PEFT under ZeRO-3, `gradient_checkpointing=False`.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/tools"
"$folder/tools/bin/pip" install --quiet uv==0.13.8
"$folder/tools/bin/uv" venv --quiet --python python3 "$folder/env"
"$folder/tools/bin/uv" pip install --quiet --python "$folder/env/bin/python" transformers==5.23.0 torch==2.13.0

cat >"$folder/run.py" <<'PY'
"""Gradients of one small random model with and without checkpointing, with and without shared keys and values."""
import os

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from transformers import Gemma4ForCausalLM, Gemma4TextConfig


def gradients(num_shared, checkpointing):
    torch.manual_seed(0)
    model = Gemma4ForCausalLM(
        Gemma4TextConfig(
            vocab_size=64, vocab_size_per_layer_input=64, hidden_size=32, hidden_size_per_layer_input=8,
            intermediate_size=48, num_hidden_layers=6, num_attention_heads=2, num_key_value_heads=1, head_dim=16,
            global_head_dim=16, sliding_window=8, num_kv_shared_layers=num_shared, initializer_range=0.2,
            layer_types=["sliding_attention", "full_attention"] * 3, attn_implementation="eager",
        )
    ).train()
    if checkpointing is not None:
        model.gradient_checkpointing_enable({"use_reentrant": checkpointing == "reentrant"})
        model.enable_input_require_grads()
    ids = torch.arange(1, 21)[None]
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


for num_shared in (0, 2):
    exact = gradients(num_shared, None)
    for checkpointing in ("non-reentrant", "reentrant"):
        found = gradients(num_shared, checkpointing)
        missing = sum(gradient is None for gradient in found.values())
        wrong = {n: float((found[n] - g).norm() / g.norm()) for n, g in exact.items() if not torch.allclose(found[n], g, rtol=1e-3, atol=1e-6)}
        print(f"{num_shared} layers share, {checkpointing}: {missing} gradients missing, {'some' if wrong else 'none'} wrong")
        for name in (f"model.layers.{layer}.self_attn.{part}_proj.weight" for layer in (2, 3) for part in "kv"):
            if name in wrong:
                print(f"  {name}: off by {wrong[name]:.0%}")
PY

"$folder/env/bin/python" "$folder/run.py" 2>/dev/null | tee "$folder/out"
for case in "0 layers share, non-reentrant: 0 gradients missing, none wrong" \
    "0 layers share, reentrant: 0 gradients missing, none wrong" \
    "2 layers share, non-reentrant: 0 gradients missing, none wrong" \
    "2 layers share, reentrant: 0 gradients missing, some wrong"; do
    grep -qx "$case" "$folder/out" || { echo "changed: expected '$case'" >&2; exit 1; }
done
echo "as described: reentrant checkpointing loses the gradient through shared keys and values"
