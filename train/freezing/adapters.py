"""What does LoRA adapt? Adapters on exactly the trainable layers; `models/adapters/merged.py` merges them.

Every linear map of the decoder layers that are not frozen gets an adapter; the vision tower and the projector only if
`train_only` names them. Nothing else trains: embeddings, norms and the head have no adapter.
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from models.adapters.reading import ADAPTER_FILE, PEFT_PREFIX
from tracking.command import did_you_mean
from train.freezing.freeze import FreezeArguments, FreezePlan

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel
    from trl import ModelConfig

ADAPTABLE = {"llm": (), "vision": ("vision",), "projector": ("projector",)}
"""Region -> the expression that must be named to give it adapters; decoder layers need none."""


def plan_adapters(plan: FreezePlan, freeze: FreezeArguments, config: "ModelConfig") -> FreezePlan:
    """Returns the plan of a LoRA run: only the weights with an adapter are trainable.

    Raises:
        ValueError: if nothing is left to adapt, or a named region has no linear map.
    """
    if config.use_dora or config.load_in_4bit or config.load_in_8bit:
        raise ValueError("use_dora, load_in_4bit and load_in_8bit are not supported: the merge would not be exact")
    named = {expression.partition(":")[0].partition(".")[0] for expression in freeze.train_only}
    for region in named & {"embed", "ple", "norm", "head"}:
        raise ValueError(f"train_only names {region!r}, which LoRA does not adapt; expected decoder layers or vision")
    adapted = [
        name
        for name in plan.trainable
        if name.endswith(".weight")
        and len(plan.layout.parameters[name].shape) == 2
        and _takes_adapter(plan, name, named)
    ]
    wanted = config.lora_target_modules
    if wanted and wanted not in ("all-linear", ["all-linear"]):
        suffixes = [wanted] if isinstance(wanted, str) else list(wanted)
        present = {name.removesuffix(".weight").rpartition(".")[2] for name in adapted}
        for suffix in suffixes:
            if suffix not in present:
                raise ValueError(
                    f"lora_target_modules {suffix!r} is not a linear map of the trainable layers"
                    f"{did_you_mean(suffix, present)} (expected {', '.join(sorted(present)) or 'layers that train'})"
                )
        adapted = [name for name in adapted if name.removesuffix(".weight").rpartition(".")[2] in suffixes]
    if not adapted:
        raise ValueError("LoRA has nothing to adapt: every decoder layer is frozen")
    chosen = set(adapted)
    return replace(
        plan,
        frozen=tuple(name for name in plan.layout.parameters if name not in chosen),
        trainable=tuple(adapted),
        notes=(*plan.notes, f"LoRA: adapters on {len(adapted)} weights; everything else stays as it is"),
    )


def _takes_adapter(plan: FreezePlan, name: str, named: set[str]) -> bool:
    parameter = plan.layout.parameters[name]
    if parameter.region not in ADAPTABLE or (parameter.region != "projector" and parameter.index is None):
        return False
    return not ADAPTABLE[parameter.region] or bool(named & set(ADAPTABLE[parameter.region]))


def adapted_modules(plan: FreezePlan) -> list[str]:
    """Returns the modules that get an adapter, keyed by canonical name."""
    return [name.removesuffix(".weight") for name in plan.trainable]


def target_pattern(modules: list[str]) -> str:
    """Returns a regular expression that matches exactly the given modules, grouping layers with equal modules.

    PEFT matches a string against the full module name, but a list against suffixes; only the first is exact.
    """
    single: list[str] = []
    by_layer: dict[tuple[str, str], list[str]] = {}
    for module in modules:
        match = re.fullmatch(r"(.+?\.)(\d+)\.(.+)", module)
        if match is None:
            single.append(re.escape(module))
        else:
            by_layer.setdefault((match[1], match[2]), []).append(match[3])
    layers: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (prefix, index), rest in by_layer.items():
        layers.setdefault((prefix, tuple(rest)), []).append(index)
    joined = [
        f"{re.escape(prefix)}({'|'.join(indices)})\\.({'|'.join(map(re.escape, rest))})"
        for (prefix, rest), indices in layers.items()
    ]
    return "|".join([*joined, *single])


def add_adapters(
    model: "PreTrainedModel", plan: FreezePlan, config: "ModelConfig", *, autocast_adapter_dtype: bool
) -> "PeftModel":
    """Wraps the model with adapters on the plan's modules and asserts that they are exactly these."""
    from peft import LoraConfig, get_peft_model

    modules = adapted_modules(plan)
    lora: LoraConfig = LoraConfig(
        task_type="CAUSAL_LM",
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        use_rslora=config.use_rslora,
        target_modules=target_pattern(modules),
        bias="none",
    )
    adapted: PeftModel = get_peft_model(model, lora, autocast_adapter_dtype=autocast_adapter_dtype)
    names: list[str] = getattr(adapted.base_model, "targeted_module_names")  # noqa: B009 (peft declares no type)
    matched = sorted(names)
    assert matched == sorted(modules), f"PEFT adapted {sorted(set(matched) ^ set(modules))[:3]} against the plan"
    return adapted


def adapter_breaches(directory: Path, plan: FreezePlan) -> list[str]:
    """Returns the differences between a saved adapter's tensors and the plan's: extra and missing ones."""
    from safetensors import safe_open

    with safe_open(directory / ADAPTER_FILE, framework="pt") as saved:
        found = set(saved.keys())
    expected = {
        f"{PEFT_PREFIX}{module}.{part}.weight" for module in adapted_modules(plan) for part in ("lora_A", "lora_B")
    }
    return sorted(found ^ expected)
