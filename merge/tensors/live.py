"""What would a splice answer? One model in memory is turned into one splice after another; nothing is written.

    for recipe, model in live_splices(recipes):
        ...

The donors' files are memory-mapped. The model is loaded once, with the configuration of the recipe's `files` donor;
from one splice to the next, only the tensors whose source changes are copied into it, a chunk at a time. The memory
needed is that of one model. Each splice equals, parameter by parameter, the model that `load_model` loads from the
output of `merge.splice`.

Known limits: the model is valid until the next splice, and the caller must not modify its weights. Donors must not
change. One process; no DeepSpeed ZeRO-3, which partitions the tensors.
"""

import copy
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merge.recipes.plan import SplicePlan, make_plan
from merge.recipes.recipe import Blend, Owner, Recipe, donors_of
from models.adapters.merged import MergedCheckpoint
from models.adapters.opening import place_of
from models.checkpoint import Checkpoint
from models.layout import stored_tensors
from models.loading import load_model
from models.shards import DTYPES

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

CHUNK_BYTES = 2**24
Source = tuple[Any, ...]
"""What determines a tensor's bytes: a donor's folders, or a blend's folders and factor."""


class LiveSplicer:
    """One model that can be turned into any requested splice, in any order."""

    def __init__(
        self,
        *,
        dtype: "torch.dtype | str" = "auto",
        device: "torch.device | str" = "cpu",
        attn_implementation: str | None = None,
    ) -> None:
        """Does not load anything yet.

        Args:
            dtype: as for `load_model`; `auto` is the dtype in which the written splice would be loaded.
            device: device of the model.
            attn_implementation: as for `load_model`.
        """
        self._dtype = dtype
        self._device = device
        self._attn_implementation = attn_implementation
        self._donors: dict[Source, Checkpoint] = {}
        self._model: PreTrainedModel | None = None
        self._loaded_from: tuple[Path, Any] | None = None
        self._generation_config: Any = None
        self._sources: dict[str, Source] = {}

    def splice(self, recipe: Recipe | SplicePlan) -> "PreTrainedModel":
        """Returns the recipe's model in evaluation mode; the same object as before where possible.

        Raises:
            ValueError: if the recipe does not fit its donors, a blend is not finite, or configuration and donors have
                different tensors.
        """
        plan = recipe if isinstance(recipe, SplicePlan) else make_plan(recipe)
        donors = {name: self._donors.setdefault(place_of(donor), donor) for name, donor in plan.donors.items()}
        files = donors[plan.recipe.files_donor]
        dtype = self._loading_dtype(plan, files)
        if self._loaded_from != (files.directory, dtype):
            self._load(files, dtype)
        assert self._model is not None
        parameters = stored_tensors(self._model)  # a tied head appears once, as the embedding matrix
        owners = {name: owner for name, owner in plan.owners.items() if name not in plan.layout.carried}
        _check_names(parameters, owners, files)
        for name, owner in owners.items():
            source = _source(owner, donors)
            if self._sources.get(name) != source:
                self._sources.pop(name, None)  # if the copy fails, the tensor's source is unknown
                write_tensor(parameters[name], owner, donors, name)
                self._sources[name] = source
                for donor in donors_of(owner):
                    donors[donor].release(name)
        self._model.generation_config = copy.deepcopy(self._generation_config)
        return self._model.eval()

    def _loading_dtype(self, plan: SplicePlan, files: Checkpoint) -> "torch.dtype | str":
        """Returns the dtype to load in; if the configuration names none, `auto` takes it from the weights."""
        import torch

        if self._dtype != "auto" or any(files.config.get(key) for key in ("dtype", "torch_dtype")):
            return self._dtype
        stored = (entry.dtype for shard in plan.shards for entry in shard.entries)
        dtype: torch.dtype = next(
            found for found in (getattr(torch, DTYPES[name][0]) for name in stored) if found.is_floating_point
        )
        return dtype

    def _load(self, files: Checkpoint, dtype: "torch.dtype | str") -> None:
        self._model, self._loaded_from, self._sources = (
            None,
            None,
            {},
        )  # frees the old model's memory first
        model = load_model(files.directory, dtype=dtype, attn_implementation=self._attn_implementation)
        self._model = model.to(self._device)
        self._generation_config = copy.deepcopy(model.generation_config)
        base = files.base if isinstance(files, MergedCheckpoint) else files
        self._sources = dict.fromkeys(files.tensors, place_of(base))
        self._loaded_from = (files.directory, dtype)


def live_splices(
    recipes: Iterable[Recipe],
    *,
    dtype: "torch.dtype | str" = "auto",
    device: "torch.device | str" = "cpu",
    attn_implementation: str | None = None,
) -> Iterator[tuple[Recipe, "PreTrainedModel"]]:
    """Yields each recipe with its spliced model; the same object is modified from one recipe to the next."""
    splicer = LiveSplicer(dtype=dtype, device=device, attn_implementation=attn_implementation)
    for recipe in recipes:
        yield recipe, splicer.splice(recipe)


def write_tensor(parameter: "torch.Tensor", owner: Owner, donors: Mapping[str, Checkpoint], name: str) -> None:
    """Overwrites one tensor of a model in memory with what a splice would store, rounded to the parameter's dtype.

    Args:
        parameter: the tensor to overwrite.
        owner: a donor, or a blend of donors.
        donors: the checkpoints by name.
        name: the tensor's canonical name.

    Raises:
        ValueError: if a blend is not finite.
    """
    _copy_into(parameter, _owner_bytes(owner, donors, name), _dtype_of(owner, donors, name))


def _check_names(parameters: dict[str, Any], owners: dict[str, Owner], files: Checkpoint) -> None:
    """Rejects a configuration with other tensors: loading the written splice would initialise some at random."""
    for names, others, verb in ((parameters, owners, "expects"), (owners, parameters, "knows no")):
        unmatched = sorted(set(names) - set(others))
        if unmatched:
            raise ValueError(
                f"{files.directory}: the model that its config.json describes {verb} {unmatched[0]!r} "
                f"({len(unmatched)} such), unlike the donors' files; take the files from another donor"
            )


def _source(owner: Owner, donors: dict[str, Checkpoint]) -> Source:
    if isinstance(owner, Blend):
        names = (owner.onto or owner.start, owner.start, owner.end)
        return (*(place_of(donors[name]) for name in names), float(owner.alpha))
    return place_of(donors[owner])


def _dtype_of(owner: Owner, donors: Mapping[str, Checkpoint], name: str) -> str:
    return donors[owner.start if isinstance(owner, Blend) else owner].tensors[name].dtype


def _owner_bytes(owner: Owner, donors: Mapping[str, Checkpoint], name: str) -> Iterator[bytes | memoryview]:
    """Yields a tensor's bytes as in the written splice."""
    if isinstance(owner, Blend):
        from merge.tensors.transplant import blend_bytes

        yield from blend_bytes(donors, owner, name, _dtype_of(owner, donors, name))
    else:
        yield donors[owner].data(name)


def _copy_into(parameter: "torch.Tensor", chunks: Iterable[bytes | memoryview], dtype: str) -> None:
    """Overwrites a parameter, rounding to its dtype as loading would."""
    import torch

    stored = getattr(torch, DTYPES[dtype][0])
    flat = parameter.detach().view(-1)
    position = 0
    for chunk in chunks:
        for first in range(0, len(chunk), CHUNK_BYTES):
            values = torch.frombuffer(bytearray(chunk[first : first + CHUNK_BYTES]), dtype=stored)
            flat[position : position + len(values)].copy_(values)
            position += len(values)
    assert position == flat.numel(), (position, tuple(parameter.shape))
