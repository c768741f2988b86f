#!/usr/bin/env bash
# Packages: trl 1.16.0 (GRPO, scale_rewards="group"), torch 2.13.0, transformers 5.23.0; 2026-11-27
# Guess:    if every reply of a group has the same reward, all advantages are zero. With beta = 0 and no weight decay,
#           an optimizer step on such groups changes no weight.
# Real:     the advantages are (reward - mean) / (std + 1e-4) in float32. For many values, such as 0.1, 0.7 or 0.9 (a usual
#           weight of one reward of two), the mean of equal rewards differs from them by one rounding. The advantages are
#           then about 1e-4 instead of 0. Adam divides gradients by their own size: with fresh moments the step has the
#           full learning rate, however small the advantages are. `frac_reward_zero_std` counts none of these groups.
# Hurt:     early in training, or late when most groups are solved, batches without any signal move almost every weight
#           by up to the learning rate, in the direction of whatever was sampled.
# Do:       set advantages to zero where the rewards of a group do not differ (for example compare their maximum and
#           minimum), or use rewards that are exact in float32, such as 0, 0.5 and 1.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/tools"
"$folder/tools/bin/pip" install --quiet uv==0.13.8
"$folder/tools/bin/uv" venv --quiet --python python3 "$folder/env"
"$folder/tools/bin/uv" pip install --quiet --python "$folder/env/bin/python" \
    trl==1.16.0 transformers==5.23.0 torch==2.13.0 datasets==5.2.0 accelerate==1.15.0

cat >"$folder/run.py" <<'PY'
"""One GRPO step on groups with equal rewards: prints the advantages and the share of weights that changed."""
import os
import sys
import tempfile

os.environ |= {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"}

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
from trl import GRPOConfig, GRPOTrainer

reward = float(sys.argv[1])
alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
tokens = Tokenizer(models.BPE(vocab={sign: i for i, sign in enumerate(alphabet)}, merges=[]))
tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokens.decoder = decoders.ByteLevel()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens, eos_token="<end>", pad_token="<pad>")
torch.manual_seed(0)
model = Qwen2ForCausalLM(
    Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=None,
    )
)
before = {name: value.detach().clone() for name, value in model.named_parameters()}
seen = []


class Watched(GRPOTrainer):
    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        seen.append(output["advantages"].clone())
        return output


with tempfile.TemporaryDirectory() as folder:
    trainer = Watched(
        model=model,
        processing_class=tokenizer,
        reward_funcs=lambda completions, **_: [reward] * len(completions),
        train_dataset=Dataset.from_dict({"prompt": ["1 + 1 =", "2 + 2 =", "3 + 3 =", "4 + 4 ="]}),
        args=GRPOConfig(
            output_dir=folder, per_device_train_batch_size=14, num_generations=7, max_completion_length=8, max_steps=1,
            learning_rate=1e-4, lr_scheduler_type="constant", beta=0.0, weight_decay=0.0, report_to="none", bf16=False,
            use_cpu=True, save_strategy="no", disable_tqdm=True, gradient_checkpointing=False,
        ),
    )
    trainer.train()
moved = sum(int((value != before[name]).sum()) for name, value in model.named_parameters())
total = sum(value.numel() for value in before.values())
largest = max(float((value - before[name]).abs().max()) for name, value in model.named_parameters())
advantage = max(float(one.abs().max()) for one in seen)
print(f"reward {reward}: advantages up to {advantage:.1e}, {100 * moved / total:.1f} % of the weights moved, by up to {largest:.1e}")
PY

"$folder/env/bin/python" "$folder/run.py" 1.0 2>/dev/null | tee "$folder/out" | grep "^reward"
"$folder/env/bin/python" "$folder/run.py" 0.7 2>/dev/null | tee -a "$folder/out" | grep "^reward"
grep -q "reward 1.0: advantages up to 0.0e+00, 0.0 % of the weights moved" "$folder/out"
if grep -q "reward 0.7: advantages up to 0.0e+00" "$folder/out"; then
    echo "changed: equal rewards of 0.7 have advantages of zero now" >&2
    exit 1
fi
moved=$(sed -n 's/^reward 0.7: .*, \([0-9]*\)\.[0-9]* % of the weights.*/\1/p' "$folder/out")
[[ $moved -ge 50 ]] || { echo "changed: only $moved % of the weights moved" >&2; exit 1; }
echo "as described: equal rewards of 0.7 moved $moved % of the weights"
