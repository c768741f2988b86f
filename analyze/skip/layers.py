"""What would the model compute without this layer? Attention or MLP left out, row by row of one batch.

A decoder layer adds two terms to what it is given, h = x + attention(x) and then h + MLP(h). A row that leaves one out
has that term set to zero; a row that leaves both out has the layer's input as its output: the layer is skipped and its
skip connection kept. What a row leaves out is a row of a boolean plan `[rows, layers, 2]`, so one batch holds different
prompts and different skipped layers, in the prefill and in every step of decoding:

    with RowwiseSkip(model) as skip:
        skip.leave_out(plan)
        model.generate(…)

The keys and values of a layer that a row skips are computed and cached, and nothing reads them: attention's output is
zero in that row.

A layer of Gemma 4 does more: norms after both terms, a third term from the per-layer embeddings, a factor. A row that
leaves out one term keeps the rest; a row that leaves out both has the layer's input as its output. Where later layers
share a layer's keys and values, they read them also in the rows that skip it.

Rows of one prompt are alike up to the first layer in which they leave out different things. `Branches` says which rows
are still alike at each layer, and under `skip.branch` a pass over the prompts alone becomes a pass over all rows, each
state computed once: for a prompt with every layer skipped in turn, half of the work.
"""

from collections.abc import Sequence
from functools import partial
from types import TracebackType
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from models.families import family_of

ATTENTIONS = ("self_attn", "linear_attn")
MLP = "mlp"
"""Modules of the two terms that a decoder layer adds, in the order of a plan's last dimension."""
PER_PROMPT = ("attention_mask", "position_ids", "position_embeddings")
"""What a decoder layer is given beside the hidden states, with a row per prompt (Transformers 5.23)."""

Plan = Bool[Tensor, "rows layers 2"]


class Branches:
    """Which rows share their hidden states at which layer."""

    def __init__(self, prompts: Sequence[int], plan: Plan) -> None:
        """Works out the states at each layer.

        Args:
            prompts: of each row, counted from 0 without gaps.
            plan: what each row leaves out.
        """
        num_rows, num_layers, _ = plan.shape
        choices = plan.cpu().numpy().reshape(num_rows, -1)
        history = np.concatenate([np.array(prompts)[:, None], choices], axis=1)
        before = np.array(prompts)
        self.of_row: list[Int[Tensor, " rows"]] = []
        """Per layer: the state in which it leaves each row."""
        self.parents: list[Int[Tensor, " states"]] = []
        """Per layer: for each state, that of the layer before (of the first layer: the prompt) from which it comes."""
        self.prompts: list[Int[Tensor, " states"]] = []
        """Per layer: the prompt of each state."""
        self.left_out: list[Bool[Tensor, "states 2"]] = []
        for layer in range(num_layers):
            known = history[:, : 1 + 2 * (layer + 1)]
            _, first, state = np.unique(known, axis=0, return_index=True, return_inverse=True)
            state = state.reshape(-1)
            self.of_row.append(torch.from_numpy(state).to(plan.device))
            self.parents.append(torch.from_numpy(before[first]).to(plan.device))
            self.prompts.append(torch.from_numpy(history[first, 0].astype(np.int64)).to(plan.device))
            self.left_out.append(plan[torch.from_numpy(first).to(plan.device), layer])
            before = state

    @property
    def num_states(self) -> list[int]:
        """Per layer: how many rows it really computes."""
        return [len(parents) for parents in self.parents]


class RowwiseSkip:
    """Hooks on a model's decoder layers while the context is open; nothing is skipped before `leave_out` is called."""

    def __init__(self, model: Any) -> None:
        family = family_of(model.config.model_type)
        self._layers: Sequence[Any] = model.get_submodule(family.layers.removesuffix("."))
        self._plain_layers = family.plain_layers
        self._left_out: list[Bool[Tensor, "rows 2"]] | None = None
        self._branches: Branches | None = None
        self._handles: list[Any] = []

    def __enter__(self) -> "RowwiseSkip":
        for number, layer in enumerate(self._layers):
            self._handles.append(layer.register_forward_pre_hook(partial(self._branch_off, number), with_kwargs=True))
            children = dict(layer.named_children())
            attention = next(children[name] for name in ATTENTIONS if name in children)
            for part, sublayer in enumerate((attention, children[MLP])):
                self._handles.append(sublayer.register_forward_hook(partial(self._leave_out, number, part)))
            if not self._plain_layers:
                self._handles.append(layer.register_forward_hook(partial(self._pass_on, number)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()

    @property
    def num_layers(self) -> int:
        return len(self._layers)

    def leave_out(self, plan: Plan | None) -> None:
        """Has each row of the coming passes leave out what its row of the plan says; None for nothing."""
        self._branches = None
        self._left_out = None if plan is None else list(plan.unbind(1))

    def branch(self, branches: Branches) -> None:
        """Has the coming pass, a row per prompt, become a row per state on its way through the layers."""
        self._branches = branches
        self._left_out = branches.left_out

    def _branch_off(
        self, number: int, layer: Any, arguments: tuple[Any, ...], options: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if self._branches is None:
            return None
        prompts = self._branches.prompts[number]
        chosen = {name: _rows(options[name], prompts) for name in PER_PROMPT if name in options}
        hidden, *others = arguments
        return (hidden[self._branches.parents[number]], *others), {**options, **chosen}

    def _leave_out(self, number: int, part: int, sublayer: Any, arguments: tuple[Any, ...], output: Any) -> Any:
        if self._left_out is None:
            return None
        term, *others = output if isinstance(output, tuple) else (output,)  # attention returns its weights too
        rows = self._left_out[number][:, part]
        assert term.shape[0] == len(rows), f"a batch of {term.shape[0]} rows under a plan of {len(rows)}"
        term = term.masked_fill(rows[:, None, None], 0)  # whatever it was, NaN too
        return (term, *others) if isinstance(output, tuple) else term

    def _pass_on(self, number: int, layer: Any, arguments: tuple[Any, ...], output: Any) -> Any:
        """Returns the layer's input in the rows that leave out both terms: other terms and scales are left out too."""
        if self._left_out is None:
            return None
        return torch.where(self._left_out[number].all(1)[:, None, None], arguments[0], output)


def _rows(value: Any, rows: Int[Tensor, " states"]) -> Any:
    """Returns rows of a mask `[rows, …]`, of positions `[rows, tokens]` or of a pair of `[…, rows, tokens, size]`."""
    if isinstance(value, tuple):
        return tuple(part.index_select(-3, rows) for part in value)
    if value is None or len(value) == 1:  # one for all
        return value
    return value[rows]
