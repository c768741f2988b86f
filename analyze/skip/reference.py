"""What does skipping mean? Copies of a model in which the skipped parts are really gone.

The definition against which the fast path (`layers.py`, `generation.py`) is checked, in tests and by `models.check`.
"""

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from analyze.skip.plan import Configuration
from analyze.swap.reference import num_deepstack_layers
from models.families import family_of


def decoder_of(model: Any) -> Any:
    """Returns the module that holds the decoder layers."""
    return model.get_submodule(family_of(model.config.model_type).layers.removesuffix(".layers."))


def attention_of(layer: Any) -> Any:
    """Returns a layer's attention, of either kind."""
    children = dict(layer.named_children())
    return children.get("self_attn") or children["linear_attn"]


def rebuilt_without(model: Any, configuration: Configuration) -> Any:
    """Returns a copy of a model in which what a configuration leaves out is gone."""
    if configuration.kind in ("attn", "mlp"):
        return with_zero_weights(model, configuration.layers[0], configuration.kind)
    if not family_of(model.config.model_type).plain_layers:
        for layer in configuration.layers:
            model = with_silent_layer(model, layer)
        return model
    num_deepstack = num_deepstack_layers(model)
    if min(configuration.layers, default=num_deepstack) < num_deepstack:
        # The picture's features are added after these layers: the layer must stay in its place and do nothing.
        for layer in configuration.layers:
            model = with_passing_layer(model, layer)
        return model
    return without_layers(model, configuration.layers)


def without_layers(model: Any, layers: Iterable[int]) -> Any:
    """Returns a copy in which layers are deleted and the others numbered anew."""
    gone = set(layers)
    rebuilt = copy.deepcopy(model)
    decoder = decoder_of(rebuilt)
    numbers = [number for number in range(len(decoder.layers)) if number not in gone]
    kept = [decoder.layers[number] for number in numbers]
    decoder.layers = nn.ModuleList(kept)
    for number, layer in enumerate(kept):
        attention_of(layer).layer_idx = number
    for config in {id(c): c for c in (decoder.config, rebuilt.config.get_text_config())}.values():
        config.num_hidden_layers = len(kept)
        if getattr(config, "layer_types", None):
            config.layer_types = [config.layer_types[number] for number in numbers]
    return rebuilt


class Passing(nn.Module):
    """A layer that returns its input."""

    def forward(self, hidden_states: torch.Tensor, **_: Any) -> torch.Tensor:
        return hidden_states


def with_passing_layer(model: Any, number: int) -> Any:
    """Returns a copy in which one layer does nothing; the other layers keep their numbers in the cache."""
    rebuilt = copy.deepcopy(model)
    decoder_of(rebuilt).layers[number] = Passing()
    return rebuilt


class Silent(nn.Module):
    """A layer whose output is its input, and whose keys and values later layers may still read."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, hidden_states: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        self.layer(hidden_states, *arguments, **options)
        return hidden_states


def with_silent_layer(model: Any, number: int) -> Any:
    """Returns a copy in which one layer adds nothing, but computes the keys and values that others share."""
    rebuilt = copy.deepcopy(model)
    layers = decoder_of(rebuilt).layers
    layers[number] = Silent(layers[number])
    return rebuilt


def with_zero_weights(model: Any, number: int, part: str) -> Any:
    """Returns a copy in which the last matrix of a layer's attention or MLP is zero, so that it adds nothing."""
    rebuilt = copy.deepcopy(model)
    layer = decoder_of(rebuilt).layers[number]
    attention = attention_of(layer)
    output = attention.o_proj if hasattr(attention, "o_proj") else attention.out_proj
    last = {"attn": output, "mlp": layer.mlp.down_proj}[part]
    assert last.bias is None
    nn.init.zeros_(last.weight)
    return rebuilt
