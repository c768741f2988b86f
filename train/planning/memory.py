"""How much memory do weights, masters, gradients and optimizer state take in each process? Exact, in bytes.

A single process and DDP keep all of it; ZeRO (Rajbhandari et al. 2020, arXiv 1910.02054) partitions it over N
processes. DeepSpeed 0.19.8's partitioning was read in `runtime/zero/stage_1_and_2.py` and `stage3.py`; tests compare
every formula with the bytes of a live engine. For tensors with n elements of b bytes each:

    AdamW              state 2·Σ n·b of trainable tensors, and a step counter of 4 bytes per tensor
    ZeRO-1, ZeRO-2     full weights; trainable tensors are flattened per parameter group, padded to a multiple of 2N;
                       a process owns P = padded / N: masters 4·P, moments 8·P. After the last backward pass it has
                       the full gradient of every tensor that overlaps its partition, and the padding's
    ZeRO-3             of each tensor ceil(n / N), frozen ones too; masters, moments and gradients the same of what
                       trains; tensors up to the persistence threshold also stay whole, as N·ceil(n / N)

The same groups as Trainer's: one with weight decay and one without (Transformers 5.23, `get_decay_parameter_names`).
"""

import math
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from models.layout import Layout
from train.freezing.freeze import FreezePlan

MASTER_BYTES = 4
MOMENT_BYTES = 4
STEP_BYTES = 4
ALIGNMENT = 2
"""Elements per process to which ZeRO-1 and ZeRO-2 align a group (`nccl_start_alignment_factor`)."""
NO_DECAY = tuple(map(re.compile, ("bias", "layernorm", "rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)")))
"""Trainer's name patterns of parameters without weight decay."""

ROLLOUT, BACKWARD, STEP = "rollout", "backward", "step"
PHASES = (ROLLOUT, BACKWARD, STEP)


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """One parameter of the trainer."""

    name: str
    num_elements: int
    num_bytes: int
    """Bytes per element in memory."""
    trains: bool
    decays: bool


@dataclass(frozen=True, kw_only=True)
class Engine:
    """The training engine and its partitioning; stage 0 without DeepSpeed."""

    num_processes: int = 1
    stage: int = 0
    offload_optimizer: bool = False
    cpu_adam: bool = True
    """With offloading, DeepSpeed's Adam, whose step counters are not tensors."""
    offload_param: bool = False
    persistence_threshold: int = 100_000
    bucket_elements: int = 500_000_000
    num_buckets: int = 1
    max_live_elements: int = 1_000_000_000
    sub_group_elements: int = 1_000_000_000
    one_group: bool = False
    """True if DeepSpeed's configuration defines the optimizer: parameters are not grouped by weight decay."""
    accumulates: bool = False
    """True if a step has several backward passes."""
    accumulation_bytes: int | None = None
    """Bytes per element of DeepSpeed's gradients, if not in the weights' dtype."""
    foreach: bool = False
    """True for non-fused AdamW, whose step makes a copy of the trainable parameters."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """One line of the memory plan."""

    name: str
    num_bytes: int
    phases: tuple[str, ...] = PHASES
    on_cpu: bool = False


def decays(name: str, layout: Layout) -> bool:
    """True if Trainer applies weight decay; a norm with a bias is a LayerNorm, which Trainer recognises by class."""
    if any(pattern.search(name.lower()) for pattern in NO_DECAY):
        return False
    parameter = layout.parameters.get(name)
    is_vector = parameter is not None and len(parameter.shape) == 1
    return not (is_vector and f"{name.removesuffix('.weight')}.bias" in layout.parameters)


def tensors_in_memory(
    plan: FreezePlan,
    *,
    weight_bytes: int,
    adapter_rank: int = 0,
    adapter_bytes: int = 4,
    float32: Collection[str] = (),
) -> list[Tensor]:
    """Returns the parameters in the model's order, without buffers and without those that no model has in memory.

    Args:
        plan: trainable parameters; under LoRA, the weights with an adapter.
        weight_bytes: bytes per element of a weight.
        adapter_rank: LoRA's rank; 0 without LoRA.
        adapter_bytes: bytes per element of an adapter.
        float32: tensors that the checkpoint keeps in fp32 among others; of these, an engine casts those that train.
    """
    trainable = set(plan.trainable)
    tensors = []
    carried = set(plan.layout.carried)
    for parameter in plan.layout:
        if parameter.name in carried or parameter.buffer:
            continue
        trains = parameter.name in trainable
        tensors.append(
            Tensor(
                name=parameter.name,
                num_elements=parameter.num_elements,
                num_bytes=MASTER_BYTES if parameter.name in float32 and not trains else weight_bytes,
                trains=trains and not adapter_rank,
                decays=decays(parameter.name, plan.layout),
            )
        )
        if trains and adapter_rank:
            num_out, num_in = parameter.shape
            tensors += [
                Tensor(
                    name=f"{parameter.name.removesuffix('weight')}{part}.weight",
                    num_elements=adapter_rank * width,
                    num_bytes=adapter_bytes,
                    trains=True,
                    decays=True,
                )
                for part, width in (("lora_A", num_in), ("lora_B", num_out))
            ]
    return tensors


def groups(tensors: Iterable[Tensor], engine: Engine) -> list[list[Tensor]]:
    """Returns the trainable tensors per non-empty parameter group."""
    training = [tensor for tensor in tensors if tensor.trains]
    if engine.one_group:
        return [training]
    parted = ([t for t in training if t.decays], [t for t in training if not t.decays])
    return [group for group in parted if group]


def held_items(tensors: Sequence[Tensor], engine: Engine, rank: int) -> list[Item]:
    """Returns weights, masters, gradients and optimizer state of one process: the exact part of the plan.

    Gradients are those present after a step's last backward pass, in which every trainable tensor took part.
    """
    if engine.stage == 3:
        return _held_by_stage_3(tensors, engine)
    if engine.stage in (1, 2):
        return _held_by_stages_1_and_2(tensors, engine, rank)
    training = [tensor for tensor in tensors if tensor.trains]
    num_bytes = sum(t.num_elements * t.num_bytes for t in training)
    return [
        Item(name="weights", num_bytes=sum(t.num_elements * t.num_bytes for t in tensors)),
        Item(name="gradients", num_bytes=num_bytes, phases=(BACKWARD, STEP)),
        Item(name="optimizer state", num_bytes=2 * num_bytes + STEP_BYTES * len(training)),
    ]


def _held_by_stages_1_and_2(tensors: Sequence[Tensor], engine: Engine, rank: int) -> list[Item]:
    width = trained_width(tensors)
    weights = sum(t.num_elements * t.num_bytes for t in tensors if not t.trains)
    owned = gradients = 0
    for group in groups(tensors, engine):
        sizes = [tensor.num_elements for tensor in group]
        size = partition_elements(sizes, engine.num_processes)
        weights += width * size * engine.num_processes
        owned += size
        padding = min(size, max(0, (rank + 1) * size - sum(sizes)))
        gradients += sum(elements_in_partition(sizes, size, rank)) + padding
    num_flat = len(groups(tensors, engine))
    items = [Item(name="weights", num_bytes=weights), *_optimizer_items(owned, num_flat, engine)]
    if engine.offload_optimizer:
        return [*items, Item(name="gradients", num_bytes=MASTER_BYTES * owned, on_cpu=True)]
    if engine.accumulation_bytes not in (None, width):  # accumulated in one flat tensor
        assert engine.accumulation_bytes is not None
        width, gradients = engine.accumulation_bytes, owned
    return [*items, Item(name="gradients", num_bytes=width * gradients, phases=(BACKWARD, STEP))]


def _held_by_stage_3(tensors: Sequence[Tensor], engine: Engine) -> list[Item]:
    width = trained_width(tensors)
    shard = {tensor.name: math.ceil(tensor.num_elements / engine.num_processes) for tensor in tensors}
    persistent = [t for t in tensors if t.num_elements <= engine.persistence_threshold]
    owned = sum(shard[tensor.name] for tensor in tensors if tensor.trains)
    num_flat = sum(len(part) for part in sub_groups(tensors, engine))
    weights = sum(shard[tensor.name] * tensor.num_bytes for tensor in tensors)
    whole = sum(shard[tensor.name] * tensor.num_bytes for tensor in persistent) * engine.num_processes
    items = [
        Item(name="weights", num_bytes=weights, on_cpu=engine.offload_param),
        Item(name="weights kept whole", num_bytes=whole),
        *_optimizer_items(owned, num_flat, engine),
        Item(
            name="gradients",
            num_bytes=(engine.accumulation_bytes or width) * owned,
            on_cpu=engine.offload_optimizer,
        ),
    ]
    if engine.offload_optimizer:
        items.append(Item(name="gradients in fp32", num_bytes=MASTER_BYTES * owned, on_cpu=True))
    return items


def _optimizer_items(num_owned: int, num_flat: int, engine: Engine) -> list[Item]:
    """Returns masters and moments for a number of elements and flat tensors."""
    on_cpu = engine.offload_optimizer
    counters = 0 if on_cpu and engine.cpu_adam else STEP_BYTES * num_flat
    return [
        Item(name="master weights", num_bytes=MASTER_BYTES * num_owned, on_cpu=on_cpu),
        Item(name="optimizer state", num_bytes=2 * MOMENT_BYTES * num_owned + counters, on_cpu=on_cpu),
    ]


def passing_items(tensors: Sequence[Tensor], engine: Engine, rank: int) -> list[Item]:
    """Returns the engine's temporary memory: buckets, copies, gathered weights.

    From the code, not measured: sizes at the peak of each phase.
    """
    training = [tensor for tensor in tensors if tensor.trains]
    trained_bytes = sum(t.num_elements * t.num_bytes for t in training)
    if engine.stage == 0:
        items = []
        if engine.num_processes > 1:  # accelerate leaves DDP's gradient_as_bucket_view off: gradients are stored twice
            items.append(Item(name="DDP buckets", num_bytes=trained_bytes))
        if engine.foreach:
            items.append(Item(name="step's copy of what trains", num_bytes=trained_bytes, phases=(STEP,)))
        return items
    width = trained_width(tensors)
    bucket = width * engine.bucket_elements
    held = {item.name: item for item in held_items(tensors, engine, rank)}
    largest = _largest_flat(tensors, engine)
    items = []
    gradient_width = engine.accumulation_bytes or width
    is_flat_fp32 = engine.stage < 3 and gradient_width == MASTER_BYTES != width
    if not engine.offload_optimizer and not is_flat_fp32:
        passing = MASTER_BYTES + (gradient_width if gradient_width != MASTER_BYTES else 0)
        items.append(Item(name="gradients in fp32", num_bytes=passing * largest, phases=(STEP,)))
    if engine.stage == 3:
        live = min(engine.max_live_elements, sum(tensor.num_elements for tensor in tensors))
        items.append(Item(name="reduce bucket", num_bytes=bucket))
        items.append(Item(name="gathered weights", num_bytes=width * live, phases=(BACKWARD,)))
        return items
    items.append(Item(name="reduce bucket", num_bytes=engine.num_buckets * bucket, phases=(BACKWARD,)))
    if engine.stage == 1:
        items.append(Item(name="whole gradients", num_bytes=trained_bytes, phases=(BACKWARD,)))
    if engine.offload_optimizer:
        largest_tensor = width * max(tensor.num_elements for tensor in training)
        low = width * held["gradients"].num_bytes // MASTER_BYTES
        accumulated = low if engine.accumulates else 0
        items.append(Item(name="offload buffers", num_bytes=largest_tensor))
        items.append(Item(name="offload buffers on the CPU", num_bytes=largest_tensor + low + accumulated, on_cpu=True))
    elif engine.accumulates and engine.stage == 2 and engine.accumulation_bytes in (None, width):
        items.append(Item(name="gradients of one pass", num_bytes=held["gradients"].num_bytes, phases=(BACKWARD,)))
    return items


def partition_elements(sizes: Sequence[int], num_processes: int) -> int:
    """Returns the elements of a flat group that one process owns under ZeRO-1 and ZeRO-2."""
    multiple = ALIGNMENT * num_processes
    return math.ceil(sum(sizes) / multiple) * multiple // num_processes


def elements_in_partition(sizes: Sequence[int], partition: int, rank: int) -> list[int]:
    """Returns the sizes of the tensors that overlap a process's partition."""
    begin, end, offset, inside = rank * partition, (rank + 1) * partition, 0, []
    for size in sizes:
        if offset < end and offset + size > begin:
            inside.append(size)
        offset += size
    return inside


def sub_groups(tensors: Iterable[Tensor], engine: Engine) -> list[list[int]]:
    """Returns, for each group under ZeRO-3, the elements of the flat tensors of its optimizer step."""
    parted = []
    for group in groups(tensors, engine):
        flat = [0]
        for position, tensor in enumerate(group):
            flat[-1] += math.ceil(tensor.num_elements / engine.num_processes)
            if flat[-1] >= engine.sub_group_elements and position < len(group) - 1:
                flat.append(0)
        parted.append(flat)
    return parted


def trained_width(tensors: Iterable[Tensor]) -> int:
    """Returns the bytes per element of trainable parameters in the engine."""
    return next(tensor.num_bytes for tensor in tensors if tensor.trains)


def _largest_flat(tensors: Sequence[Tensor], engine: Engine) -> int:
    if engine.stage == 3:
        return max(max(flat) for flat in sub_groups(tensors, engine))
    return max(
        partition_elements([tensor.num_elements for tensor in group], engine.num_processes)
        for group in groups(tensors, engine)
    )


def total_bytes(items: Iterable[Item], *, phase: str | None = None, on_cpu: bool = False) -> int:
    """Returns the bytes in one phase (all phases if None), on the GPU or in main memory."""
    return sum(item.num_bytes for item in items if item.on_cpu == on_cpu and (phase is None or phase in item.phases))
