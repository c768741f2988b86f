"""Does the engine keep optimizer state only for trainable parameters? For one process, DDP, DeepSpeed ZeRO and LoRA.

Private names of the engines are used only here: DeepSpeed 0.19.8 keeps the parameters of each group in
`bit16_groups` (ZeRO-1, ZeRO-2) or `fp16_groups` (ZeRO-3), and the moments in the state of the `optimizer` it wraps.
A parameter's place in the flat fp32 weights is in its `_hp_mapping` (ZeRO-1, ZeRO-2) or in ZeRO-3's optimizer.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.checkpoint import Checkpoint, kept_float32
from models.layout import Parameter, first_reading_layer
from models.shards import DTYPES
from tracking.processes import num_processes
from train.freezing.freeze import FreezePlan

if TYPE_CHECKING:
    import torch
    from transformers import Trainer, TrainingArguments

MAX_ALIGNMENT = 64
"""Maximum padding of a flat group or a tensor, in elements per process."""
ROUNDED_AWAY_FRAC = 0.98
"""Share of bf16 weights with standard deviation 0.02 unchanged by ten AdamW steps at 1e-6 (tests/train/freezing)."""
EXACT_DTYPES = {"F32": ("float32",), "BF16": ("float32", "bfloat16"), "F16": ("float32", "float16")}
"""Stored dtype -> dtypes that represent all of its values exactly."""


def zero_stage(training: "TrainingArguments") -> int:
    """Returns the ZeRO stage, 0 without DeepSpeed."""
    plugin = training.deepspeed_plugin
    return int(plugin.zero_stage) if plugin is not None else 0


def open_engine(training: "TrainingArguments") -> None:
    """Initialises DeepSpeed's process group before a model is loaded, which ZeRO-3 partitions immediately.

    Accelerate (1.15) does so on a GPU only.
    """
    if zero_stage(training):
        import deepspeed
        import torch

        deepspeed.init_distributed(dist_backend=torch.distributed.get_backend(), auto_mpi_discovery=False)


def keeps_gradients(training: "TrainingArguments") -> bool:
    """True for engines that reuse a parameter's last gradient if a step has none (DeepSpeed 0.19.8)."""
    plugin = training.deepspeed_plugin
    if plugin is None:
        return False
    offload = plugin.deepspeed_config.get("zero_optimization", {}).get("offload_optimizer", {})
    return zero_stage(training) == 3 or offload.get("device", "none") != "none"


def engine_settings(training: "TrainingArguments") -> dict[str, Any]:
    """Returns the engine settings that affect a result: the number of processes and DeepSpeed's configuration."""
    settings: dict[str, Any] = {"num_processes": num_processes()}
    if training.deepspeed and isinstance(training.deepspeed, str):
        settings["deepspeed"] = json.loads(Path(training.deepspeed).read_text(encoding="utf-8"))
    return settings


def check_precision(
    start: Checkpoint, frozen: tuple[str, ...], training: "TrainingArguments", dtype: str | None, *, lora: bool
) -> None:
    """Rejects precisions in which frozen tensors would be rounded, or updates would be lost.

    Args:
        start: the checkpoint that training starts from.
        frozen: names of the frozen tensors.
        training: `bf16`, `fp16` and the DeepSpeed configuration.
        dtype: dtype of the weights in memory; `auto` is the stored one.
        lora: True if adapters (kept in fp32) are trained instead of the weights.

    Raises:
        ValueError: with a suggested setting.
    """
    stored_dtypes = {start.tensors[name].dtype for name in start.tensors}
    engine_casts = bool(training.deepspeed) and training.bf16
    kept = set(kept_float32(start))
    if training.fp16:
        raise ValueError("fp16 is not supported: its loss scaling skips steps; use bf16: true or neither")
    for name in frozen:
        stored = start.tensors[name].dtype
        held = "bfloat16" if engine_casts else DTYPES[stored][0] if dtype in (None, "auto") else dtype
        held = DTYPES[stored][0] if name in kept else held  # train/freezing/float32.py
        if held not in EXACT_DTYPES.get(stored, (DTYPES[stored][0],)):
            cause = "DeepSpeed with bf16: true" if engine_casts else f"dtype {dtype}"
            raise ValueError(
                f"{cause} would round the frozen tensor {name!r}, which {start.directory} stores as "
                f"{DTYPES[stored][0]}; " + ("set bf16: false" if engine_casts else "use dtype float32")
            )
    held_dtypes = {DTYPES[stored][0] if dtype in (None, "auto") else dtype for stored in stored_dtypes}
    if held_dtypes & {"bfloat16", "float16"} and not lora and not engine_casts:
        raise ValueError(
            f"weights in bfloat16 without fp32 master copies: at a learning rate of 1e-6, {ROUNDED_AWAY_FRAC:.0%} of "
            "the elements would not move at all; use dtype float32 (with bf16: true for the arithmetic), or DeepSpeed "
            "with bf16: true, which keeps masters"
        )


def check_batches(training: "TrainingArguments", plan: FreezePlan, *, some_without_images: bool) -> None:
    """Rejects a combination that DDP cannot train: a vision tower unused in some steps, under reentrant checkpointing.

    Without reentrant checkpointing, TRL lets DDP find unused weights; with it (TRL 1.16), a step must use all weights.
    """
    reentrant = training.gradient_checkpointing and (training.gradient_checkpointing_kwargs or {}).get("use_reentrant")
    trains = any(plan.layout.parameters[name].region in ("vision", "projector") for name in plan.trainable)
    if num_processes() > 1 and not zero_stage(training) and reentrant and trains and some_without_images:
        raise ValueError(
            "DDP with reentrant gradient checkpointing and a vision tower that trains needs an image in every prompt; "
            'use gradient_checkpointing_kwargs: {"use_reentrant": false}, always_freeze: [vision, projector], or '
            "abilities that have images"
        )


def check_shared_keys(training: "TrainingArguments", start: Checkpoint, plan: FreezePlan, *, lora: bool) -> None:
    """Rejects reentrant checkpointing where it would lose gradients: of keys and values that later layers share.

    Transformers (5.23) passes them from layer to layer beside the hidden states. Reentrant checkpointing computes them
    without a gradient, so the layers that own them would learn from their own attention alone. TRL (1.16) switches
    to it for LoRA under ZeRO-3.

    Raises:
        ValueError: with a suggested setting.
    """
    first_reader = first_reading_layer(start.config, start.family)
    if first_reader is None or not training.gradient_checkpointing:
        return
    forced = lora and zero_stage(training) == 3
    if not forced and not (training.gradient_checkpointing_kwargs or {}).get("use_reentrant"):
        return
    below = [name for name in plan.trainable if _feeds_layer(plan.layout.parameters[name], first_reader)]
    if below:
        cause = (
            "LoRA under ZeRO-3 uses reentrant gradient checkpointing" if forced else "reentrant gradient checkpointing"
        )
        instead = (
            "gradient_checkpointing: false" if forced else 'gradient_checkpointing_kwargs: {"use_reentrant": false}'
        )
        raise ValueError(
            f"{cause} would lose the gradient that decoder layers from {first_reader} on send through the keys "
            f"and values of earlier ones, to {below[0]!r} and others; use {instead}"
        )


def _feeds_layer(parameter: Parameter, layer: int) -> bool:
    if parameter.region == "llm":
        return parameter.index is not None and parameter.index < layer
    return parameter.region in ("vision", "projector", "embed", "ple")


@dataclass(frozen=True, kw_only=True)
class OptimizerReport:
    """The optimizer's state, over all processes."""

    num_trainable_elements: int
    num_state_elements: int
    """Elements of Adam's first moment: the trainable ones plus the engine's padding."""

    @property
    def num_padding_elements(self) -> int:
        return self.num_state_elements - self.num_trainable_elements


def inspect_optimizer(trainer: "Trainer") -> OptimizerReport:
    """Counts the optimizer's state at the end of a step, and checks that it exists only for trainable parameters.

    Collective: all processes must call it.

    Raises:
        RuntimeError: if the optimizer contains a frozen parameter, lacks a trainable one, or has a wrong number of
            moments.
    """
    import torch

    trainable = {id(p): (name, p) for name, p in trainer.model.named_parameters() if p.requires_grad}
    num_trainable = sum(_num_elements(parameter) for _, parameter in trainable.values())
    stage = zero_stage(trainer.args)
    wrapper = trainer.model_wrapped.optimizer if stage else trainer.optimizer
    inner = inner_optimizer(trainer)
    groups = _engine_groups(wrapper, stage) if stage else [group["params"] for group in inner.param_groups]
    held = [parameter for group in groups for parameter in group]
    for parameter in held:
        if id(parameter) not in trainable:
            shape = list(getattr(parameter, "ds_shape", parameter.shape))
            raise RuntimeError(f"the optimizer holds a frozen parameter of the shape {shape}")
    absent = set(trainable) - {id(parameter) for parameter in held}
    if absent:
        raise RuntimeError(f"the optimizer lacks {trainable[absent.pop()][0]}, which is trainable")
    moments = sum(state["exp_avg"].numel() for state in inner.state.values() if "exp_avg" in state)
    if stage:
        total = torch.tensor(moments, device=trainer.args.device)
        torch.distributed.all_reduce(total)
        moments = int(total.item())
        slack = MAX_ALIGNMENT * num_processes() * (len(groups) if stage < 3 else len(trainable))
        complete = num_trainable <= moments <= num_trainable + slack
    else:  # a parameter without a gradient so far has no moments
        complete = moments <= num_trainable
    if not complete:
        raise RuntimeError(f"the optimizer holds moments for {moments} elements; {num_trainable} are trainable")
    return OptimizerReport(num_trainable_elements=num_trainable, num_state_elements=moments)


def inner_optimizer(trainer: "Trainer") -> "torch.optim.Optimizer":
    """Returns the optimizer that an engine or Accelerate has wrapped; from the start of training on."""
    wrapper = trainer.model_wrapped.optimizer if zero_stage(trainer.args) else trainer.optimizer
    inner: torch.optim.Optimizer = wrapper.optimizer
    return inner


@dataclass(frozen=True, kw_only=True)
class Fragment:
    """What this process's optimizer holds of a tensor."""

    name: str
    weights: "torch.Tensor"
    """A flat view into the weights that the optimizer updates."""
    first: int
    """Index of its first element in the flat tensor."""


def master_fragments(trainer: "Trainer") -> Iterator[Fragment]:
    """Yields a view of the optimizer's weights for each trainable tensor that this process has a part of."""
    stage = zero_stage(trainer.args)
    for name, parameter in trainer.model.named_parameters():
        if not parameter.requires_grad:
            continue
        if stage == 3:
            partition, _ = parameter._z3_optimizer._get_fp32_opt_state_partition(parameter, release_swap_buffers=True)
            first = parameter.ds_tensor.numel() * parameter.ds_zero_partition_rank
            weights = partition[: max(0, parameter.ds_numel - first)]  # without the last partition's padding
        elif stage:
            mapping = parameter._hp_mapping
            if mapping is None:  # another process has the whole tensor
                continue
            weights, first = mapping.hp_fragment, mapping.lp_fragment_address.start
        else:
            weights, first = parameter.data.view(-1), 0
        yield Fragment(name=name, weights=weights, first=first)


def _engine_groups(optimizer: Any, stage: int) -> list[list["torch.nn.Parameter"]]:
    groups: list[list[torch.nn.Parameter]] = optimizer.fp16_groups if stage == 3 else optimizer.bit16_groups
    return groups


def _num_elements(parameter: "torch.nn.Parameter") -> int:
    return int(getattr(parameter, "ds_numel", parameter.numel()))
