"""What does a step do to each block? Gradient norm, size of the update and share of changed elements, every N steps.

    grad_norm/BLOCK      ‖g‖₂ over the block's trainable parameters, averaged over processes, before clipping
    update_norm/BLOCK    ‖w' - w‖₂ of the stored weights in this one step, decay and rounding included
    changed_frac/BLOCK   share of the block's trainable elements whose stored value is another after the step

BLOCK is early, mid, late or a region; a block in which nothing trains has no column. The squares of `grad_norm/BLOCK`
add up to the square of the trainer's `grad_norm` in the same row. Stored weights are those that compute: with bf16
under DeepSpeed not its fp32 master copies, so `changed_frac` shows what bf16 rounds away.

Tensors up to `telemetry_elements` are compared whole, larger ones (under ZeRO-3: shards) by that many elements, drawn
with replacement from a fixed seed, the same at every step; sums are scaled up. With 65,536 elements a tensor's share
has a standard error of at most 0.002; the norm of an update that few elements share, as in embeddings of rare tokens,
is known to some percent. The copies live through the optimizer step alone.

Works in one process, DDP and DeepSpeed ZeRO-1 to 3, for weights and LoRA adapters. Known limits: not FSDP, not
parameters offloaded to NVMe.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from models.blocks import BLOCKS, REGIONS
from train.freezing.adapters import PEFT_PREFIX
from train.freezing.engine import zero_stage
from train.freezing.freeze import FreezePlan
from train.running.telemetry_arguments import TelemetryArguments

if TYPE_CHECKING:
    import torch


def is_measured(step: int, every: int, logging_steps: int = 1) -> bool:
    """True for the first logged step at or after each multiple of `every`, so that no measure waits for its row."""
    return step % logging_steps == 0 and step // every > (step - logging_steps) // every


def block_of(name: str, plan: FreezePlan) -> str:
    """Returns the block or region of a parameter by its name in memory, an adapter's being that of its module."""
    region, index, _ = plan.layout.family.place(name.removeprefix(PEFT_PREFIX))
    if region != "llm":
        return region
    assert index is not None
    return plan.partition.block_of(index)


class _Reading(NamedTuple):
    """How gradients (between backward and step) and stored weights are read under one engine."""

    gradient: Callable[["torch.nn.Parameter"], "torch.Tensor | None"]
    weights: Callable[["torch.nn.Parameter"], "torch.Tensor"]
    sharded: bool
    """True where each process reads its own part, so that sums are summed over processes."""


def _reading(stage: int) -> _Reading:
    def whole(parameter: "torch.nn.Parameter") -> "torch.Tensor":
        return parameter.detach().flatten()

    if stage == 0:
        return _Reading(lambda parameter: parameter.grad, whole, False)
    from deepspeed.utils import safe_get_full_grad, safe_get_local_grad

    return _Reading(safe_get_local_grad, _shard, True) if stage == 3 else _Reading(safe_get_full_grad, whole, False)


def _shard(parameter: Any) -> "torch.Tensor":
    """Returns this process's part of a parameter under ZeRO-3, without the padding of the last part."""
    import torch.distributed

    part: torch.Tensor = parameter.ds_tensor.detach().flatten()
    start = part.numel() * torch.distributed.get_rank()
    assert part.numel() * torch.distributed.get_world_size() >= parameter.ds_numel, "parameters lie on NVMe"
    return part[: max(0, parameter.ds_numel - start)]


class Telemetry(TrainerCallback):
    """Measures on some steps and holds the values until the trainer logs them; `WatchedTrainer` drives it.

    It only reads: weights, gradients and every random generator stay as they are.
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
        """True while the step in progress is to be measured."""

    def take(self) -> dict[str, float]:
        """Returns what was measured since the last call."""
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
        self._blocks = [block for block in (*BLOCKS, *REGIONS) if block in present]
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
        """Adds up the squares of each block's gradients, which must be whole: averaged, and not yet clipped."""
        import torch

        assert self._sums is not None
        self._sums.zero_()
        for block, parameter in self._parameters:
            gradient = self._reading.gradient(parameter)
            if gradient is not None:
                norm = torch.linalg.vector_norm(gradient.detach(), dtype=torch.float32)
                self._sums[block, 0] += norm.to(self._sums) ** 2

    def copy_weights(self) -> None:
        """Copies the weights, or the sample of them, that the step is about to change."""
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
        """Compares the weights with their copies, and completes the measures of the step; collective under ZeRO-3."""
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
        """Measures about `engine.step()`, which accelerate calls at the end of backward.

        With DeepSpeed the averaged gradients exist only between `engine.backward` and `engine.step`, where accelerate
        (1.15, `DeepSpeedEngineWrapper.backward`) has no seam; so this one engine's `step` is covered for the while.
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
