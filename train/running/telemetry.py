"""How does a step change each block? Gradient norm, update norm and share of changed elements, every N steps.

    grad_norm/BLOCK      ‖g‖₂ over the block's trainable parameters, averaged over processes, before clipping
    update_norm/BLOCK    ‖w' - w‖₂ of the stored weights in this step, including weight decay and rounding
    changed_frac/BLOCK   share of the block's trainable elements whose stored value changes in the step

BLOCK is early, mid, late or a region; a fully frozen block has no column. The squares of `grad_norm/BLOCK` sum to the
square of the trainer's `grad_norm` in the same row. Stored weights are those used in the forward pass: with bf16 under
DeepSpeed not the fp32 master copies, so `changed_frac` shows updates lost to bf16 rounding.

Tensors up to `telemetry_elements` are compared completely, larger ones (under ZeRO-3: shards) by that many elements,
sampled with replacement from a fixed seed, the same at every step; sums are scaled up. With 65,536 elements a tensor's
share has a standard error of at most 0.002; the norm of a sparse update, as in embeddings of rare tokens, is known to a
few percent. The copies exist only during the optimizer step.

Works with one process, DDP and DeepSpeed ZeRO-1 to 3, for weights and LoRA adapters. Known limits: no FSDP, no
parameters offloaded to NVMe.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from models.adapters.reading import PEFT_PREFIX
from models.blocks import ALL_REGIONS, BLOCKS
from train.freezing.engine import zero_stage
from train.freezing.freeze import FreezePlan
from train.running.telemetry_arguments import TelemetryArguments

if TYPE_CHECKING:
    import torch


def is_measured(step: int, every: int, logging_steps: int = 1) -> bool:
    """True for the first logged step at or after each multiple of `every`, so that each measurement has a row."""
    return step % logging_steps == 0 and step // every > (step - logging_steps) // every


def block_of(name: str, plan: FreezePlan) -> str:
    """Returns the block or region of a parameter, by its in-memory name; an adapter has its module's block."""
    region, index, _ = plan.layout.family.place(name.removeprefix(PEFT_PREFIX))
    if region != "llm":
        return region
    assert index is not None
    return plan.partition.block_of(index)


class _Reading(NamedTuple):
    """Access to gradients (between backward and step) and stored weights under one engine."""

    gradient: Callable[["torch.nn.Parameter"], "torch.Tensor | None"]
    weights: Callable[["torch.nn.Parameter"], "torch.Tensor"]
    sharded: bool
    """True if each process reads its own part, so that sums must be reduced over processes."""


def _reading(stage: int) -> _Reading:
    def whole(parameter: "torch.nn.Parameter") -> "torch.Tensor":
        return parameter.detach().flatten()

    if stage == 0:
        return _Reading(lambda parameter: parameter.grad, whole, False)
    from deepspeed.utils import safe_get_full_grad, safe_get_local_grad

    return _Reading(safe_get_local_grad, _shard, True) if stage == 3 else _Reading(safe_get_full_grad, whole, False)


def _shard(parameter: Any) -> "torch.Tensor":
    """Returns this process's shard of a parameter under ZeRO-3, without the padding of the last shard."""
    import torch.distributed

    part: torch.Tensor = parameter.ds_tensor.detach().flatten()
    start = part.numel() * torch.distributed.get_rank()
    assert part.numel() * torch.distributed.get_world_size() >= parameter.ds_numel, "parameters lie on NVMe"
    return part[: max(0, parameter.ds_numel - start)]


class Telemetry(TrainerCallback):
    """Measures in some steps and keeps the values until the trainer logs them; driven by `WatchedTrainer`.

    Read-only: weights, gradients and random generators are unchanged.
    """

    def __init__(self, plan: FreezePlan, arguments: TelemetryArguments) -> None:
        self._plan = plan
        self._arguments = arguments
        self._reading = _reading(0)
        self._stage = 0
        self._blocks: list[str] = []
        self._parameters: list[tuple[int, torch.nn.Parameter]] = []
        self._snapshot: list[tuple[torch.Tensor | None, torch.Tensor]] = []
        self._sums: torch.Tensor | None = None
        self._values: dict[str, float] = {}
        self.due = False
        """True while the current step is measured."""

    def take(self) -> dict[str, float]:
        """Returns the measurements since the last call."""
        values, self._values = self._values, {}
        return values

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        import torch

        self._stage = zero_stage(args)
        self._reading = _reading(self._stage)
        training = [(block_of(n, self._plan), p) for n, p in model.named_parameters() if p.requires_grad]
        present = {block for block, _ in training}
        self._blocks = [block for block in (*BLOCKS, *ALL_REGIONS) if block in present]
        self._parameters = [(self._blocks.index(block), parameter) for block, parameter in training]
        # Per block: squares of gradients, squares of updates, changed elements, elements.
        self._sums = torch.zeros(len(self._blocks), 4, dtype=torch.float64, device=args.device)

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        every = self._arguments.telemetry_steps
        logging_steps = int(state.logging_steps) if args.logging_strategy == "steps" else 1
        self.due = every > 0 and is_measured(state.global_step + 1, every, logging_steps)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self.due and self._stage == 0:
            self.copy_weights()

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self.due and self._stage == 0:
            self.compare_weights()

    def measure_gradients(self) -> None:
        """Sums the squares of each block's gradients, which must be averaged and not yet clipped."""
        import torch

        assert self._sums is not None
        self._sums.zero_()
        for block, parameter in self._parameters:
            gradient = self._reading.gradient(parameter)
            if gradient is not None:
                norm = torch.linalg.vector_norm(gradient.detach(), dtype=torch.float32)
                self._sums[block, 0] += norm.to(self._sums) ** 2

    def copy_weights(self) -> None:
        """Copies the weights, or a sample of them, before the step."""
        import torch

        num_chosen = self._arguments.telemetry_elements
        self._snapshot = []
        for position, (_, parameter) in enumerate(self._parameters):
            weights = self._reading.weights(parameter)
            if weights.numel() <= num_chosen:
                self._snapshot.append((None, weights.clone()))
                continue
            device = weights.device
            generator = torch.Generator(device).manual_seed(position)
            chosen = torch.randint(weights.numel(), (num_chosen,), generator=generator, device=device)
            self._snapshot.append((chosen, weights[chosen]))

    def compare_weights(self) -> None:
        """Compares the weights with their copies and completes the step's measurements; collective under ZeRO-3."""
        import torch

        assert self._sums is not None
        for (block, parameter), (chosen, before) in zip(self._parameters, self._snapshot, strict=True):
            weights = self._reading.weights(parameter)
            after = weights if chosen is None else weights[chosen]
            scale = weights.numel() / max(1, after.numel())
            update = torch.linalg.vector_norm(after.double() - before.double())
            self._sums[block, 1] += scale * update.to(self._sums) ** 2
            self._sums[block, 2] += scale * (after != before).sum().to(self._sums)
            self._sums[block, 3] += weights.numel()
        self._snapshot = []
        if self._reading.sharded:
            torch.distributed.all_reduce(self._sums)
        self._values = {}
        for name, (gradients, updates, changed, elements) in zip(self._blocks, self._sums.tolist(), strict=True):
            self._values[f"grad_norm/{name}"] = gradients**0.5
            self._values[f"update_norm/{name}"] = updates**0.5
            self._values[f"changed_frac/{name}"] = changed / elements

    @contextmanager
    def around_engine_step(self, engine: Any) -> Iterator[None]:
        """Measures around `engine.step()`, which accelerate calls at the end of backward.

        With DeepSpeed the averaged gradients exist only between `engine.backward` and `engine.step`, where accelerate
        (1.15, `DeepSpeedEngineWrapper.backward`) has no hook; so this engine's `step` is temporarily replaced.
        """
        step = engine.step

        def measured_step(*args: Any, **kwargs: Any) -> Any:
            self.measure_gradients()
            self.copy_weights()
            result = step(*args, **kwargs)
            self.compare_weights()
            return result

        engine.step = measured_step
        try:
            yield
        finally:
            del engine.step
