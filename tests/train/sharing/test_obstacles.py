"""Where prompts cannot be shared, the run says so and computes as TRL does."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from models.loading import load_model
from train.sharing.models import obstacle


def test_every_family_shares_with_both_implementations(
    pocket_checkpoint: Path,
    qwen2_checkpoint: Path,
    qwen2_vl_checkpoint: Path,
    qwen3_vl_checkpoint: Path,
    internvl_checkpoint: Path,
) -> None:
    of_qwen = (pocket_checkpoint, qwen2_checkpoint, qwen2_vl_checkpoint, qwen3_vl_checkpoint)
    for checkpoint in (*of_qwen, internvl_checkpoint):
        for attention in ("sdpa", "eager"):
            assert obstacle(load_model(checkpoint, attn_implementation=attention)) is None


def test_a_recurrent_state_cannot_be_divided(qwen3_5_checkpoint: Path) -> None:
    found = obstacle(load_model(qwen3_5_checkpoint))
    assert found is not None and "layers with a recurrent state (linear attention)" in found


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"attn_implementation": "flex_attention"}, "attn_implementation is flex_attention; expected sdpa or eager"),
        ({"attention_dropout": 0.1}, "attention_dropout 0.1"),
        ({"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}, "sliding-window attention"),
    ],
)
def test_what_a_mask_cannot_express_or_replies_do_not_share_is_named(changes: dict[str, Any], reason: str) -> None:
    attention = changes.pop("attn_implementation", "sdpa")
    config = Qwen2Config(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, attn_implementation=attention, **changes,
    )  # fmt: skip
    found = obstacle(Qwen2ForCausalLM(config))
    assert found is not None and reason in found


def test_dropout_in_an_adapter_is_named(pocket_checkpoint: Path) -> None:
    model = load_model(pocket_checkpoint)
    layer = model.model.language_model.layers[0]
    layer.self_attn.q_proj = torch.nn.Sequential(layer.self_attn.q_proj, torch.nn.Dropout(0.05))
    found = obstacle(model)
    assert found is not None and "layers.0.self_attn.q_proj.1" in found
