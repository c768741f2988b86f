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

from models.adapters.options import is_targeted, pattern_value, read_adapter_config
from models.checkpoint import INDEX_FILE, WEIGHTS_FILE, Checkpoint, other_than_file
from models.foreign import ADAPTER_CONFIG_FILE, OTHER_TRAINED, PICKLED_ADAPTER, merge_advice
from models.layout import is_carried
from models.shards import DTYPES, FLOATING, StoredTensor, read_header
from tracking.command import did_you_mean

if TYPE_CHECKING:
    import torch

ADAPTER_FILE = "adapter_model.safetensors"
PEFT_PREFIX = "base_model.model."
"""Prefix that PEFT adds to a module's name."""
FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<part>A|B)(?:\.default)?\.weight")
EMBEDDING_FACTOR = re.compile(r"(?P<module>.+)\.lora_embedding_(?P<part>A|B)(?:\.default)?")
MAGNITUDE = re.compile(r"(?P<module>.+)\.lora_magnitude_vector(?:\.default)?(?:\.weight)?")
ADAPTER_NAME = re.compile(r"\.(lora_[A-Za-z_]+|modules_to_save)\.(?P<adapter>[^.]+)")
"""Where PEFT's names in memory hold the adapter's name, which its files leave out."""
WRAPPERS = re.compile(r"\.(base_layer|modules_to_save(\.default)?)(?=\.)")
"""Parts of a name that PEFT's modules add to a weight that was trained in full."""


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
        """Returns B and A as stored, a kernel as a matrix: [·, rank] and [rank, ·]."""
        up, down = (read_tensor(stored) for stored in (self.up, self.down))
        return up.to(dtype).reshape(len(up), -1), down.to(dtype).reshape(len(down), -1)

    def is_zero(self) -> bool:
        """True if the update changes nothing, because a factor is zero throughout, as B is before training.

        The other factor and the scale are finite (`read_adapter`), so that their product with it is zero.
        """
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


def read_adapter(directory: Path, base: Checkpoint) -> Adapter:
    """Reads an adapter's folder and checks every tensor against the model that it belongs to.

    Raises:
        ValueError: naming the file and the tensor: for an adapter that is not LoRA, pickled weights, a tensor that fits
            nothing in the base or has the wrong shape, half a pair of factors, a rank that the configuration denies,
            values that are not finite.
    """
    config = read_adapter_config(directory)
    path = directory / ADAPTER_FILE
    pickled = [name for name in (PICKLED_ADAPTER, *OTHER_TRAINED) if (directory / name).is_file()]
    if path.is_file():
        pickled = [name for name in pickled if name != PICKLED_ADAPTER]  # the same weights again
    if pickled:
        raise ValueError(
            f"{directory} holds pickled weights of an adapter ({pickled[0]}), which can run code and are not read; "
            f"{merge_advice(directory)}"
        )
    if not path.is_file():
        raise ValueError(other_than_file(path) or f"{path} does not exist; expected the weights of an adapter")
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
    _check_biases(config, updates, base, path)
    for update in updates.values():
        _check_finite(update, base)
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
    if (match := ADAPTER_NAME.search(stored.name_on_disk)) and match["adapter"] not in ("weight", "bias"):
        raise ValueError(
            f"{stored.file}: tensor {stored.name_on_disk!r} has the name of an adapter in it ({match['adapter']!r}), "
            "which PEFT leaves out of its files and would not load; save the adapter with save_pretrained, or rename "
            "its tensors"
        )
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
    rank = down.shape[0] if down.shape else 0
    for stored, expected in ((down, (rank, columns)), (up, (rows, rank))):
        flat = (*stored.shape[:1], math.prod(stored.shape[1:]))
        if len(shape) < 2 or len(stored.shape) not in (2, len(shape)) or flat != expected:
            raise ValueError(
                f"{stored.file}: tensor {stored.name_on_disk!r} has the shape {list(stored.shape)}; expected "
                f"{list(expected)} for {name!r}, which is {list(shape)} in {base.directory}: is that the base it was "
                "trained on?"
            )
    spellings = _modules(any_part, name)
    _check_targeted(any_part, spellings, config)
    configured = pattern_value(config, "rank_pattern", spellings, config["r"])
    if configured != rank:
        raise ValueError(
            f"{down.file}: tensor {down.name_on_disk!r} has rank {rank}; {ADAPTER_CONFIG_FILE} says {configured}"
        )
    alpha = pattern_value(config, "alpha_pattern", spellings, config["lora_alpha"])
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
    if config.get("target_modules") is None or any(is_targeted(module, config) for module in spellings):
        return
    raise ValueError(
        f"{stored.file}: holds {stored.name_on_disk!r}, but target_modules, exclude_modules and layers_to_transform of "
        f"{ADAPTER_CONFIG_FILE} do not name {spellings[0]!r}; PEFT would ignore it: correct the one or the other"
    )


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
        if not any(re.match(rf"(^|.*\.){re.escape(module)}($|\..*)", name) for name in names):
            raise ValueError(
                f"{path}: holds no tensor of {module!r}, which modules_to_save of {ADAPTER_CONFIG_FILE} names; the "
                "adapter is incomplete"
            )


def _check_biases(config: dict[str, Any], updates: Mapping[str, Update], base: Checkpoint, path: Path) -> None:
    """Refuses an adapter without the biases that its configuration says were trained."""
    trained = config.get("bias") or "none"
    if trained == "none":
        return
    adapted = {
        f"{name.removesuffix('.weight')}.bias" for name, update in updates.items() if isinstance(update, LowRank)
    }
    for name in base.tensors:
        if not name.endswith(".bias") or base.family.is_buffer(name) or is_carried(base.config, base.family, name):
            continue
        if name not in updates and (trained == "all" or name in adapted):
            raise ValueError(
                f"{path}: holds no tensor of {name!r}, while bias is {trained!r} in {ADAPTER_CONFIG_FILE}; the adapter "
                "is incomplete"
            )


def _check_finite(update: Update, base: Checkpoint) -> None:
    """Refuses values that are not finite in the dtype they are computed with: fp32, or the base weight's dtype."""
    import torch

    if isinstance(update, LowRank):
        found = [one for one in (update.down, update.up, update.magnitude) if one is not None]
        dtype = torch.float32
    else:
        stored = base.tensors.get(update.name, update.stored)
        found, dtype = [update.stored], getattr(torch, DTYPES[stored.dtype][0])
    for one in found:
        if not bool(read_tensor(one).to(dtype).isfinite().all()):
            raise ValueError(
                f"{one.file}: tensor {one.name_on_disk!r} holds NaN or infinite values; expected finite values in "
                f"{dtype}: the run that saved it had diverged, take an earlier checkpoint"
            )
