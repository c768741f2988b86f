"""How is what lies below a change computed once for all variants? Prompts read once, and read again from the change on.

A variant differs from its base only from its first changed layer on. Everything before that is the same for all
variants of a batch: the processor's output, the vision tower, the hidden states and the cached keys and values of the
layers below. `Prefix` reads a batch's prompts once with the base and keeps what every decoder layer and every block of
the tower returned:

    prefix = Prefix(model, inputs, rows)           # with the weights of the base
    ...                                            # edit the weights of one unit
    rows = prefix.rows(unit)                       # as `read_prompts` would return for the edited model
    replies = decode(model, rows, settings)

To read a prompt again from layer k on, the model's ordinary forward pass runs with the layers below k replaced by what
they returned before (*replayed*). Their keys and values are taken from the base's cache afterwards. So the pass has the
shapes, masks and positions of a whole one, and the same bits. The last token of the prompt and the reply are computed
by all layers, as the weights of one of them are other ones.

Known limits: kept are the outputs of all layers for the tokens of one batch; a smaller batch needs less memory. In
families whose layers read more than their input (Gemma 4) only the vision tower is replayed. One sequence of blocks per
pass: a tower that runs twice in one pass is refused.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from analyze.transplant.plan import Unit
from eval.replies.decoding import Rows, read_prompts
from models.families import Family, family_of


class Prefix:
    """The prompts of one batch, as the unchanged model reads them."""

    def __init__(self, model: Any, inputs: Any, rows: Sequence[int]) -> None:
        """Reads the prompts with the model's present weights.

        Args:
            inputs: the processor's output for the distinct prompts.
            rows: the prompt of each reply.
        """
        family = family_of(model.config.model_type)
        self._model, self._inputs = model, inputs
        self._layers = list(model.get_submodule(family.layers.removesuffix("."))) if family.plain_layers else []
        self._blocks = _vision_blocks(model, family)
        self._rows = None if list(rows) == list(range(len(inputs["input_ids"]))) else torch.tensor(list(rows))
        with torch.inference_mode(), ExitStack() as stack:
            recorded = [stack.enter_context(_recording(modules)) for modules in (self._layers, self._blocks)]
            self._read = read_prompts(model, inputs)
        self._layer_outputs, self._block_outputs = recorded

    def rows(self, unit: Unit | None) -> Rows:
        """Returns the prompts as the edited model reads them, ready to be decoded; None for the unchanged model.

        Args:
            unit: the only place whose weights were changed since the prompts were read.
        """
        with torch.inference_mode():
            rows = self._unchanged() if unit is None or self._needs_no_pass(unit) else self._again(unit)
            if self._rows is not None:
                rows.take(self._rows.to(rows.input_ids.device))
        return rows

    def _needs_no_pass(self, unit: Unit) -> bool:
        """True if the change comes after all layers: the prompts' keys and values are the base's."""
        return bool(self._layers) and unit.first_layer >= len(self._layers)

    def _unchanged(self) -> Rows:
        read = self._read
        return Rows(read.input_ids, read.attention_mask, read.position_ids, _copied(read.cache))

    def _again(self, unit: Unit) -> Rows:
        num_layers = min(unit.first_layer, len(self._layers))
        replayed = (
            (self._layers[:num_layers], self._layer_outputs),
            (self._blocks[: unit.first_vision_block], self._block_outputs),
        )
        with ExitStack() as stack:
            for modules, outputs in replayed:
                stack.enter_context(_replaying(modules, outputs))
            rows = read_prompts(self._model, self._inputs)
        below = _copied(self._read.cache, num_layers)
        rows.cache.layers[:num_layers] = below.layers[:num_layers]
        return rows


def _vision_blocks(model: Any, family: Family) -> list[Any]:
    return [] if family.vision_blocks is None else list(model.get_submodule(family.vision_blocks.removesuffix(".")))


@contextmanager
def _recording(modules: Sequence[Any]) -> Iterator[list[Any]]:
    """Keeps what each module returns while the context is open; empty if none was called."""
    outputs: dict[int, Any] = {}

    def keep(number: int) -> Any:
        def hook(module: Any, arguments: Any, output: Any) -> None:
            assert number not in outputs, f"module {number} of {len(modules)} ran twice in one pass"
            outputs[number] = output

        return hook

    handles = [module.register_forward_hook(keep(number)) for number, module in enumerate(modules)]
    kept: list[Any] = []
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()
    assert not outputs or sorted(outputs) == list(range(len(modules))), sorted(outputs)
    kept += [outputs[number] for number in sorted(outputs)]


@contextmanager
def _replaying(modules: Sequence[Any], outputs: Sequence[Any]) -> Iterator[None]:
    """Has each module return a kept output instead of computing; nothing for modules that were not called."""

    def replay(output: Any) -> Any:
        return lambda *arguments, **options: output

    chosen = list(zip(modules, outputs, strict=False))  # modules begin with the first, as outputs do
    for module, output in chosen:
        module.forward = replay(output)
    try:
        yield
    finally:
        for module, _ in chosen:
            del module.forward  # the class has its own


def _copied(cache: Any, num_layers: int | None = None) -> Any:
    """Returns a cache that can be extended without changing this one; only its first layers, if a number is given.

    Keys and values are shared: appending to them makes new tensors. A recurrent state is written in place, so layers
    that keep one are copied.
    """
    from transformers.cache_utils import DynamicLayer

    found = copy.copy(cache)
    found.layers = [
        copy.copy(layer) if type(layer) is DynamicLayer else copy.deepcopy(layer) for layer in cache.layers[:num_layers]
    ]
    return found
