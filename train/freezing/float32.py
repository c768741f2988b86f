"""How do tensors that a family keeps in fp32 stay exact in an engine of another dtype? For DeepSpeed with bf16.

Some families store a few tensors in fp32 among others in bf16 (`Family.float32`). DeepSpeed (0.19.8) casts every
parameter to its engine's dtype. So once the engine is built:

- **Frozen** ones get the checkpoint's own fp32 values back. The engine never changes them.
- **Trained** ones are computed with in bf16, as all others are. The fp32 master copies, which the engine makes from the
  rounded values, are set to the checkpoint's own; `final/` is written from the masters, without a rounding.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from models.checkpoint import Checkpoint, kept_float32
from models.loading import put_back_float32

if TYPE_CHECKING:
    import torch


class KeptFloat32(TrainerCallback):
    """Puts a checkpoint's fp32 tensors back into the engine before the first step of every attempt."""

    def __init__(self, start: Checkpoint) -> None:
        self._start = start

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        if args.deepspeed_plugin is None:
            return
        put_back_float32(model, self._start, chosen=lambda parameter: not parameter.requires_grad)
        if state.global_step == 0:  # a continued run has its masters from the engine's own state
            for name, parameter in _rounded(model, self._start):
                _set_master(parameter, self._start.tensor(name))


def trained_masters(trainer: Trainer, start: Checkpoint) -> dict[str, "torch.Tensor"]:
    """Returns the fp32 masters of the trained tensors that the start stores in fp32 among others; collective."""
    if trainer.args.deepspeed_plugin is None:
        return {}
    from deepspeed.utils import safe_get_full_fp32_param

    found = {}
    for name, parameter in _rounded(trainer.model, start):
        master = safe_get_full_fp32_param(parameter)
        assert master is not None, f"the engine has no fp32 master of {name}"
        found[name] = master.detach().cpu().reshape(start.tensors[name].shape)
    return found


def _rounded(model: Any, start: Checkpoint) -> Iterator[tuple[str, Any]]:
    """Yields the trained parameters whose fp32 values the engine has rounded."""
    import torch

    wanted = set(kept_float32(start))
    for name, parameter in model.named_parameters():
        if name in wanted and parameter.requires_grad and parameter.dtype != torch.float32:
            yield name, parameter


def _set_master(parameter: Any, value: "torch.Tensor") -> None:
    """Sets a trained parameter's fp32 master; each process has a part."""
    import torch
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

    if not hasattr(parameter, "ds_tensor"):
        safe_set_full_fp32_param(parameter, value.to(parameter.device))
        return
    size = parameter.ds_tensor.numel()
    padded = torch.zeros(size * parameter.ds_zero_partition_world_size)
    padded[: value.numel()] = value.flatten()
    first = size * parameter.ds_zero_partition_rank
    safe_set_local_fp32_param(parameter, padded[first : first + size].to(parameter.ds_tensor.device))


@dataclass(frozen=True, kw_only=True)
class WithMasters(Checkpoint):
    """A saved checkpoint, with some tensors taken from fp32 masters."""

    masters: Mapping[str, "torch.Tensor"] = field(repr=False)

    def data(self, name: str) -> memoryview:
        import torch

        if name not in self.masters:
            return super().data(name)
        return memoryview(self.masters[name].contiguous().view(torch.uint8).numpy().tobytes())


def with_masters(saved: Checkpoint, masters: Mapping[str, "torch.Tensor"]) -> Checkpoint:
    """Returns a saved checkpoint whose tensors of these names are the fp32 masters."""
    if not masters:
        return saved
    tensors = {
        name: replace(stored, dtype="F32", num_bytes=4 * masters[name].numel()) if name in masters else stored
        for name, stored in saved.tensors.items()
    }
    return WithMasters(
        directory=saved.directory, family=saved.family, config=saved.config, tensors=tensors, masters=masters
    )
