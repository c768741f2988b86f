"""Makes the plan: the settings of a study or a run, and the forecast of each arm."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.checkpoint import Checkpoint, open_checkpoint
from models.layout import Layout, layout_from_config, read_model_config
from tracking.command import did_you_mean, parse_arguments
from tracking.product import check_output_file
from train.freezing.freeze import FreezeArguments, FreezePlan, count_blocks, plan_freeze
from train.planning.forecast import GIB, MIB, Forecast, Lengths, Model, describe_model, forecast
from train.planning.recipe import (
    PLANNED_MODEL,
    TRAINING_FIELDS,
    Launch,
    Recipe,
    config_keys,
    make_recipe,
    read_launcher,
)
from train.planning.speed import Speed, assumed_speed

if TYPE_CHECKING:
    from trl import ModelConfig

    from train.planning.study import NecessityArguments

PURPOSE = "What would a run need, before it is launched? Parameters, memory, disk and GPU-hours of every arm."
DEFAULT_PROMPT_TOKENS = 1024
DEFAULT_IMAGE_TOKENS = 1280
"""Upper end of the range that Qwen2.5-VL's model card recommends per image (256 to 1,280 tokens)."""
GPUS = {
    "a100-40gb": 40_960,
    "a100-80gb": 81_920,
    "h100-80gb": 81_559,
    "h200-141gb": 143_771,
    "rtx-4090-24gb": 24_564,
}
"""Name -> total memory in MiB, as reported by `nvidia-smi`.

A100 and H100: modal-labs/modal-client, pull request 2797; H200 and RTX 4090: listings in public issues.
"""


@dataclass(frozen=True, kw_only=True)
class PlanArguments:
    """The hardware of the run, and assumptions about its data and speed."""

    num_gpus: int | None = field(
        default=None,
        metadata={"help": "total number of GPUs; by default as many as the launcher uses, or 1 without a launcher"},
    )
    gpu: str = field(
        default="h100-80gb",
        metadata={"help": f"GPU type: {', '.join(GPUS)}, or the memory of one GPU in GiB, such as 48"},
    )
    tokens_per_s: float | None = field(
        default=None,
        metadata={
            "help": "measured speed: prompt and reply tokens per second and GPU through sampling and training, for "
            "GPU-hours; by default it is estimated from an assumed share of the GPU's peak"
        },
    )
    prompt_tokens: int | None = field(
        default=None,
        metadata={
            "help": "maximum length of a prompt in tokens, images included; by default max_prompt_tokens, or "
            f"what vLLM's limit leaves, or {DEFAULT_PROMPT_TOKENS}"
        },
    )
    image_tokens: int | None = field(
        default=None, metadata={"help": f"image tokens among them; by default at most {DEFAULT_IMAGE_TOKENS}"}
    )
    deepspeed: str | None = field(default=None, metadata={"help": "DeepSpeed's JSON; replaces the configured one"})
    json: str | None = field(
        default=None, metadata={"help": "also write the plan to this JSON file", "check": check_output_file}
    )

    def __post_init__(self) -> None:
        memory_of(self.gpu)
        for name in ("num_gpus", "tokens_per_s", "prompt_tokens"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} is {value}; it must be positive")


def lengths_of(arguments: PlanArguments, recipe: Recipe, *, sees: bool) -> Lengths:
    """Returns the prompt length used for the plan, and the image tokens in it."""
    prompt = arguments.prompt_tokens or recipe.prompt_limit or DEFAULT_PROMPT_TOKENS
    images = min(prompt, DEFAULT_IMAGE_TOKENS) if arguments.image_tokens is None else arguments.image_tokens
    images = images if sees else 0
    if prompt < 1 or not 0 <= images <= prompt:
        raise ValueError(
            f"prompts of {prompt} tokens with {images} image tokens; expected prompt_tokens above 0, image_tokens not "
            "above it, and vllm_max_model_length above max_completion_length"
        )
    return Lengths(prompt_tokens=prompt, image_tokens=images)


@dataclass(frozen=True, kw_only=True)
class ModelArguments:
    """The model description of a single run."""

    layout_config: str | None = field(
        default=None, metadata={"help": "config.json to plan with if the checkpoint is not on this machine"}
    )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The complete plan: shared settings, and each arm's forecast."""

    model: Model
    recipe: Recipe
    arguments: PlanArguments
    lengths: Lengths
    forecasts: dict[str, Forecast]
    num_seeds: int
    start: str
    supervised: tuple[str, ...] = ()
    """Arms that train.sft trains; their needs are not forecast."""

    @property
    def gpu_bytes(self) -> int:
        return memory_of(self.arguments.gpu)

    @property
    def speed(self) -> Speed | None:
        """Tokens a second of one GPU: as given, else assumed; None for a GPU of unknown peak."""
        if self.arguments.tokens_per_s is not None:
            return Speed(tokens_per_s=self.arguments.tokens_per_s, source="as given", is_assumed=False)
        return assumed_speed(self.arguments.gpu, self.model.layout.num_elements, self.recipe)

    @property
    def gpu_name(self) -> str:
        return self.arguments.gpu if self.arguments.gpu in GPUS else f"a GPU of {self.arguments.gpu} GiB"


def memory_of(gpu: str) -> int:
    """Returns the memory in bytes of a GPU from the table, or given in GiB."""
    if gpu in GPUS:
        return GPUS[gpu] * MIB
    if gpu.replace(".", "", 1).isdigit() and float(gpu) > 0:
        return int(float(gpu) * GIB)
    raise ValueError(
        f"gpu {gpu!r} is unknown{did_you_mean(gpu, GPUS)} (expected {', '.join(GPUS)}, or a number of GiB)"
    )


def plan_study(study: "NecessityArguments", arguments: PlanArguments) -> Plan:
    """Plans every arm of a study; the model's layout is computed once."""
    from train.freezing.arms import parse_arms
    from train.freezing.data_arms import RL
    from train.planning.study import freeze_arguments

    launch = read_launcher(study.launcher)
    training, model_config, configured = _read_training(study.grpo_config)
    arguments = replace(arguments, deepspeed=arguments.deepspeed or configured)
    config = _study_config(study)
    layout = layout_from_config(config)
    whole = plan_freeze(layout, FreezeArguments(partition=study.partition, cuts=study.cuts))
    arms = parse_arms(study.arms, whole.partition, study.modalities)
    freezes = {arm.name: freeze_arguments(study, arm) for arm in arms if arm.data.method == RL}
    supervised = tuple(arm.name for arm in arms if arm.data.method != RL)
    if not freezes:
        raise ValueError(f"no arm trains with GRPO, which is what is planned; the arms are {', '.join(supervised)}")
    model = describe_model(layout, config, _local(study.sft_checkpoint))
    return _plan(
        layout, model, freezes, training, model_config, arguments, launch,
        supervised=supervised, num_seeds=len(study.seeds), start=study.sft_checkpoint or f"built by {study.sft_config}",
    )  # fmt: skip


def plan_run(
    arguments: PlanArguments,
    described: ModelArguments,
    freeze: FreezeArguments,
    model_config: "ModelConfig",
    training: Any,
) -> Plan:
    """Plans one run of train.grpo."""
    from models.loading import local_checkpoint

    name = model_config.model_name_or_path
    if not name and not described.layout_config:
        raise ValueError("model_name_or_path is missing; expected it, or layout_config, the config.json of the model")
    place = Path(described.layout_config) if described.layout_config else local_checkpoint(name, config_only=True)
    config = read_model_config(place)
    layout = layout_from_config(config, source=str(place))
    model = describe_model(layout, config, _local(name))
    chosen = ["train-only", *freeze.train_only] if freeze.train_only else ["freeze", *freeze.freeze]
    freezes = {" ".join(chosen) if len(chosen) > 1 else "full": freeze}
    return _plan(
        layout, model, freezes, training, model_config, arguments, Launch(), num_seeds=1, start=str(name or place)
    )


def _plan(
    layout: Layout,
    model: Model,
    freezes: dict[str, FreezeArguments],
    training: Any,
    model_config: "ModelConfig",
    arguments: PlanArguments,
    launch: Launch,
    *,
    num_seeds: int,
    start: str,
    supervised: tuple[str, ...] = (),
) -> Plan:
    recipe = make_recipe(
        training,
        model_config,
        launch=launch,
        num_gpus=arguments.num_gpus,
        deepspeed=arguments.deepspeed,
        hidden_size=model.hidden_size,
    )
    lengths = lengths_of(arguments, recipe, sees=layout.num_vision_blocks > 0)
    gpu_bytes = memory_of(arguments.gpu)
    forecasts = {
        name: forecast(_freeze_plan(layout, freeze, recipe), model, recipe, lengths, gpu_bytes=gpu_bytes)
        for name, freeze in freezes.items()
    }
    return Plan(
        model=model,
        recipe=recipe,
        arguments=arguments,
        lengths=lengths,
        forecasts=forecasts,
        num_seeds=num_seeds,
        start=start,
        supervised=supervised,
    )


def _freeze_plan(layout: Layout, freeze: FreezeArguments, recipe: Recipe) -> FreezePlan:
    from train.freezing.adapters import plan_adapters

    plan = plan_freeze(layout, freeze)
    return plan_adapters(plan, freeze, recipe.model_config) if recipe.adapter_rank else plan


def _study_config(study: "NecessityArguments") -> dict[str, Any]:
    """Returns the configuration of the model that every arm starts from."""
    from models.loading import local_checkpoint

    if study.layout_config:
        return read_model_config(Path(study.layout_config))
    for name in (study.sft_checkpoint, study.base_checkpoint):
        if name:
            return read_model_config(local_checkpoint(name, config_only=True))
    from models.pocket import PocketShape, build_config, build_tokenizer
    from train.planning.study import study_files

    assert study.init_config is not None
    values = study_files(study)[study.init_config]
    shape = PocketShape(**{key: value for key, value in values.items() if key in PocketShape.__dataclass_fields__})
    config: dict[str, Any] = build_config(shape, build_tokenizer()).to_dict()
    return config


def _local(name: str | None) -> Checkpoint | None:
    """Opens a checkpoint in a local folder, for its headers."""
    return open_checkpoint(Path(name)) if name and Path(name).is_dir() else None


@dataclass(frozen=True, kw_only=True)
class _Configured:
    """The only key of train.grpo's configuration that is also a flag of the plan."""

    deepspeed: str | None = None


def _read_training(config: str) -> tuple[Any, "ModelConfig", str | None]:
    training, model_config, _, configured = parse_arguments(
        ["--config", config],
        TRAINING_FIELDS,
        PLANNED_MODEL,
        FreezeArguments,
        _Configured,
        description=PURPOSE,
        check_inputs=True,
    )
    return training, model_config, configured.deepspeed


def plan_as_json(plan: Plan) -> dict[str, Any]:
    """Returns the plan as JSON values: blocks, memory, disk and tokens per arm."""
    speed = plan.speed
    return {
        "start": plan.start,
        "gpu": plan.arguments.gpu,
        "gpu_bytes": plan.gpu_bytes,
        "num_gpus": plan.recipe.num_gpus,
        "lengths": asdict(plan.lengths),
        "completion_tokens": plan.recipe.completion_tokens,
        "tokens_per_s": speed.tokens_per_s if speed else None,
        "tokens_per_s_source": speed.source if speed else None,
        "tokens_per_s_assumed": speed.is_assumed if speed else None,
        "num_seeds": plan.num_seeds,
        "arms": {
            name: {
                "blocks": [asdict(count) for count in count_blocks(needs.plan)],
                "num_adapter_elements": needs.num_adapter_elements,
                "memory": [asdict(item) for item in needs.items],
                "peak_bytes": needs.peak_bytes,
                "peak_phase": needs.peak_phase,
                "fits": needs.peak_bytes <= plan.gpu_bytes,
                "disk": {**asdict(needs.disk), "kept_bytes": needs.disk.kept_bytes},
                "num_tokens": needs.num_tokens,
            }
            for name, needs in plan.forecasts.items()
        },
        **({"supervised": list(plan.supervised)} if plan.supervised else {}),
    }


def make_plan(argv: Sequence[str]) -> Plan:
    """Parses a command line and plans the study or run that it names."""
    path = next((after for word, after in pairwise(argv) if word == "--config"), None)
    path = next((word.partition("=")[2] for word in argv if word.startswith("--config=")), path)
    keys = config_keys(path)
    if {"grpo_config", "arms"} & set(keys):
        from train.planning.study import NecessityArguments

        study, arguments = parse_arguments(
            argv, NecessityArguments, PlanArguments, description=PURPOSE, check_inputs=True
        )
        return plan_study(study, arguments)
    classes = (PlanArguments, ModelArguments, FreezeArguments, PLANNED_MODEL, TRAINING_FIELDS)
    return plan_run(*parse_arguments(argv, *classes, description=PURPOSE, check_inputs=True))
