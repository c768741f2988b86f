"""Which settings determine a run's requirements? Read from its configuration files.

The configuration of train.grpo is read as by train.grpo (an unknown key is an error), but without building the trainer
arguments, which would require the planned GPU. DeepSpeed's JSON and the launcher's settings are interpreted as by
Transformers 5.23 and accelerate, including `auto`.
"""

import json
import shlex
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields, make_dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.layout import WIDTHS
from models.loading import DEFAULT_ATTENTION
from train.freezing.freeze import FreezeArguments
from train.planning.memory import Engine
from train.running.arguments import GRPO_CONFIG, MODEL_CONFIG, OUR_ARGUMENTS
from train.trajectory.arguments import TrajectoryArguments, check_adapters

if TYPE_CHECKING:
    from trl import ModelConfig

OPTIMIZERS = ("adamw_torch_fused", "adamw_torch")


@dataclass(frozen=True, kw_only=True)
class Launch:
    """The settings from the launcher's command line and configuration."""

    num_processes: int | None = None
    deepspeed: str | dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The settings of one run that determine its requirements."""

    num_gpus: int
    engine: Engine
    engine_bf16: bool
    """True if DeepSpeed casts the weights to bf16 and keeps fp32 masters."""
    autocast: bool
    dtype: str | None
    """Dtype of the weights in memory; None: as stored."""
    attention: str
    sequences_per_pass: int
    """Per process."""
    passes_per_step: int
    passes_per_generation: int
    num_iterations: int
    completion_tokens: int
    num_steps: int | None
    checkpointing: bool
    beta: float
    vllm_mode: str | None
    vllm_share: float
    vllm_sleeps: bool
    prompt_limit: int | None
    """Tokens of the longest prompt that is not filtered, or that vLLM accepts."""
    gathers_for_generation: bool
    save_steps: int | None
    """Steps between checkpoints; None: no checkpoints."""
    num_kept: int | None
    """Number of checkpoints kept; None: all."""
    keep_trajectory: int
    """Steps between those of which the changed elements are kept; 0: none."""
    model_config: "ModelConfig" = field(repr=False)

    @property
    def adapter_rank(self) -> int:
        return int(self.model_config.lora_r) if self.model_config.use_peft else 0

    @property
    def sequences_per_generation(self) -> int:
        """Sequences that a process samples at a time."""
        return self.sequences_per_pass * self.passes_per_generation

    @property
    def num_sequences(self) -> int | None:
        """Sequences of the run, counted once per pass over them."""
        if self.num_steps is None:
            return None
        return self.num_steps * self.passes_per_step * self.sequences_per_pass * self.num_gpus


def training_fields() -> type:
    """Returns the fields of train.grpo's arguments as a dataclass without checks or derived values.

    Without those of FreezeArguments and ModelConfig, which are parsed separately, and `deepspeed`, a flag of the plan.
    """
    from trl import GRPOConfig

    merged: dict[str, Any] = {}
    for source in (GRPOConfig, *(ours for ours in OUR_ARGUMENTS if ours is not FreezeArguments)):
        for entry in fields(source):
            if entry.init and entry.name != "deepspeed":
                required = entry.default is MISSING and entry.default_factory is MISSING
                copied: Any = field(default=None if required else entry.default, metadata=entry.metadata)
                if entry.default_factory is not MISSING:
                    copied = field(default_factory=entry.default_factory, metadata=entry.metadata)
                merged[entry.name] = (entry.name, str | None if required else entry.type, copied)
    return make_dataclass("TrainingFields", list(merged.values()), kw_only=True)


PLANNED_MODEL = replace(MODEL_CONFIG, required={}, checks={})
"""A plan needs no checkpoint where `layout_config` stands in for it."""
TRAINING_FIELDS = replace(
    GRPO_CONFIG,
    required={},
    load_with=training_fields,
    without=("deepspeed",),
    also=tuple(ours for ours in OUR_ARGUMENTS if ours is not FreezeArguments),
)


def make_recipe(
    training: Any,
    model_config: "ModelConfig",
    *,
    launch: Launch,
    num_gpus: int | None,
    deepspeed: str | None,
    hidden_size: int,
) -> Recipe:
    """Combines configuration, launcher and command line; later ones take precedence.

    Raises:
        ValueError: for settings whose requirements are unknown, or that TRL would reject.
    """
    num_gpus = num_gpus or launch.num_processes or 1
    if training.optim not in OPTIMIZERS:
        raise ValueError(f"optim {training.optim!r} is not planned; expected one of {', '.join(OPTIMIZERS)}")
    if training.fp16 or training.fsdp:
        raise ValueError("fp16 and fsdp are not planned; expected bf16, alone, with DDP or with DeepSpeed")
    bf16 = training.bf16 is not False  # TRL's default, None, means bf16
    config = deepspeed or launch.deepspeed
    accumulates = training.gradient_accumulation_steps > 1
    if config:
        values = read_deepspeed(config)
        engine_bf16 = _enabled(values.get("bf16", {}), bf16)
        engine = deepspeed_engine(
            values, num_processes=num_gpus, bf16=engine_bf16, hidden_size=hidden_size, accumulates=accumulates
        )
    else:
        engine_bf16 = False
        engine = Engine(num_processes=num_gpus, accumulates=accumulates, foreach=training.optim == "adamw_torch")
    saves = training.save_strategy == "steps"
    if training.save_strategy not in ("steps", "no"):
        raise ValueError(f"save_strategy {training.save_strategy!r} is not planned; expected steps or no")
    trajectory = TrajectoryArguments(keep_trajectory=training.keep_trajectory)
    check_adapters(trajectory, lora=bool(model_config.use_peft))
    return Recipe(
        num_gpus=num_gpus,
        engine=engine,
        engine_bf16=engine_bf16,
        autocast=bf16 and not config,
        dtype=None if model_config.dtype in (None, "auto") else model_config.dtype,
        attention=model_config.attn_implementation or DEFAULT_ATTENTION,
        sequences_per_pass=training.per_device_train_batch_size,
        passes_per_step=training.gradient_accumulation_steps,
        passes_per_generation=_passes_per_generation(training, num_gpus),
        num_iterations=training.num_iterations,
        completion_tokens=training.max_completion_length,
        num_steps=training.max_steps if training.max_steps > 0 else None,
        checkpointing=bool(training.gradient_checkpointing),
        beta=training.beta,
        vllm_mode=training.vllm_mode if training.use_vllm else None,
        vllm_share=training.vllm_gpu_memory_utilization,
        vllm_sleeps=training.vllm_enable_sleep_mode,
        prompt_limit=_prompt_limit(training),
        gathers_for_generation=training.ds3_gather_for_generation,
        save_steps=int(training.save_steps) if saves else None,
        num_kept=training.save_total_limit,
        keep_trajectory=trajectory.keep_trajectory,
        model_config=model_config,
    )


def _prompt_limit(training: Any) -> int | None:
    limits = [training.max_prompt_tokens]
    if training.use_vllm and training.vllm_max_model_length:
        limits.append(training.vllm_max_model_length - training.max_completion_length)
    return min((limit for limit in limits if limit is not None), default=None)


def _passes_per_generation(training: Any, num_gpus: int) -> int:
    """Returns TRL's `steps_per_generation`, derived as `GRPOConfig.__post_init__` (1.16) derives it."""
    a_pass = training.per_device_train_batch_size * num_gpus
    if training.generation_batch_size:
        if training.generation_batch_size % a_pass:
            raise ValueError(
                f"generation_batch_size {training.generation_batch_size} is no multiple of the {a_pass} sequences that "
                f"{num_gpus} GPUs take at a time"
            )
        num_passes = training.generation_batch_size // a_pass
    else:
        num_passes = training.steps_per_generation or training.gradient_accumulation_steps
    if num_passes * a_pass % training.num_generations:
        raise ValueError(
            f"{num_passes * a_pass} sequences a generation ({num_gpus} GPUs x {training.per_device_train_batch_size} "
            f"sequences x {num_passes} passes) are no multiple of num_generations {training.num_generations}"
        )
    return int(num_passes)


def read_deepspeed(config: str | dict[str, Any]) -> dict[str, Any]:
    """Reads DeepSpeed's configuration."""
    if isinstance(config, dict):
        return config
    try:
        values = json.loads(Path(config).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"deepspeed {config}: no such file") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"deepspeed {config} is not readable as JSON: {error}") from error
    if not isinstance(values, dict) or "zero_optimization" not in values:
        raise ValueError(f"deepspeed {config} has no zero_optimization; expected a ZeRO stage of 1, 2 or 3")
    return values


def deepspeed_engine(
    values: dict[str, Any], *, num_processes: int, bf16: bool, hidden_size: int, accumulates: bool
) -> Engine:
    """Returns the engine for this configuration; `auto` values as in Transformers."""
    zero = values.get("zero_optimization", {})
    stage = zero.get("stage", 0)
    if stage not in (1, 2, 3):
        raise ValueError(f"zero_optimization.stage is {stage!r}; expected 1, 2 or 3")
    if _enabled(values.get("fp16", {}), False):
        raise ValueError("fp16 of DeepSpeed is not planned; expected bf16")

    def number(key: str, default: int, automatic: int) -> int:
        value = zero.get(key, default)
        return automatic if value == "auto" else int(value)

    accumulation = {"fp32": 4, "bf16": 2, "fp16": 2}.get(values.get("data_types", {}).get("grad_accum_dtype") or "")
    if stage == 1 and bf16 and accumulation == WIDTHS["float32"]:
        raise ValueError("grad_accum_dtype fp32 under ZeRO-1 is another engine (BF16_Optimizer); expected ZeRO-2")
    overlaps = zero.get("overlap_comm")
    return Engine(
        num_processes=num_processes,
        stage=stage,
        offload_optimizer=_offloads(zero, "offload_optimizer"),
        cpu_adam=bool(values.get("zero_force_ds_cpu_optimizer", True)),
        offload_param=stage == 3 and _offloads(zero, "offload_param"),
        persistence_threshold=number("stage3_param_persistence_threshold", 100_000, 10 * hidden_size),
        bucket_elements=number("reduce_bucket_size", 500_000_000, hidden_size * hidden_size),
        num_buckets=2 if overlaps and stage < 3 else 1,
        max_live_elements=number("stage3_max_live_parameters", 1_000_000_000, 1_000_000_000),
        sub_group_elements=number("sub_group_size", 1_000_000_000, 1_000_000_000),
        one_group="optimizer" in values,
        accumulates=accumulates,
        accumulation_bytes=accumulation,
    )


def _enabled(section: dict[str, Any], automatic: bool) -> bool:
    value = section.get("enabled", False)
    return automatic if value == "auto" else bool(value)


def _offloads(zero: dict[str, Any], key: str) -> bool:
    return bool((zero.get(key) or {}).get("device", "none") != "none")


def read_launcher(launcher: str | None) -> Launch:
    """Parses a study's launcher: `accelerate launch`, its `--config_file`, or `torchrun`."""
    words = shlex.split(launcher) if launcher else []
    options = {
        word.lstrip("-").replace("-", "_").partition("=")[0]: word.partition("=")[2] or following
        for word, following in pairwise([*words, ""])
        if word.startswith("--")
    }
    found: dict[str, Any] = _accelerate_file(options["config_file"]) if "config_file" in options else {}
    deepspeed = found.get("deepspeed_config") or None
    if deepspeed:
        deepspeed = deepspeed.get("deepspeed_config_file") or _plugin_settings(deepspeed)
    deepspeed = options.get("deepspeed_config_file") or deepspeed
    if "zero_stage" in options and not deepspeed:
        deepspeed = _plugin_settings(options)
    count = options.get("num_processes") or found.get("num_processes")
    if "nproc_per_node" in options:
        count = int(options["nproc_per_node"]) * int(options.get("nnodes", 1))
    return Launch(num_processes=int(count) if count else None, deepspeed=deepspeed)


def _accelerate_file(path: str) -> dict[str, Any]:
    import yaml

    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (FileNotFoundError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"launcher: {path} is missing or not YAML; expected a configuration of accelerate") from error
    return values or {}


def _plugin_settings(options: dict[str, Any]) -> dict[str, Any]:
    """Returns the DeepSpeed configuration that accelerate builds from its own options."""
    zero = {"stage": int(options["zero_stage"])}
    offload = {
        part: {"device": options[f"{part}_device"]}
        for part in ("offload_optimizer", "offload_param")
        if options.get(f"{part}_device")
    }
    return {"zero_optimization": {**zero, **offload}, "bf16": {"enabled": "auto"}}


def config_keys(path: str | None) -> Sequence[str]:
    """Returns the top-level keys of a YAML file; none if it cannot be read."""
    import yaml

    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8")) if path else None
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        return ()  # reported when the file is parsed
    return tuple(values) if isinstance(values, dict) else ()
