"""What does one arm require? Memory in each phase, disk, and tokens, from its freeze plan and its recipe."""

from dataclasses import dataclass, replace
from typing import Any

from models.checkpoint import Checkpoint, kept_float32, usual_dtype
from models.layout import WIDTHS, Layout, layer_kind
from models.shards import DTYPES
from train.freezing.freeze import FreezePlan
from train.planning.activations import (
    Layer,
    Precision,
    Tokens,
    flowing_bytes,
    input_bytes,
    layers_of,
    stack_bytes,
)
from train.planning.disk import Disk, plan_disk
from train.planning.ends import ends_bytes, patches_bytes, projector_bytes, tile_bytes
from train.planning.memory import (
    BACKWARD,
    MASTER_BYTES,
    PHASES,
    ROLLOUT,
    Engine,
    Item,
    Tensor,
    held_items,
    passing_items,
    tensors_in_memory,
    total_bytes,
)
from train.planning.recipe import Recipe

GIB, MIB = 2**30, 2**20
CONTEXT_BYTES = GIB
"""CUDA context and library work space: an assumption until measured on a GPU."""
PIXEL_BYTES = 4
SLIDING = "sliding_attention"
"""Kind of layers with a sliding window, as `layer_types` names it."""
KEYS = "self_attn.k_proj.weight"


@dataclass(frozen=True, kw_only=True)
class Model:
    """The model properties that a plan needs, from `config.json` and, if available, the checkpoint."""

    layout: Layout
    num_heads: int
    num_vision_heads: int
    pixels_a_patch: int
    """Number of values per image patch in the processor's output."""
    patches_a_token: int
    stored_bytes: int
    """Size of the weights on disk."""
    stored_width: int
    """Bytes per element on disk, of most tensors."""
    float32: frozenset[str] = frozenset()
    """Tensors that the checkpoint keeps in fp32 among others."""
    state_elements: int = 0
    """Elements of the states that all layers with linear attention keep of one sequence."""
    windows: tuple[int | None, ...] = ()
    """Sliding window of each decoder layer's attention, None for one that sees everything; empty if all do."""

    @property
    def hidden_size(self) -> int:
        return next(p.shape[1] for p in self.layout if p.region == "embed")

    @property
    def vocabulary(self) -> int:
        return next(p.shape[0] for p in self.layout if p.region == "embed")

    def cache_elements(self, num_tokens: int) -> int:
        """Returns the elements of keys and values that the decoder keeps of a sequence.

        Layers that read the keys and values of an earlier one keep none, those with a sliding window no more than it.
        """
        total = 0
        for parameter in self.layout:
            if parameter.region == "llm" and parameter.rest == KEYS and not parameter.carried:
                assert parameter.index is not None
                window = self.windows[parameter.index] if self.windows else None
                total += 2 * parameter.shape[0] * (num_tokens if window is None else min(window, num_tokens))
        return total


def describe_model(layout: Layout, config: dict[str, Any], checkpoint: Checkpoint | None) -> Model:
    """Reads a model's configuration and, for a checkpoint, its headers."""
    text, vision = config.get("text_config") or config, config.get("vision_config") or {}
    merge = vision.get("pooling_kernel_size") or vision.get("spatial_merge_size", 2)
    side = vision.get("patch_size", 14)
    side = side[0] if isinstance(side, list) else side
    num_frames = 1 if layout.family.tiled or "pooling_kernel_size" in vision else vision.get("temporal_patch_size", 2)
    if layout.family.tiled:
        merge = round(1 / config.get("downsample_ratio", 0.5))
    kinds = [layer_kind(config, layout.family, layer) for layer in range(layout.num_layers)]
    windows = [text["sliding_window"] if kind.startswith(SLIDING) else None for kind in kinds]
    dtype = config.get("dtype") or config.get("torch_dtype") or text.get("dtype") or "float32"
    width, stored = WIDTHS[dtype], layout.num_elements * WIDTHS[dtype]
    if checkpoint is not None:
        stored = sum(tensor.num_bytes for tensor in checkpoint.tensors.values())
        width = DTYPES[usual_dtype(checkpoint)][1]
    return Model(
        layout=layout,
        num_heads=text["num_attention_heads"],
        num_vision_heads=vision.get("num_heads") or vision.get("num_attention_heads", 1),
        pixels_a_patch=3 * num_frames * side**2,
        patches_a_token=merge**2 if layout.num_vision_blocks else 0,
        stored_bytes=stored,
        stored_width=width,
        float32=frozenset(kept_float32(checkpoint)) if checkpoint is not None else frozenset(),
        state_elements=_state_elements(layout, text),
        windows=tuple(windows) if any(windows) else (),
    )


def _state_elements(layout: Layout, text: dict[str, Any]) -> int:
    """Returns the elements of a sequence's states: the convolution's, and the recurrent one, key size x value width."""
    total = 0
    for parameter in layout:
        if parameter.region == "llm" and parameter.rest == "linear_attn.conv1d.weight":
            keys, size = (text[f"linear_{name}"] for name in ("num_key_heads", "key_head_dim"))
            total += parameter.num_elements + size * (parameter.shape[0] - 2 * keys * size)
    return total


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Length of every prompt: an assumption, since prompts are not read."""

    prompt_tokens: int
    image_tokens: int
    """Image tokens of the prompt."""


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """The requirements of one arm; memory is that of the process with the largest share."""

    plan: FreezePlan
    items: tuple[Item, ...]
    num_adapter_elements: int
    disk: Disk
    num_tokens: int | None

    def phase_bytes(self, phase: str) -> int:
        return total_bytes(self.items, phase=phase)

    @property
    def peak_bytes(self) -> int:
        return max(self.phase_bytes(phase) for phase in PHASES)

    @property
    def peak_phase(self) -> str:
        return max(PHASES, key=self.phase_bytes)

    @property
    def cpu_bytes(self) -> int:
        return total_bytes(self.items, on_cpu=True)


def forecast(plan: FreezePlan, model: Model, recipe: Recipe, lengths: Lengths, *, gpu_bytes: int) -> Forecast:
    """Returns the requirements of one arm.

    Args:
        plan: trainable parameters; under LoRA, the weights with an adapter.
        model: the start checkpoint's model.
        recipe: settings of the run.
        lengths: assumed prompt lengths.
        gpu_bytes: memory of one GPU, of which colocated vLLM takes a share.
    """
    width = weight_width(model, recipe)
    adapter_width = width if recipe.engine_bf16 or recipe.engine.stage == 3 else WIDTHS["float32"]
    tensors = tensors_in_memory(
        plan,
        weight_bytes=width,
        adapter_rank=recipe.adapter_rank,
        adapter_bytes=adapter_width,
        float32=model.float32,
    )
    engine = recipe.engine
    rank = max(range(engine.num_processes), key=lambda rank: total_bytes(held_items(tensors, engine, rank)))
    items = [*held_items(tensors, engine, rank), *passing_items(tensors, engine, rank)]
    if recipe.beta and not recipe.adapter_rank:  # LoRA's reference is the model without its adapters
        items.append(Item(name="reference model", num_bytes=_reference_bytes(tensors, engine)))
    items += _pass_items(plan, model, recipe, lengths, tensors)
    items += _rollout_items(tensors, model, recipe, lengths, gpu_bytes=gpu_bytes)
    items.append(Item(name="CUDA context (assumed)", num_bytes=CONTEXT_BYTES))
    length = lengths.prompt_tokens + recipe.completion_tokens
    return Forecast(
        plan=plan,
        items=tuple(item for item in items if item.num_bytes),
        num_adapter_elements=sum(t.num_elements for t in tensors if t.trains) if recipe.adapter_rank else 0,
        disk=plan_disk(
            tensors,
            engine,
            head_elements=model.vocabulary * model.hidden_size if plan.layout.tied else 0,
            adapters=recipe.adapter_rank > 0,
            stored_bytes=model.stored_bytes,
            num_steps=recipe.num_steps,
            save_steps=recipe.save_steps,
            num_kept=recipe.num_kept,
            keep_trajectory=recipe.keep_trajectory,
            kept_tensors=[
                (parameter.num_elements, WIDTHS["float32"] if parameter.name in model.float32 else model.stored_width)
                for parameter in map(plan.layout.parameters.__getitem__, plan.trainable)
            ],
        ),
        num_tokens=None if recipe.num_sequences is None else recipe.num_sequences * length,
    )


def weight_width(model: Model, recipe: Recipe) -> int:
    """Returns the bytes of one weight in memory."""
    if recipe.engine_bf16:
        return WIDTHS["bfloat16"]
    return WIDTHS[recipe.dtype] if recipe.dtype else model.stored_width


def precisions(recipe: Recipe, width: int) -> tuple[Precision, Precision]:
    """Returns the precision of the decoder and that of the vision tower.

    Under autocast the decoder's residual stream has the embeddings' dtype, the tower's that of its first convolution.
    """
    if not recipe.autocast:
        plain = Precision(stream_bytes=width, compute_bytes=width)
        return plain, plain
    compute = WIDTHS["bfloat16"]
    copies = width != compute
    return (
        Precision(stream_bytes=width, compute_bytes=compute, autocast=True, weight_copies=copies),
        Precision(stream_bytes=compute, compute_bytes=compute, autocast=True, weight_copies=copies),
    )


def _reference_bytes(tensors: list[Tensor], engine: Engine) -> int:
    """Returns the bytes of a second model: complete, or partitioned under ZeRO-3 (TRL 1.16, `prepare_deepspeed`)."""
    if engine.stage == 3:
        kept = [item for item in held_items(tensors, engine, 0) if item.name.startswith("weights")]
        return sum(item.num_bytes for item in kept)
    return sum(tensor.num_elements * tensor.num_bytes for tensor in tensors)


def _pass_items(plan: FreezePlan, model: Model, recipe: Recipe, lengths: Lengths, tensors: list[Tensor]) -> list[Item]:
    """Returns the memory of one forward and backward pass."""
    trainable, rank = set(plan.trainable), recipe.adapter_rank
    training_regions = {plan.layout.parameters[name].region for name in trainable}
    precision, vision_precision = precisions(recipe, weight_width(model, recipe))
    length = lengths.prompt_tokens + recipe.completion_tokens
    tokens = Tokens(
        num_tokens=recipe.sequences_per_pass * length,
        sequence_length=length,
        attention=recipe.attention,
        lora_dropout=recipe.model_config.lora_dropout if rank else 0.0,
    )
    layers = layers_of(plan.layout, "llm", model.num_heads, trainable, adapter_rank=rank)
    reached = bool(training_regions & {"embed", "ple", "vision", "projector"})  # what feeds the first layer
    kept, recomputed = _kept_bytes(layers, tokens, precision, recipe, reached=reached)
    kept += ends_bytes(tokens, precision, layer=layers[0], norm_trains="norm" in training_regions)
    items = [Item(name="activations, decoder", num_bytes=kept, phases=(BACKWARD,))]
    num_patches = recipe.sequences_per_pass * lengths.image_tokens * model.patches_a_token
    if training_regions & {"vision", "projector"} and num_patches:
        patches = replace(tokens, num_tokens=num_patches, sequence_length=0, masked=False)
        kept, in_tower = _vision_bytes(plan, model, recipe, vision_precision, patches)
        items.append(Item(name="activations, vision", num_bytes=kept, phases=(BACKWARD,)))
        recomputed = max(recomputed, in_tower)
    head_trains = bool(training_regions & ({"embed", "head"} if plan.layout.tied else {"head"})) and not rank
    head = MASTER_BYTES * model.vocabulary * model.hidden_size if head_trains else 0
    hidden = MASTER_BYTES * tokens.num_tokens * model.hidden_size
    copies = _copied_bytes(tensors, model) if precision.weight_copies and recipe.checkpointing else 0
    # The peak is either in the log-probabilities, forward (with autocast's copies) or backward (with fp32 gradients),
    # or in a layer; a tied head's gradient is kept until that of the embeddings is computed.
    loss = tile_bytes(tokens, precision) + max(copies, hidden + head)
    in_layer = recomputed + flowing_bytes(layers, tokens, precision) + (head if plan.layout.tied else 0)
    items.append(Item(name="work space of the pass", num_bytes=max(loss, in_layer), phases=(BACKWARD,)))
    return items


def _kept_bytes(
    layers: list[Layer], tokens: Tokens, precision: Precision, recipe: Recipe, *, reached: bool
) -> tuple[int, int]:
    """Returns the bytes that a stack saves, and those for recomputing one of its layers."""
    whole = stack_bytes(layers, tokens, precision, reached=reached)
    if not recipe.checkpointing:
        return sum(whole), 0
    inputs = [input_bytes(layer, tokens, precision) for layer, kept in zip(layers, whole, strict=True) if kept]
    return sum(inputs), max(whole)


def _vision_bytes(
    plan: FreezePlan, model: Model, recipe: Recipe, precision: Precision, patches: Tokens
) -> tuple[int, int]:
    """Returns the bytes that tower and projector save, and those for recomputing one block."""
    trainable = set(plan.trainable)
    blocks = layers_of(plan.layout, "vision", model.num_vision_heads, trainable, adapter_rank=recipe.adapter_rank)
    embeds = any(p.region == "vision" and p.index is None and p.name in trainable for p in plan.layout)
    kept, recomputed = _kept_bytes(blocks, patches, precision, recipe, reached=embeds)
    shape = {"num_patches": patches.num_tokens, "patch_width": blocks[0].width}
    if embeds:
        kept += patches_bytes(precision, pixels_a_patch=model.pixels_a_patch, **shape)
    projector = [parameter for parameter in plan.layout if parameter.region == "projector"]
    return kept + projector_bytes(projector, trainable, precision, **shape), recomputed


def _copied_bytes(tensors: list[Tensor], model: Model) -> int:
    """Returns the bytes of autocast's bf16 copies of trainable matrices (only those) during a forward pass."""
    lookups = {p.name for p in model.layout if p.region in ("embed", "head") or "embed_tokens" in p.name}
    num_copied = sum(t.num_elements for t in tensors if t.trains and t.decays and t.name not in lookups)
    return WIDTHS["bfloat16"] * num_copied


def _rollout_items(
    tensors: list[Tensor], model: Model, recipe: Recipe, lengths: Lengths, *, gpu_bytes: int
) -> list[Item]:
    """Returns the memory of sampling on this GPU: vLLM's share, or Transformers' cache and passes."""
    num_sequences = recipe.sequences_per_generation
    num_patches = num_sequences * lengths.image_tokens * model.patches_a_token
    pictures = num_patches * model.pixels_a_patch * PIXEL_BYTES
    items = [Item(name="pictures of one generation", num_bytes=pictures, phases=(ROLLOUT, BACKWARD))]
    if recipe.vllm_mode == "colocate":
        phases = (ROLLOUT,) if recipe.vllm_sleeps else PHASES
        share = int(recipe.vllm_share * gpu_bytes)
        return [*items, Item(name="vLLM's share", num_bytes=share, phases=phases)]
    if recipe.vllm_mode is not None:
        return items
    precision, vision_precision = precisions(recipe, weight_width(model, recipe))
    length = lengths.prompt_tokens + recipe.completion_tokens
    # Rotary embedding leaves keys in the stream's dtype, and the cache stores values in the keys' (Transformers 5.23).
    a_sequence = model.cache_elements(length) * precision.stream_bytes
    cache = num_sequences * (a_sequence + MASTER_BYTES * model.state_elements)
    items.append(Item(name="KV cache", num_bytes=cache, phases=(ROLLOUT,)))
    prompts = Tokens(num_tokens=num_sequences * lengths.prompt_tokens, sequence_length=lengths.prompt_tokens)
    patches = Tokens(num_tokens=num_patches, sequence_length=0, masked=False)
    passing = [flowing_bytes(_frozen_layers(model, "llm"), prompts, precision)]
    if num_patches:
        passing.append(flowing_bytes(_frozen_layers(model, "vision"), patches, vision_precision))
    logits = 3 * 4 * num_sequences * model.vocabulary  # the last token's, in fp32: logits, sorted, probabilities
    items.append(Item(name="work space of sampling", num_bytes=max(passing) + logits, phases=(ROLLOUT,)))
    if recipe.engine.stage == 3 and recipe.gathers_for_generation:
        whole = sum(tensor.num_elements * tensor.num_bytes for tensor in tensors)
        items.append(Item(name="weights gathered to sample", num_bytes=whole, phases=(ROLLOUT,)))
    elif precision.weight_copies:
        items.append(Item(name="bf16 copies of weights", num_bytes=_copied_bytes(tensors, model), phases=(ROLLOUT,)))
    return items


def _frozen_layers(model: Model, region: str) -> list[Layer]:
    return layers_of(model.layout, region, model.num_heads, set())
