"""Models with parts really gone, built from another one: what skipping is held against."""

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from models.families import family_of


def decoder_of(model: Any) -> Any:
    """Returns the module that holds the decoder layers."""
    return model.get_submodule(family_of(model.config.model_type).layers.removesuffix(".layers."))


def attention_of(layer: Any) -> Any:
    """Returns a layer's attention, of either kind."""
    children = dict(layer.named_children())
    return children.get("self_attn") or children["linear_attn"]


def without_layers(model: Any, layers: Iterable[int]) -> Any:
    """Returns a copy in which layers are deleted and the others numbered anew."""
    gone = set(layers)
    rebuilt = copy.deepcopy(model)
    decoder = decoder_of(rebuilt)
    kept = [layer for number, layer in enumerate(decoder.layers) if number not in gone]
    decoder.layers = nn.ModuleList(kept)
    for number, layer in enumerate(kept):
        attention_of(layer).layer_idx = number
    for config in {id(c): c for c in (decoder.config, rebuilt.config.get_text_config())}.values():
        config.num_hidden_layers = len(kept)
        if getattr(config, "layer_types", None):
            config.layer_types = [kind for number, kind in enumerate(config.layer_types) if number not in gone]
    return rebuilt


class Passing(nn.Module):
    """A layer that passes on what it is given."""

    def forward(self, hidden_states: torch.Tensor, **_: Any) -> torch.Tensor:
        return hidden_states


def with_passing_layer(model: Any, number: int) -> Any:
    """Returns a copy in which one layer does nothing; the keys of the cache are kept by the others."""
    rebuilt = copy.deepcopy(model)
    decoder_of(rebuilt).layers[number] = Passing()
    return rebuilt


def with_zero_weights(model: Any, number: int, part: str) -> Any:
    """Returns a copy in which the last matrix of a layer's attention or MLP is zero, and with it what it adds."""
    rebuilt = copy.deepcopy(model)
    layer = decoder_of(rebuilt).layers[number]
    attention = attention_of(layer)
    output = attention.o_proj if hasattr(attention, "o_proj") else attention.out_proj
    last = {"attn": output, "mlp": layer.mlp.down_proj}[part]
    assert last.bias is None
    nn.init.zeros_(last.weight)
    return rebuilt
