"""What would a splice say? One model in memory that becomes one splice after the other, none of them written to disk.

    for recipe, model in live_splices(recipes):
        ...

The donors' files stay on disk under memory maps. The model is loaded once, with the configuration of the recipe's
`files` donor; from one splice to the next only the tensors whose source changes are copied into it, a chunk at a time.
So the memory is that of one model, and each splice equals what `load_model` gives of the one `merge.splice` writes,
parameter by parameter.

Known limits: the model is lent until the next splice, and its weights are not to be changed meanwhile. Donors must stay
as they are. One process; no DeepSpeed ZeRO-3, which cuts the tensors up.
"""

import copy
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merge.recipes.plan import SplicePlan, make_plan
from merge.recipes.recipe import Blend, Owner, Recipe, donors_of
from models.checkpoint import Checkpoint
from models.loading import load_model
from models.shards import DTYPES

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

CHUNK_BYTES = 2**24
Source = tuple[Any, ...]
"""What a tensor's bytes depend on: a donor's folder, or a blend's folders and factor."""


class LiveSplicer:
    """One model that becomes the splices it is asked for, in any order."""

    def __init__(
        self,
        *,
        dtype: "torch.dtype | str" = "auto",
        device: "torch.device | str" = "cpu",
        attn_implementation: str | None = None,
    ) -> None:
        """Loads nothing yet.

        Args:
            dtype: as for `load_model`; `auto` is what the written splice would be loaded in.
            device: where the model is to stand.
            attn_implementation: as for `load_model`.
        """
        self._dtype = dtype
        self._device = device
        self._attn_implementation = attn_implementation
        self._donors: dict[Path, Checkpoint] = {}
        self._model: PreTrainedModel | None = None
        self._loaded_from: tuple[Path, Any] | None = None
        self._generation_config: Any = None
        self._sources: dict[str, Source] = {}

    def splice(self, recipe: Recipe | SplicePlan) -> "PreTrainedModel":
        """Returns the model as the recipe has it, in evaluation mode; the same object as before wherever it can be.

        Raises:
            ValueError: for a recipe that does not fit its donors, a blend that is not finite, or a configuration that
                describes other tensors than the donors hold.
        """
        plan = recipe if isinstance(recipe, SplicePlan) else make_plan(recipe)
        donors = {
            name: self._donors.setdefault(donor.directory.resolve(), donor) for name, donor in plan.donors.items()
        }
        files = donors[plan.recipe.files_donor]
        dtype = self._loading_dtype(plan, files)
        if self._loaded_from != (files.directory, dtype):
            self._load(files, dtype)
        assert self._model is not None
        parameters = dict(self._model.named_parameters())  # a tied head stands in it once, as the embedding matrix
        _check_names(parameters, plan, files)
        for name, owner in plan.owners.items():
            source = _source(owner, donors)
            if self._sources.get(name) != source:
                self._sources.pop(name, None)  # whatever happens while it is copied, it is known to be neither
                _copy_into(parameters[name], _owner_bytes(owner, donors, name), _dtype_of(owner, donors, name))
                self._sources[name] = source
                for donor in donors_of(owner):
                    donors[donor].release(name)
        self._model.generation_config = copy.deepcopy(self._generation_config)
        return self._model.eval()

    def _loading_dtype(self, plan: SplicePlan, files: Checkpoint) -> "torch.dtype | str":
        """Returns the dtype to load in: a configuration that names none leaves `auto` to the weights."""
        import torch

        if self._dtype != "auto" or any(files.config.get(key) for key in ("dtype", "torch_dtype")):
            return self._dtype
        stored = (entry.dtype for shard in plan.shards for entry in shard.entries)
        dtype: torch.dtype = next(
            found for found in (getattr(torch, DTYPES[name][0]) for name in stored) if found.is_floating_point
        )
        return dtype

    def _load(self, files: Checkpoint, dtype: "torch.dtype | str") -> None:
        self._model, self._loaded_from, self._sources = None, None, {}  # before the next one takes its memory
        model = load_model(files.directory, dtype=dtype, attn_implementation=self._attn_implementation)
        self._model = model.to(self._device)
        self._generation_config = copy.deepcopy(model.generation_config)
        self._sources = dict.fromkeys(files.tensors, (files.directory,))
        self._loaded_from = (files.directory, dtype)


def live_splices(
    recipes: Iterable[Recipe],
    *,
    dtype: "torch.dtype | str" = "auto",
    device: "torch.device | str" = "cpu",
    attn_implementation: str | None = None,
) -> Iterator[tuple[Recipe, "PreTrainedModel"]]:
    """Yields each recipe with its spliced model, which is the same object, changed, from one to the next."""
    splicer = LiveSplicer(dtype=dtype, device=device, attn_implementation=attn_implementation)
    for recipe in recipes:
        yield recipe, splicer.splice(recipe)


def _check_names(parameters: dict[str, Any], plan: SplicePlan, files: Checkpoint) -> None:
    """Refuses a configuration of other tensors: loading the written splice would leave some of them random."""
    for names, others, verb in ((parameters, plan.owners, "expects"), (plan.owners, parameters, "knows no")):
        unmatched = sorted(set(names) - set(others))
        if unmatched:
            raise ValueError(
                f"{files.directory}: the model that its config.json describes {verb} {unmatched[0]!r} "
                f"({len(unmatched)} such), unlike the donors' files; take the files from another donor"
            )


def _source(owner: Owner, donors: dict[str, Checkpoint]) -> Source:
    if isinstance(owner, Blend):
        names = (owner.onto or owner.start, owner.start, owner.end)
        return (*(donors[name].directory for name in names), float(owner.alpha))
    return (donors[owner].directory,)


def _dtype_of(owner: Owner, donors: dict[str, Checkpoint], name: str) -> str:
    return donors[owner.start if isinstance(owner, Blend) else owner].tensors[name].dtype


def _owner_bytes(owner: Owner, donors: dict[str, Checkpoint], name: str) -> Iterator[bytes | memoryview]:
    """Yields a tensor's bytes as the written splice would hold them."""
    if isinstance(owner, Blend):
        from merge.tensors.transplant import blend_bytes

        yield from blend_bytes(donors, owner, name, _dtype_of(owner, donors, name))
    else:
        yield donors[owner].data(name)


def _copy_into(parameter: "torch.Tensor", chunks: Iterable[bytes | memoryview], dtype: str) -> None:
    """Overwrites a parameter, rounded to its dtype as loading would."""
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
