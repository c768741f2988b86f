"""How is one block made necessary? A start checkpoint that can learn to see only there.

All layers but those of one block are *closed*: their value and output maps, W_v with its bias and W_o, are zero. Then
their attention adds W_o sum_j a_j (W_v x_j + b_v) = 0 to the residual stream, and stays so under training, because each
factor of this product multiplies the gradient of the other:

    dL/dW_o = g (sum_j a_j (W_v x_j + b_v))^T = 0        dL/dW_v = W_o^T g (sum_j a_j x_j)^T = 0

(g is the gradient at the attention's output; those of b_v and of the attention weights hold W_o as a factor too.) Adam
without weight decay leaves a parameter whose gradient is always zero where it is, bit by bit. So outside the block
nothing ever moves from one position to another: the last position, which answers, sees no picture. Everything else in
these layers trains: their MLPs are the identity at first (W_down is zero, which its gradient is not).

In the block only W_o is zero. Its gradient is not zero, so the block learns to look, and no other part can take its
place. The cold start has learned to answer with a colour, each about equally likely.

The block is the same wherever it stands, early, mid or late: it is trained once, and moved. A layer that adds zero
passes on its input bit by bit, so the three starts compute the same function.
"""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from models.blocks import BLOCKS, Partition, make_partition
from models.checkpoint import COMPANION_SUFFIXES, WEIGHTS_FILE, Checkpoint, open_checkpoint
from models.shards import write_safetensors
from tracking.product import partial_directory

if TYPE_CHECKING:
    import torch

OUTPUT = "self_attn.o_proj.weight"
VALUES = ("self_attn.v_proj.weight", "self_attn.v_proj.bias")
ROUTE = (OUTPUT, *VALUES)
"""Parameters of a layer that are zero where it is closed."""
MLP_OUTPUT = "mlp.down_proj.weight"
MLP_INPUTS = ("mlp.gate_proj.weight", "mlp.up_proj.weight")
MLP_SCALE = 0.25
"""Factor of the MLPs' input maps in closed layers: 0.25 times the pocket model's 0.08 is the usual 0.02. With 0.08 the
four MLPs change the answers faster than the block learns to see, and some seeds end with one colour for all prompts."""
TRAINED_IN = BLOCKS[0]
"""Where the block is trained before it is moved."""

Change = Callable[[str, "torch.Tensor"], "torch.Tensor"]
"""Returns a parameter of a decoder layer anew, from its name within the layer."""


def close_others(directory: Path, untrained: Path, *, num_open: int) -> None:
    """Writes an untrained model whose layers are closed except the first `num_open`."""
    start = open_checkpoint(untrained)
    _write(directory, start, lambda name: _layer(start, name, lambda index: index >= num_open, closed))


def cut_route(directory: Path, trained: Path) -> None:
    """Writes a trained model whose attention adds nothing: every output map is zero."""
    start = open_checkpoint(trained)
    _write(directory, start, lambda name: _layer(start, name, lambda index: True, without_output))


def place_layers(directory: Path, layers: Sequence[int], *, trained: Path, untrained: Path) -> None:
    """Writes a model with the first, trained layers at other places, between closed layers.

    Args:
        directory: the checkpoint's folder; must not exist.
        layers: the place of each.
        trained: the layers, and all regions.
        untrained: weights of the layers that are closed.
    """
    start, blank = open_checkpoint(trained), open_checkpoint(untrained)
    own = {layer: number for number, layer in enumerate(layers)}

    def source(name: str) -> "torch.Tensor":
        region, index, rest = start.family.place(name)
        if region != "llm":
            return start.tensor(name)
        assert index is not None
        if index in own:
            return start.tensor(name.replace(f"layers.{index}.", f"layers.{own[index]}."))
        return closed(rest, blank.tensor(name))

    _write(directory, start, source)


def closed(rest: str, tensor: "torch.Tensor") -> "torch.Tensor":
    """Returns a parameter of a layer that adds nothing, whose attention never will, and whose MLP can learn to."""
    if rest in (*ROUTE, MLP_OUTPUT):
        return tensor * 0
    return tensor * MLP_SCALE if rest in MLP_INPUTS else tensor


def without_output(rest: str, tensor: "torch.Tensor") -> "torch.Tensor":
    """Returns a parameter of a layer whose attention adds nothing, and can learn to."""
    return tensor * 0 if rest == OUTPUT else tensor


def open_layers(checkpoint: Path) -> list[int]:
    """Returns the decoder layers of a checkpoint whose value or output map is not all zero."""
    weights = open_checkpoint(checkpoint)
    found = set()
    for name in weights.tensors:
        region, index, rest = weights.family.place(name)
        if region == "llm" and rest in ROUTE and bool(weights.tensor(name).any()):
            assert index is not None
            found.add(index)
    return sorted(found)


def partition_of(checkpoint: Checkpoint) -> Partition:
    """Returns the thirds of a checkpoint's decoder."""
    indices = [checkpoint.family.place(name)[1] for name in checkpoint.tensors if is_layer(checkpoint, name)]
    return make_partition(1 + max(index for index in indices if index is not None))


def is_layer(checkpoint: Checkpoint, name: str) -> bool:
    """True for a parameter of a decoder layer."""
    return checkpoint.family.place(name)[0] == "llm"


def _layer(start: Checkpoint, name: str, chosen: Callable[[int], bool], change: Change) -> "torch.Tensor":
    """Returns a parameter, changed if it belongs to a chosen decoder layer."""
    region, index, rest = start.family.place(name)
    tensor = start.tensor(name)
    return change(rest, tensor) if region == "llm" and index is not None and chosen(index) else tensor


def _write(directory: Path, start: Checkpoint, source: Callable[[str], "torch.Tensor"]) -> None:
    """Writes a checkpoint with the companion files, names and dtypes of `start`; `source` gives each parameter."""
    by_disk = {stored.name_on_disk: name for name, stored in start.tensors.items()}
    entries = [(stored.name_on_disk, stored.dtype, stored.shape) for stored in start.tensors.values()]
    with partial_directory(directory) as partial:
        write_safetensors(
            partial / WEIGHTS_FILE, entries, lambda name: source(by_disk[name]).contiguous().numpy().tobytes()
        )
        for file in sorted(start.directory.iterdir()):
            if file.suffix in COMPANION_SUFFIXES:
                shutil.copyfile(file, partial / file.name)
