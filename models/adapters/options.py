"""What does an adapter's `adapter_config.json` say? Its options, each checked for the type that PEFT writes.

PEFT itself checks few of them: it takes a string in place of a list letter by letter, and the text "false" as true.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from models.foreign import ADAPTER_CONFIG_FILE
from models.shards import parse_json_object

KEEPS_THE_BASE = (True, False, None, "gaussian", "eva", "orthogonal")
"""Values of `init_lora_weights` under which the base weights stay as they are (PEFT 0.21)."""
UNREAD_OPTIONS = (
    "alora_invocation_tokens", "arrow_config", "kasa_config", "layer_replication", "lora_bias", "monteclora_config",
    "target_parameters", "trainable_token_indices", "use_bdlora", "use_qalora",
)  # fmt: skip
"""Options of PEFT's LoraConfig with which the change is more than s·B·A of whole weights."""
FLOAT32_MAX = (2 - 2**-23) * 2.0**127
BIASES = ("none", "all", "lora_only")
NUM_CHARACTERS = 80


def read_adapter_config(directory: Path) -> dict[str, Any]:
    """Reads an adapter's configuration; refuses what is not LoRA, or more than that.

    Raises:
        ValueError: naming the option, what was found and what is read.
    """
    path = directory / ADAPTER_CONFIG_FILE
    if not path.is_file():
        raise ValueError(f"{path} does not exist; expected a PEFT adapter's folder")
    config = parse_json_object(path.read_bytes(), str(path))
    kind = config.get("peft_type")
    if kind != "LORA":
        raise ValueError(
            f"{path}: peft_type is {kind!r}; only LoRA adapters are read (with rsLoRA and DoRA): merge another kind "
            "into its base with PEFT, and name the merged model"
        )
    for option in UNREAD_OPTIONS:
        if config.get(option):
            raise ValueError(
                f"{path}: {option} is {config[option]!r}, which is not read here; merge the adapter into its base "
                "with PEFT, and name the merged model"
            )
    how = config.get("init_lora_weights", True)
    if (how.lower() if isinstance(how, str) else how) not in KEEPS_THE_BASE:
        raise ValueError(
            f"{path}: init_lora_weights is {how!r}, which changed the base weights too; save it as plain LoRA, with "
            "PEFT's save_pretrained(…, path_initial_model_for_weight_conversion=…), or merge it with PEFT"
        )
    if not is_rank(config.get("r")) or not is_scale(config.get("lora_alpha")):
        raise ValueError(
            f"{path}: r is {_short(config.get('r'))} and lora_alpha is {_short(config.get('lora_alpha'))}; expected a "
            "rank of 1 or more and a finite number"
        )
    for option, (fits, expected) in OPTIONS.items():
        value = config.get(option)
        if value is not None and not fits(value):
            raise ValueError(f"{path}: {option} is {_short(value)}; expected {expected}")
    _check_patterns(config, path)
    return config


def is_rank(value: Any) -> bool:
    return type(value) is int and value >= 1


def is_scale(value: Any) -> bool:
    """True for a number that is finite in fp32, in which factors are multiplied."""
    return not isinstance(value, bool) and isinstance(value, int | float) and abs(value) <= FLOAT32_MAX


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_layer(value: Any) -> bool:
    return type(value) is int and value >= 0


def _lists(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(fits(one) for one in value)


def _maps(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(fits(one) for one in value.values())


def _either(*kinds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: any(fits(value) for fits in kinds)


MODULES = (_either(_is_text, _lists(_is_text)), "a list of module names, or a regular expression")
FLAG = (_is_flag, "true or false")
OPTIONS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "target_modules": MODULES,
    "exclude_modules": MODULES,
    "modules_to_save": (_lists(_is_text), "a list of module names"),
    "layers_to_transform": (_either(_is_layer, _lists(_is_layer)), "a layer's number, or a list of them"),
    "layers_pattern": (_either(_is_text, _lists(_is_text)), "a name, or a list of names"),
    "rank_pattern": (_maps(is_rank), "an object: pattern of module names -> rank of 1 or more"),
    "alpha_pattern": (_maps(is_scale), "an object: pattern of module names -> finite number"),
    "use_rslora": FLAG,
    "use_dora": FLAG,
    "bias": (lambda value: value in BIASES, f"one of {', '.join(BIASES)}"),
    "base_model_name_or_path": (_is_text, "the name or folder of the base model"),
    "revision": (_is_text, "a branch, tag or commit"),
}
"""Option -> the test of a value other than null, and what is expected."""


def _check_patterns(config: dict[str, Any], path: Path) -> None:
    """Refuses regular expressions that cannot be compiled."""
    for option in ("target_modules", "exclude_modules", "layers_pattern", "rank_pattern", "alpha_pattern"):
        value = config.get(option) or []
        if isinstance(value, list) and option != "layers_pattern":
            continue  # names, compared as they are
        for pattern in [value] if isinstance(value, str) else value:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(
                    f"{path}: {option} has {pattern!r}, which is not a regular expression ({error}); correct it"
                ) from error


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= NUM_CHARACTERS else f"{text[:NUM_CHARACTERS]}…"


def is_targeted(module: str, config: dict[str, Any]) -> bool:
    """True if PEFT 0.21 would adapt a module (`check_target_module_exists`)."""

    def named(names: "str | list[str]") -> bool:
        if isinstance(names, str):
            return names == "all-linear" or re.fullmatch(names, module) is not None
        return any(module == name or module.endswith(f".{name}") for name in names)

    if (config.get("exclude_modules") and named(config["exclude_modules"])) or not named(config["target_modules"]):
        return False
    layers, patterns = config.get("layers_to_transform"), config.get("layers_pattern") or []
    if layers is None or layers == [] or isinstance(config["target_modules"], str):
        return True
    patterns = [patterns] if isinstance(patterns, str) else patterns or [r"[^.]*"]
    found = [match for own in patterns if (match := re.match(rf"(?:^|.*?\.){own}\.(\d+)\.", module))]
    return bool(found) and int(found[0][1]) in ([layers] if isinstance(layers, int) else layers)


def pattern_value(config: dict[str, Any], key: str, spellings: tuple[str, str], otherwise: Any) -> Any:
    """Returns the value of the first pattern that matches a module's name, in the spelling of the adapter first."""
    patterns: dict[str, Any] = config.get(key) or {}
    for module in spellings:
        for pattern, value in patterns.items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
    return otherwise
