"""Donors for splices: narrow pocket-shaped checkpoints of any depth, in both spellings, whole and sharded."""

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from models.checkpoint import INDEX_FILE, WEIGHTS_FILE
from models.pocket import PocketShape

LAYER = re.compile(r"model\.language_model\.layers\.(\d+)\.")
Tensors = dict[str, torch.Tensor]


def narrow(num_layers: int, *, tied: bool = True) -> PocketShape:
    return PocketShape(
        num_layers=num_layers, hidden_size=32, mlp_size=48, num_heads=2, num_kv_heads=1, vision_hidden_size=32,
        vision_mlp_size=32, tie_embeddings=tied,
    )  # fmt: skip


@dataclass(frozen=True)
class Donors:
    """The paths of two donors, and what a splice of them must be, by plain use of the safetensors library."""

    paths: dict[str, Path]

    @property
    def flags(self) -> list[str]:
        return [word for name, path in self.paths.items() for word in ("--donor", f"{name}={path}")]

    def expected(self, pattern: str, rest: str, cuts: tuple[int, int]) -> Tensors:
        """Every tensor by its name in memory, from the donor that a pattern gives it to."""
        tensors = {name: read_tensors(path) for name, path in self.paths.items()}
        owners = pattern.split(":")

        def owner(name: str) -> str:
            layer = LAYER.match(name)
            return owners[sum(int(layer[1]) >= cut for cut in cuts)] if layer else rest

        return {name: tensors[owner(name)][name] for name in tensors[rest]}


def name_in_memory(name: str) -> str:
    if name.startswith(("model.visual.", "model.language_model.", "lm_head.")):
        return name
    return f"model.{name}" if name.startswith("visual.") else name.replace("model.", "model.language_model.", 1)


def read_tensors(directory: Path) -> Tensors:
    """Every tensor of a Qwen2.5-VL checkpoint, by its name in memory."""
    files = sorted(directory.glob("*.safetensors"))
    return {name_in_memory(name): tensor for file in files for name, tensor in load_file(file).items()}


def respell(source: Path, target: Path, *, num_shards: int = 1) -> Path:
    """Copies a checkpoint with the names that stand in memory, over several files where asked."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors*"))
    tensors = read_tensors(source)
    names = sorted(tensors)
    if num_shards == 1:
        save_file(tensors, target / WEIGHTS_FILE, metadata={"format": "pt"})
        return target
    placed = {}
    for number in range(num_shards):
        file = f"model-{number + 1:05d}-of-{num_shards:05d}.safetensors"
        shard = {name: tensors[name] for name in names[number::num_shards]}
        save_file(shard, target / file, metadata={"format": "pt"})
        placed |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": 0}, "weight_map": placed}
    (target / INDEX_FILE).write_text(json.dumps(index))
    return target
