"""How do single elements of a trained tensor stay as they are? In one process, under DDP and under ZeRO.

- **Gradients.** Those of frozen elements are set to zero as soon as they are accumulated, before an engine reduces
  them. So the norm that clipping sees, and both moments of AdamW, are about trained elements alone.
- **Weight decay.** AdamW multiplies every element by 1 - lr · weight_decay before its update. For the time of a step
  the optimizer's own decay is off, and trained elements alone are multiplied, in the fp32 weights that the optimizer
  holds: under ZeRO its part of the flat master copies.

Without a gradient and without moments, AdamW's update is exactly zero. The first step checks the moments, the end of
training compares the optimizer's fp32 weights with the start, and every saved checkpoint is compared as well.

Cost: one bit per element in every process. The moments are kept for whole tensors.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from models.checkpoint import Checkpoint
from tracking.processes import any_process
from train.freezing.elements import ElementMask
from train.freezing.engine import Fragment, inner_optimizer, master_fragments, zero_stage

if TYPE_CHECKING:
    import torch

DECOUPLED = ("adamw_torch", "adamw_torch_fused")
"""Values of `optim` whose weight decay multiplies the weights."""


def check_elements(training: TrainingArguments, *, lora: bool) -> None:
    """Rejects what a mask of elements cannot be combined with.

    Raises:
        ValueError: with a suggested setting.
    """
    if lora:
        raise ValueError(
            "train_elements needs the weights themselves to train, and LoRA trains adapters beside them; "
            "use use_peft: false"
        )
    plugin = training.deepspeed_plugin
    own = plugin is not None and "optimizer" in plugin.deepspeed_config
    optim = str(getattr(training.optim, "value", training.optim))
    if own or (training.weight_decay and optim not in DECOUPLED):
        found = "an optimizer in the DeepSpeed configuration" if own else f"optim {optim} with weight decay"
        raise ValueError(
            f"train_elements can leave elements out of the weight decay of {' and '.join(DECOUPLED)}, found {found}; "
            "use one of these, " + ("and leave out the configuration's optimizer" if own else "or set weight_decay: 0")
        )
    if (
        plugin is not None
        and plugin.deepspeed_config.get("zero_optimization", {}).get("offload_optimizer", {}).get("device") == "nvme"
    ):
        raise ValueError("train_elements cannot reach optimizer state on NVMe; use offload_optimizer device: cpu")


class _Bits:
    """A tensor's mask on the devices that it is needed on."""

    def __init__(self, packed: "torch.Tensor", size: int) -> None:
        self._packed = packed
        self._size = size

    def trained(self, device: "torch.device", first: int = 0, count: int | None = None) -> "torch.Tensor":
        """Returns which elements train, flat, as booleans; of `count` elements from `first` on."""
        import torch

        if self._packed.device != device:
            self._packed = self._packed.to(device)
        count = self._size if count is None else count
        start = first // 8
        packed = self._packed[start : (first + count + 7) // 8]
        places = torch.arange(8, dtype=torch.uint8, device=device)
        flat = ((packed[:, None] >> places) & 1).flatten().bool()
        return flat[first - 8 * start :][:count]


def mask_gradients(model: "torch.nn.Module", mask: ElementMask) -> None:
    """Sets the gradients of frozen elements to zero, from now on.

    Must be called before an engine or a DDP wrapper is built: hooks run in the order in which they were registered.
    """
    for name, parameter in model.named_parameters():
        if name in mask.bits:
            parameter.register_post_accumulate_grad_hook(_zeroing(_bits(mask, name)))


def _bits(mask: ElementMask, name: str) -> _Bits:
    import torch

    return _Bits(torch.from_numpy(mask.bits[name].copy()), mask.sizes[name])


def _zeroing(bits: _Bits) -> Callable[["torch.Tensor"], None]:
    def zero(parameter: "torch.Tensor") -> None:
        gradient = parameter.grad
        if gradient is not None:
            trained = bits.trained(gradient.device).view(gradient.shape)
            gradient.masked_fill_(~trained, 0)

    return zero


@dataclass(frozen=True, kw_only=True)
class _Part:
    """A part of the optimizer's fp32 weights."""

    fragment: Fragment
    bits: _Bits | None
    """None if every element of the tensor trains."""

    def trained(self) -> "torch.Tensor | None":
        if self.bits is None:
            return None
        return self.bits.trained(self.fragment.weights.device, self.fragment.first, self.fragment.weights.numel())


class MaskedElements(TrainerCallback):
    """Leaves frozen elements out of the weight decay; at the end, compares the optimizer's weights with the start."""

    def __init__(self, trainer: Trainer, start: Checkpoint, mask: ElementMask) -> None:
        self._trainer = trainer
        self._start = start
        self._mask = mask
        self._parts: dict[int, list[_Part]] = {}
        """The storage of the optimizer's weights -> their parts."""
        self._decays: list[float] = []
        self._checked = False

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        for fragment in master_fragments(self._trainer):
            bits = _bits(self._mask, fragment.name) if fragment.name in self._mask.bits else None
            self._parts.setdefault(_place(fragment.weights), []).append(_Part(fragment=fragment, bits=bits))
        optimizer = inner_optimizer(self._trainer)
        optimizer.register_step_pre_hook(self._decay_trained)
        optimizer.register_step_post_hook(self._give_back)

    def _decay_trained(self, optimizer: "torch.optim.Optimizer", *_: Any) -> None:
        """Multiplies the trained elements of the weights that this step is about."""
        import torch

        self._decays = [group.get("weight_decay", 0.0) for group in optimizer.param_groups]
        for group, decay in zip(optimizer.param_groups, self._decays, strict=True):
            if not decay:
                continue
            factor = 1 - float(group["lr"]) * decay
            for weights in group["params"]:
                # Torch's AdamW leaves out what has no gradient.
                if weights.grad is None:
                    continue
                parts = self._parts[_place(weights)]
                for part in parts:
                    trained = part.trained()
                    own = part.fragment.weights
                    with torch.no_grad():
                        own.mul_(factor if trained is None else torch.where(trained, factor, 1.0).to(own.dtype))
            group["weight_decay"] = 0.0

    def _give_back(self, optimizer: "torch.optim.Optimizer", *_: Any) -> None:
        for group, decay in zip(optimizer.param_groups, self._decays, strict=True):
            if decay:
                group["weight_decay"] = decay

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._checked:
            return
        self._checked = True
        optimizer = inner_optimizer(self._trainer)
        moments = [own["exp_avg"] for own in optimizer.state.values() if "exp_avg" in own]
        num_moving = self._over_processes(sum(int(own.count_nonzero()) for own in moments))
        num_trained = sum(self._mask.counts.values())
        if num_moving > num_trained:
            raise RuntimeError(
                f"{num_moving:,} elements have a moment after the first step; train_elements leaves {num_trained:,}"
            )

    def _over_processes(self, number: int) -> int:
        import torch

        if not zero_stage(self._trainer.args):
            return number
        total = torch.tensor(number, device=self._trainer.args.device)
        torch.distributed.all_reduce(total)
        return int(total.item())

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        changed = next(
            (name for parts in self._parts.values() for part in parts if (name := self._changed(part))), None
        )
        if any_process(changed is not None, args.device):
            raise RuntimeError(
                "frozen elements of the optimizer's fp32 weights changed, the first are in "
                f"{changed or 'another process'}"
            )

    def _changed(self, part: _Part) -> bool:
        """True if frozen elements of this part differ from the start in a bit."""
        import torch

        trained = part.trained()
        if trained is None:
            return False
        own, first = part.fragment.weights.detach().cpu(), part.fragment.first
        before = self._start.tensor(part.fragment.name).flatten()[first : first + own.numel()].to(own.dtype)
        width = {torch.float32: torch.int32, torch.bfloat16: torch.int16}[own.dtype]
        differs = before.view(width) != own.view(width)
        return bool((differs & ~trained.cpu()).any())


def _place(weights: "torch.Tensor") -> int:
    return weights.untyped_storage().data_ptr()
