"""Adapters as PEFT writes them, with trained-looking weights, and what PEFT makes of them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from models.loading import load_model

TRAINED = ("lora_B", "lora_embedding_A", "lora_magnitude_vector", "modules_to_save", ".bias")
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def write_adapter(
    base: Path, target: Path, *, seed: int = 0, std: float = 0.05, dtype: torch.dtype | None = None, **options: Any
) -> Path:
    """Writes an adapter on a base, with noise on everything that training would move."""
    config = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], **options}
    model: Any = get_peft_model(load_model(base), LoraConfig(**config))
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and any(part in name for part in TRAINED):
                parameter.add_(torch.randn_like(parameter) * std)
    model.save_pretrained(target)
    if dtype is not None:
        edit_tensors(target, lambda tensors: {name: tensor.to(dtype) for name, tensor in tensors.items()})
    return target


def merged_by_peft(base: Path, adapter: Path, *, safe_merge: bool = False) -> dict[str, torch.Tensor]:
    """Returns the weights of PEFT's own merge, by their names in memory."""
    model: Any = PeftModel.from_pretrained(load_model(base), str(adapter))
    return {
        name: parameter.detach() for name, parameter in model.merge_and_unload(safe_merge=safe_merge).named_parameters()
    }


def edit_tensors(adapter: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    tensors = change(load_file(adapter / WEIGHTS))
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()}, adapter / WEIGHTS, metadata={"format": "pt"}
    )


def edit_config(adapter: Path, **values: Any) -> None:
    path = adapter / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def rename(adapter: Path, old: str, new: str) -> None:
    edit_tensors(adapter, lambda tensors: {name.replace(old, new): tensor for name, tensor in tensors.items()})
