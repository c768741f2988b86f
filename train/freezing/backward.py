"""Where does the backward pass stop? At the lowest trainable parameter, also with gradient checkpointing.

When gradient checkpointing is enabled, Transformers (5.23) makes the embeddings' output require a gradient, so the
backward pass runs through every frozen layer below; TRL (1.16) enables it again after every generation, and the hooks
accumulate. This module prevents that. Non-reentrant checkpointing needs no replacement. Reentrant checkpointing of a
layer whose input does not require a gradient silently trains nothing in that layer; so the input of the lowest
trainable layer, and only that one, is made to require a gradient.
"""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from models.blocks import format_layers
from models.layout import Layout
from train.freezing.freeze import FreezePlan

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def stop_backward_early(model: "PreTrainedModel", plan: FreezePlan) -> None:
    """Keeps the backward pass above the lowest trainable parameter.

    Args:
        model: the model, before PEFT or an engine wraps it.
        plan: frozen and trainable parameters.
    """
    # PyTorch warns about every frozen layer below; GraphWitness checks that trainable parameters get a gradient.
    warnings.filterwarnings("ignore", message="None of the inputs have requires_grad=True")
    model.enable_input_require_grads = lambda: None
    for region, prefix in _stacks(plan.layout):
        places = {plan.layout.parameters[name] for name in plan.trainable}
        indices = sorted({place.index for place in places if place.region == region and place.index is not None})
        layers = [model.get_submodule(f"{prefix}{index}") for index in indices]
        stack = model.get_submodule(prefix.rstrip(".").rpartition(".")[0])
        stack.register_forward_pre_hook(partial(_checkpoint_with_gradient, layers))


def _checkpoint_with_gradient(layers: list[Any], *_: Any) -> None:
    """Replaces the checkpointing function of a stack's trainable layers by `_with_gradient`, before the stack runs.

    Enabling checkpointing sets a new `_gradient_checkpointing_func` each time (Transformers 5.4 to 5.23).
    """
    for layer in layers:
        if layer.gradient_checkpointing and layer.training:
            function = layer._gradient_checkpointing_func
            if getattr(function, "func", None) is not _with_gradient:
                layer._gradient_checkpointing_func = partial(_with_gradient, function)


def _with_gradient(checkpoint: Any, run: Any, hidden: "torch.Tensor", *rest: Any) -> Any:
    """Checkpoints a trainable layer; if checkpointing is reentrant, makes its input require a gradient."""
    import torch

    if checkpoint.keywords.get("use_reentrant") and torch.is_grad_enabled() and not hidden.requires_grad:
        hidden = hidden.detach().requires_grad_()
    return checkpoint(run, hidden, *rest)


@dataclass(frozen=True, kw_only=True)
class GraphReport:
    """Parts of the model that took part in the first backward pass."""

    decoder_layers: tuple[int, ...]
    """Decoder layers whose output required a gradient."""
    vision_blocks: tuple[int, ...]
    """Vision blocks whose output required a gradient."""
    without_gradient: tuple[str, ...]
    """Trainable parameters without a gradient so far."""

    def as_row(self) -> dict[str, Any]:
        return {
            "decoder_layers": format_layers(self.decoder_layers),
            "vision_blocks": format_layers(self.vision_blocks),
            "without_gradient": list(self.without_gradient),
        }


class GraphWitness:
    """Records which layers require a gradient in the first training pass, and which parameters receive one."""

    def __init__(self, model: "torch.nn.Module", plan: FreezePlan, *, base: "PreTrainedModel") -> None:
        """Registers hooks on the model; each removes itself after its first use.

        Args:
            model: the trained model, with the names of its trainable parameters.
            plan: frozen and trainable parameters.
            base: the same model without PEFT's wrapper, whose layers have canonical names.
        """
        self._plan = plan
        self._carries_graph: dict[tuple[str, int], bool] = {}
        awaited = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self._waiting = dict.fromkeys(awaited)
        for region, prefix in _stacks(plan.layout):
            for index in sorted({p.index for p in plan.layout if p.region == region and p.index is not None}):
                self._watch_layer(base.get_submodule(f"{prefix}{index}"), (region, index))
        for name, parameter in awaited.items():
            self._watch_parameter(name, parameter)

    def _watch_layer(self, layer: "torch.nn.Module", place: tuple[str, int]) -> None:
        import torch

        def look(module: "torch.nn.Module", inputs: Any, output: Any) -> None:
            if module.training and torch.is_grad_enabled():
                hidden = output[0] if isinstance(output, tuple) else output
                self._carries_graph[place] = hidden.requires_grad
                handle.remove()

        handle = layer.register_forward_hook(look)

    def _watch_parameter(self, name: str, parameter: "torch.nn.Parameter") -> None:
        def look(_: "torch.Tensor") -> None:
            self._waiting.pop(name, None)
            handle.remove()

        # The hook that DeepSpeed uses to reduce gradients; a tensor's register_hook misses some under ZeRO-3 with
        # torch 2.8.
        handle = parameter.register_post_accumulate_grad_hook(look)

    def report(self) -> GraphReport:
        return GraphReport(
            decoder_layers=tuple(
                i for (region, i), seen in sorted(self._carries_graph.items()) if region == "llm" and seen
            ),
            vision_blocks=tuple(
                i for (region, i), seen in sorted(self._carries_graph.items()) if region == "vision" and seen
            ),
            without_gradient=tuple(self._waiting),
        )

    def check(self) -> None:
        """Raises if the backward pass went below the trainable parameters, or did not reach one of them.

        A vision tower gets no gradient if the batch has no image; decoder layers always get one.

        Raises:
            RuntimeError: naming the layer or the parameter.
        """
        allowed = layers_with_graph(self._plan)
        for (region, index), seen in self._carries_graph.items():
            if seen and (region, index) not in allowed:
                raise RuntimeError(
                    f"{region} layer {index} took part in the backward pass though nothing at or below it is trainable"
                )
        prefix = self._plan.layout.family.layers
        for name in self._waiting:
            if prefix in name:
                raise RuntimeError(f"{name} is trainable but received no gradient in the first step")


def layers_with_graph(plan: FreezePlan) -> set[tuple[str, int]]:
    """Returns the (region, index) of layers at or above a trainable parameter, in the order of the forward pass.

    The vision tower feeds the projector; the projector and the embeddings feed the first decoder layer. Per-layer
    embeddings feed every layer.
    """
    trainable = [plan.layout.parameters[name] for name in plan.trainable]
    lowest = {
        region: min((p.index for p in trainable if p.region == region and p.index is not None), default=None)
        for region in ("vision", "llm")
    }
    patches = any(p.region == "vision" and p.index is None for p in trainable)
    before_decoder = any(p.region in ("vision", "projector", "embed", "ple") for p in trainable)
    reached = set()
    for region, from_start in (("vision", patches), ("llm", before_decoder)):
        first = 0 if from_start else lowest[region]
        count = plan.layout.num_vision_blocks if region == "vision" else plan.layout.num_layers
        if first is not None:
            reached |= {(region, index) for index in range(first, count)}
    return reached


def _stacks(layout: Layout) -> Iterable[tuple[str, str]]:
    yield "llm", layout.family.layers
    if layout.family.vision_blocks:
        yield "vision", layout.family.vision_blocks
