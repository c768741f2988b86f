"""Which weights does a PEFT adapter change, and how? The reader of adapter folders, checked against their base.

    adapter_config.json           the type, the ranks and scales, and the base model's name
    adapter_model.safetensors     the factors A and B of every adapted weight, and weights that were trained in full

LoRA (Hu et al. 2021, arXiv 2106.09685): W' = W + s·B·A with s = alpha/r, or alpha/√r (rsLoRA, arXiv 2312.03732).
DoRA (arXiv 2402.09353): W' = m·V/‖V‖ row by row, with V = W + s·B·A and a trained magnitude m.

Names are mapped to the canonical ones, in whatever spelling they were saved. Everything that PEFT would ignore with a
warning, or that is not LoRA, is refused.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.checkpoint import INDEX_FILE, WEIGHTS_FILE, Checkpoint
from models.foreign import ADAPTER_CONFIG_FILE, OTHER_TRAINED, explain_adapter
from models.shards import DTYPES, FLOATING, StoredTensor, parse_json_object, read_header
from tracking.command import did_you_mean

if TYPE_CHECKING:
    import torch

ADAPTER_FILE = "adapter_model.safetensors"
PEFT_PREFIX = "base_model.model."
"""Prefix that PEFT adds to a module's name."""
FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<part>A|B)(?:\.default)?\.weight")
EMBEDDING_FACTOR = re.compile(r"(?P<module>.+)\.lora_embedding_(?P<part>A|B)(?:\.default)?")
MAGNITUDE = re.compile(r"(?P<module>.+)\.lora_magnitude_vector(?:\.default)?(?:\.weight)?")
WRAPPERS = re.compile(r"\.(base_layer|modules_to_save(\.default)?)(?=\.)")
"""Parts of a name that PEFT's modules add to a weight that was trained in full."""
KEEPS_THE_BASE = (True, False, None, "gaussian", "eva", "orthogonal")
"""Values of `init_lora_weights` under which the base weights stay as they are (PEFT 0.21)."""
UNREAD_OPTIONS = (
    "alora_invocation_tokens", "arrow_config", "kasa_config", "layer_replication", "lora_bias", "monteclora_config",
    "target_parameters", "trainable_token_indices", "use_bdlora", "use_qalora",
)  # fmt: skip
"""Options of PEFT's LoraConfig with which the change is more than s·B·A of whole weights."""


@dataclass(frozen=True, kw_only=True)
class LowRank:
    """A weight that changes by s·B·A, and with a magnitude (DoRA) is then rescaled row by row."""

    name: str
    """Canonical name of the weight."""
    down: StoredTensor
    """A: [rank, columns]; of an embedding matrix [rank, rows]."""
    up: StoredTensor
    """B: [rows, rank]; of an embedding matrix [columns, rank]."""
    scale: float
    magnitude: StoredTensor | None = None
    """m: [rows]; only with DoRA."""
    transposed: bool = False
    """True for an embedding matrix, whose change is s·(B·A)ᵀ."""

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    def factors(self, dtype: "torch.dtype") -> "tuple[torch.Tensor, torch.Tensor]":
        """Returns B and A as stored, a kernel as a matrix: [·, rank] and [rank, ·].

        Raises:
            ValueError: if a value is not finite.
        """
        up, down = (read_tensor(stored) for stored in (self.up, self.down))
        for values, stored in ((up, self.up), (down, self.down)):
            if not bool(values.isfinite().all()):
                raise ValueError(
                    f"{stored.file}: tensor {stored.name_on_disk!r} holds NaN or infinite values; expected finite "
                    "factors: the run that saved it had diverged, take an earlier checkpoint"
                )
        return up.to(dtype).reshape(len(up), -1), down.to(dtype).reshape(len(down), -1)

    def is_zero(self) -> bool:
        """True if the update changes nothing, because a factor is zero throughout, as B is before training."""
        if self.magnitude is not None:
            return False
        return not self.scale or any(not bool(read_tensor(stored).any()) for stored in (self.up, self.down))


@dataclass(frozen=True, kw_only=True)
class Replacement:
    """A weight or bias that was trained in full (`modules_to_save`, `bias`)."""

    name: str
    stored: StoredTensor


Update = LowRank | Replacement


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """An adapter's updates, checked against the base model."""

    directory: Path
    base_name: str | None
    """The base model as `adapter_config.json` names it."""
    updates: dict[str, Update] = field(repr=False)
    """By the canonical name of the weight, in the order of the file."""

    @property
    def file(self) -> Path:
        return self.directory / ADAPTER_FILE

    def sha256(self) -> str:
        """Returns the sha256 of the file of weights."""
        with self.file.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def fingerprint(self) -> str:
        """Returns a sha256 of all that determines the change: the file of weights, and every scale."""
        scales = {name: update.scale for name, update in self.updates.items() if isinstance(update, LowRank)}
        return hashlib.sha256(json.dumps([self.sha256(), sorted(scales.items())]).encode()).hexdigest()


def is_adapter(directory: Path) -> bool:
    """True for a folder with an adapter and no whole model beside it."""
    whole = (WEIGHTS_FILE, INDEX_FILE)
    return (
        (directory / ADAPTER_CONFIG_FILE).is_file()
        and not any((directory / name).is_file() for name in whole)
        and not any(directory.glob("pytorch_model*.bin"))
    )


def read_tensor(stored: StoredTensor) -> "torch.Tensor":
    """Returns one tensor of a file in its stored dtype and shape."""
    import torch

    with stored.file.open("rb") as file:
        file.seek(stored.offset)
        content = bytearray(file.read(stored.num_bytes))
    return torch.frombuffer(content, dtype=getattr(torch, DTYPES[stored.dtype][0])).reshape(stored.shape)


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
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if type(rank) is not int or rank < 1 or isinstance(alpha, bool) or not isinstance(alpha, int | float):
        raise ValueError(
            f"{path}: r is {rank!r} and lora_alpha is {alpha!r}; expected a rank of 1 or more and a number"
        )
    return config


def read_adapter(directory: Path, base: Checkpoint) -> Adapter:
    """Reads an adapter's folder and checks every tensor against the model that it belongs to.

    Raises:
        ValueError: naming the file and the tensor: for an adapter that is not LoRA, pickled weights, a tensor that fits
            nothing in the base or has the wrong shape, half a pair of factors, a rank that the configuration denies.
    """
    config = read_adapter_config(directory)
    path = directory / ADAPTER_FILE
    if not path.is_file() or any((directory / name).is_file() for name in OTHER_TRAINED):
        # `explain_adapter` says how to merge pickled weights
        raise ValueError(explain_adapter(directory) or f"{path} does not exist; expected the weights of an adapter")
    parts: dict[str, dict[str, StoredTensor]] = {}
    whole: dict[str, StoredTensor] = {}
    for stored in read_header(path).tensors:
        _check_tensor(stored)
        own = stored.name_on_disk.removeprefix(PEFT_PREFIX)
        for pattern, prefix in ((FACTOR, ""), (EMBEDDING_FACTOR, "embedding_"), (MAGNITUDE, "")):
            if match := pattern.fullmatch(own):
                name = _place(stored, f"{match['module']}.weight", base)
                part = f"{prefix}{match['part']}" if "part" in match.groupdict() else "magnitude"
                if part in parts.setdefault(name, {}):
                    raise ValueError(f"{path}: holds factor {part} of {name!r} twice")
                parts[name][part] = stored
                break
        else:
            whole[_place(stored, WRAPPERS.sub("", own), base)] = stored
    updates: dict[str, Update] = {name: _low_rank(found, name, config, base) for name, found in parts.items()}
    for name, stored in whole.items():
        if name in parts:
            _check_same_base(stored, name, base)
            continue
        if stored.shape != _shape_of(name, base):
            raise ValueError(
                f"{path}: tensor {stored.name_on_disk!r} has the shape {list(stored.shape)}; {name!r} has "
                f"{list(_shape_of(name, base))} in {base.directory}: is that the base it was trained on?"
            )
        updates[name] = Replacement(name=name, stored=stored)
    if not updates:
        raise ValueError(f"{path}: contains no tensors; it was saved without its weights")
    _check_saved(config, whole, path)
    named = config.get("base_model_name_or_path") or None
    revision = config.get("revision")
    if named and revision and not Path(named).is_dir():
        named = f"{named}@{revision}"
    return Adapter(directory=directory, base_name=named, updates=updates)


def _check_tensor(stored: StoredTensor) -> None:
    if stored.dtype not in FLOATING:
        raise ValueError(
            f"{stored.file}: tensor {stored.name_on_disk!r} is {stored.dtype}; expected one of {', '.join(FLOATING)}"
        )
    if not stored.num_bytes:
        raise ValueError(
            f"{stored.file}: tensor {stored.name_on_disk!r} has the shape {list(stored.shape)}; expected a whole "
            "factor: under ZeRO-3 or FSDP, gather the parameters before saving"
        )


def _place(stored: StoredTensor, name: str, base: Checkpoint) -> str:
    """Returns the canonical name of the base's tensor that a tensor of the adapter changes."""
    canonical = base.family.canonical(name)
    if (canonical in base.tensors and base.family.place(canonical)[0] not in base.family.carried) or _is_tied_head(
        canonical, base
    ):
        return canonical
    near = did_you_mean(canonical, base.tensors)
    raise ValueError(
        f"{stored.file}: tensor {stored.name_on_disk!r} changes {canonical!r}, which the base {base.directory} does "
        f"not have{near}; name the base that the adapter was trained on"
    )


def _is_tied_head(name: str, base: Checkpoint) -> bool:
    """True for the head of a model whose file stores only the embedding matrix."""
    return any(region == "head" and name == f"{prefix}weight" for region, prefix in base.family.regions)


def _low_rank(found: Mapping[str, StoredTensor], name: str, config: dict[str, Any], base: Checkpoint) -> LowRank:
    """Returns the update of one weight, checked in shape and rank."""
    any_part = next(iter(found.values()))
    transposed = "embedding_A" in found or "embedding_B" in found
    keys = ("embedding_A", "embedding_B") if transposed else ("A", "B")
    lacking = [key for key in keys if key not in found]
    if lacking or (transposed and ("A" in found or "B" in found)):
        raise ValueError(
            f"{any_part.file}: {any_part.name_on_disk!r} has no other half; expected the factors A and B of {name!r}"
        )
    down, up = (found[key] for key in keys)
    shape = _shape_of(name, base)
    rows, columns = shape[0], math.prod(shape[1:])
    if transposed:
        rows, columns = columns, rows
    rank = down.shape[0]
    for stored, expected in ((down, (rank, columns)), (up, (rows, rank))):
        flat = (stored.shape[0], math.prod(stored.shape[1:]))
        if len(shape) < 2 or len(stored.shape) < 2 or flat != expected:
            raise ValueError(
                f"{stored.file}: tensor {stored.name_on_disk!r} has the shape {list(stored.shape)}; expected "
                f"{list(expected)} for {name!r}, which is {list(shape)} in {base.directory}: is that the base it was "
                "trained on?"
            )
    spellings = _modules(any_part, name)
    _check_targeted(any_part, spellings, config)
    configured = _pattern(config, "rank_pattern", spellings, config["r"])
    if configured != rank:
        raise ValueError(
            f"{down.file}: tensor {down.name_on_disk!r} has rank {rank}; {ADAPTER_CONFIG_FILE} says {configured}"
        )
    alpha = _pattern(config, "alpha_pattern", spellings, config["lora_alpha"])
    magnitude = found.get("magnitude")
    if bool(config.get("use_dora")) != (magnitude is not None):
        has = "no lora_magnitude_vector" if magnitude is None else "a lora_magnitude_vector"
        raise ValueError(
            f"{any_part.file}: {name!r} has {has}; {ADAPTER_CONFIG_FILE} says use_dora {bool(config.get('use_dora'))}"
        )
    if magnitude is not None and (transposed or len(shape) != 2 or math.prod(magnitude.shape) != shape[0]):
        raise ValueError(
            f"{magnitude.file}: tensor {magnitude.name_on_disk!r} has the shape {list(magnitude.shape)}; DoRA is read "
            f"for linear maps, with one magnitude per row, and {name!r} is {list(shape)}"
        )
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return LowRank(name=name, down=down, up=up, scale=scale, magnitude=magnitude, transposed=transposed)


def _shape_of(name: str, base: Checkpoint) -> tuple[int, ...]:
    """Returns the shape of a base tensor; a tied head that is not stored has the embedding matrix's."""
    if name in base.tensors:
        return base.tensors[name].shape
    return next(stored.shape for own, stored in base.tensors.items() if base.family.place(own)[0] == "embed")


def _modules(stored: StoredTensor, name: str) -> tuple[str, str]:
    """Returns a module's name as the adapter spells it, and its canonical name."""
    own = stored.name_on_disk.removeprefix(PEFT_PREFIX)
    return re.split(r"\.lora_", own, maxsplit=1)[0], name.removesuffix(".weight")


def _check_targeted(stored: StoredTensor, spellings: tuple[str, str], config: dict[str, Any]) -> None:
    """Refuses factors of a module that the configuration does not target: PEFT would ignore them, with a warning."""
    if config.get("target_modules") is None or any(_is_targeted(module, config) for module in spellings):
        return
    raise ValueError(
        f"{stored.file}: holds {stored.name_on_disk!r}, but target_modules, exclude_modules and layers_to_transform of "
        f"{ADAPTER_CONFIG_FILE} do not name {spellings[0]!r}; PEFT would ignore it: correct the one or the other"
    )


def _is_targeted(module: str, config: dict[str, Any]) -> bool:
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


def _pattern(config: dict[str, Any], key: str, spellings: tuple[str, str], otherwise: Any) -> Any:
    """Returns the value of the first pattern that matches a module's name, in the spelling of the adapter first."""
    patterns: dict[str, Any] = config.get(key) or {}
    for module in spellings:
        for pattern, value in patterns.items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
    return otherwise


def _check_same_base(stored: StoredTensor, name: str, base: Checkpoint) -> None:
    """Refuses another base weight below an adapted one; PEFT stores that of an adapted embedding matrix again."""
    if name not in base.tensors or not read_tensor(stored).equal(base.tensor(name).to(read_tensor(stored).dtype)):
        raise ValueError(
            f"{stored.file}: tensor {stored.name_on_disk!r} is not {name!r} of {base.directory}; name the base that "
            "the adapter was trained on, or merge it with PEFT"
        )


def _check_saved(config: dict[str, Any], whole: Mapping[str, StoredTensor], path: Path) -> None:
    """Refuses an adapter without a module that its configuration says was saved."""
    names = [*whole, *(WRAPPERS.sub("", stored.name_on_disk) for stored in whole.values())]
    for module in config.get("modules_to_save") or []:
        if not any(re.match(rf"(^|.*\.){module}($|\..*)", name) for name in names):
            raise ValueError(
                f"{path}: holds no tensor of {module!r}, which modules_to_save of {ADAPTER_CONFIG_FILE} names; the "
                "adapter is incomplete"
            )
