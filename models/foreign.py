"""What is this folder, if not a safetensors checkpoint? Recognises other formats and says how to convert them.

No file is opened: pickled files can run code, so formats are recognised by file names.
"""

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

ADAPTER_CONFIG_FILE = "adapter_config.json"
CONFIG_FILE = "config.json"
RESULT_FOLDERS = ("final", "checkpoint")
"""Where the output directory of a command of this suite holds its checkpoint."""
NUM_NAMED = 3
PICKLED_PATTERNS = ("pytorch_model*.bin", "consolidated*.pth", "*.bin", "*.pth", "*.pt", "*.ckpt")
TRAINER_STATE = re.compile(r"(training_args|optimizer|scheduler|scaler|rng_state|.*_optim_states|.*_model_states).*")
"""Pickled files of a training run that do not contain a model."""
SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
VERL_SHARD = re.compile(r"(model|optim|extra_state)_world_size_\d+_rank_\d+\.pt")
"""Files in which verl and EasyR1 keep the state of one process."""
VERL_STEP = re.compile(r"global_step_\d+")
VERL_CONFIG_FILE = "fsdp_config.json"
"""Written by verl, not by EasyR1."""
DEEPSPEED_STEP = re.compile(r"global_step\d+")
HUB_FOLDER = re.compile(r"models--(?P<owner>[\w.-]+?)--(?P<name>[\w.-]+)")
"""A model's folder in the cache of huggingface_hub."""
TRAINER_STEP = re.compile(r"checkpoint-(\d+)")
OTHER_TRAINED = ("non_lora_state_dict.bin", "non_lora_trainables.bin")
"""Pickled weights beside an adapter: what was trained in full, such as the projector."""
PICKLED_ADAPTER = "adapter_model.bin"

MERGE_ADAPTER = (
    "import sys; from models.adapters.peft_merge import merge_adapter_into; merge_adapter_into(*sys.argv[1:])"
)
PICKLE_TO_SAFETENSORS = (
    "import sys, torch, safetensors.torch as st; "
    "st.save_file({n: t.clone(memory_format=torch.contiguous_format) for f in sys.argv[2:] "
    "for n, t in torch.load(f, map_location='cpu', weights_only=True).items()}, sys.argv[1], {'format': 'pt'})"
)
"""Keeps the tensors' bits, dtypes and names; `weights_only` unpickles tensors and rejects everything else."""


def explain_folder(directory: Path) -> str | None:
    """Returns what a folder without readable weights contains and what to do, or None if no format is recognised."""
    return next((line for look in LOOKS if (line := look(directory))), None)


def explain_adapter(directory: Path) -> str | None:
    path = directory / ADAPTER_CONFIG_FILE
    if not path.is_file() or any(directory.glob("pytorch_model*.bin")):
        return None
    return (
        f"{directory} holds a PEFT adapter ({path.name}), which is not a model; name the final/ folder of the run that "
        f"trained it, or {merge_advice(directory)}"
    )


def merge_advice(directory: Path) -> str:
    """Returns how to merge an adapter into its base with PEFT, together with pickled weights beside it."""
    base = "its base model"
    try:
        named = json.loads((directory / ADAPTER_CONFIG_FILE).read_text(encoding="utf-8"))["base_model_name_or_path"]
        base = named if isinstance(named, str) and named else base
    except (ValueError, LookupError, TypeError):
        pass
    others = [directory / name for name in OTHER_TRAINED if (directory / name).is_file()]
    files = " ".join(shlex.quote(str(path)) for path in (base, directory, f"{directory}-merged", *others))
    also = f" together with {others[0].name}, what was trained in full," if others else ""
    return f'merge it{also} into {base}, from this project\'s folder: python -c "{MERGE_ADAPTER}" {files}'


def _explain_verl(directory: Path) -> str | None:
    """Recognises verl's and EasyR1's folders: a step, its `actor`, and the `huggingface` in it, without weights."""
    actor = next(
        (place for place in (directory, directory / "actor", directory.parent) if _has_verl_shards(place)), None
    )
    if actor is None or (actor == directory.parent and directory.name != "huggingface"):
        return _explain_verl_run(directory)
    written = actor / "huggingface"
    if written != directory and any(written.glob("*.safetensors")):
        return f"{directory} is a checkpoint of verl or EasyR1; its merged weights are in {written}: name that"
    shards = sorted(path.name for path in actor.glob("model_world_size_*") if VERL_SHARD.fullmatch(path.name))
    place, merged = shlex.quote(str(actor)), shlex.quote(str(actor.parent / "merged"))
    verl = f"python -m verl.model_merger merge --backend fsdp --local_dir {place} --target_dir {merged}"
    easy = f"python3 scripts/model_merger.py --local_dir {place}, which writes to {actor / 'huggingface'}"
    how = verl if (actor / VERL_CONFIG_FILE).is_file() else f"{verl} (EasyR1, in its folder: {easy})"
    return (
        f"{directory} is a checkpoint of verl or EasyR1 whose weights are pickled and divided over "
        f"{len(shards)} files ({actor / shards[0]} …); merge them once, with the framework that wrote them: {how}"
    )


def _has_verl_shards(directory: Path) -> bool:
    return any(VERL_SHARD.fullmatch(path.name) for path in directory.glob("model_world_size_*"))


def _explain_verl_run(directory: Path) -> str | None:
    """Names the newest step of a run of verl."""
    steps = [path for path in directory.glob("global_step_*") if VERL_STEP.fullmatch(path.name) and path.is_dir()]
    if not steps:
        return None
    newest = max(steps, key=lambda path: int(path.name.rpartition("_")[2]))
    return _explain_verl(newest) or f"{directory} is the output directory of a run of verl; its newest step is {newest}"


def _explain_distributed(directory: Path) -> str | None:
    """Recognises sharded checkpoints of torch.distributed, as FSDP and Megatron write them."""
    found = sorted([*directory.glob("*.distcp"), *directory.glob("*/*.distcp")])
    if not found:
        return None
    folder = found[0].parent
    place, merged = shlex.quote(str(folder)), shlex.quote(f"{str(folder).rstrip('/')}-merged")
    if (folder / "common.pt").is_file():
        how = "merge them once with Megatron, or with the framework that called it (verl: python -m verl.model_merger "
        how += f"merge --backend megatron --local_dir {shlex.quote(str(folder.parent))} --target_dir {merged})"
    else:
        how = (
            f"merge them once: accelerate merge-weights {place} {merged}; then copy {CONFIG_FILE} and the tokenizer's "
        )
        how += f"files of the model that training started from to {merged}"
    return (
        f"{directory} holds a checkpoint of torch.distributed ({found[0].relative_to(directory)}), with its tensors "
        f"divided over processes; {how}"
    )


def _explain_hub_cache(directory: Path) -> str | None:
    """Recognises the cache of huggingface_hub: its root, `hub/` in it, and a model's folder with its snapshots."""
    if match := HUB_FOLDER.fullmatch(directory.absolute().name):
        found = [directory] if (directory / "snapshots").is_dir() else []
        named = f"{match['owner']}/{match['name']}"
    else:
        found = sorted([*directory.glob("models--*/snapshots"), *directory.glob("hub/models--*/snapshots")])
        names = [match for path in found if (match := HUB_FOLDER.fullmatch(path.parent.name))]
        named = ", ".join(f"{match['owner']}/{match['name']}" for match in names[:NUM_NAMED])
        named += ", …" if len(names) > NUM_NAMED else ""
    if not found or not named:
        return None
    return f"{directory} is a folder of the hub's cache; name the model by its hub id instead: {named}"


def _explain_shards(directory: Path) -> str | None:
    shards = sorted(path.name for path in directory.glob("*.safetensors") if SHARD.fullmatch(path.name))
    if not shards:
        return None
    return (
        f"{directory} holds {len(shards)} shards ({shards[0]} …) without model.safetensors.index.json; copy it from "
        "the source of the shards: it lists which of them belong together"
    )


def _explain_gguf(directory: Path) -> str | None:
    found = sorted(directory.glob("*.gguf"))
    if not found:
        return None
    return (
        f"{directory} holds GGUF weights ({found[0].name}), converted for llama.cpp; "
        "name the safetensors checkpoint they were made from"
    )


def _explain_zero(directory: Path) -> str | None:
    steps = [path for path in directory.glob("global_step*") if DEEPSPEED_STEP.fullmatch(path.name)]
    found = sorted([*steps, *directory.glob("*_optim_states.pt")])
    if not found:
        return None
    root = directory if found[0].is_dir() else directory.parent
    place = shlex.quote(str(root))
    # DeepSpeed's own --safe_serialization (0.19.8) fails if embeddings are tied.
    return (
        f"{directory} holds a DeepSpeed training state ({found[0].name}), pickled and split over processes; gather its "
        f"weights once, if you trust them: python -m deepspeed.utils.zero_to_fp32 {place} {place} && "
        + _conversion(root, "pytorch_model*.bin")
    )


def _explain_pickle(directory: Path) -> str | None:
    for pattern in PICKLED_PATTERNS:
        found = sorted(path.name for path in directory.glob(pattern) if not TRAINER_STATE.fullmatch(path.name))
        if found:
            files = pattern if pattern.startswith("pytorch_model") else shlex.quote(found[0])
            return (
                f"{directory} holds pickled weights ({found[0]}), which can run code and are never loaded here; "
                f"convert them once: {_conversion(directory, files)}"
            )
    return None


def _explain_run(directory: Path) -> str | None:
    """Names the checkpoints that lie below a folder without one, such as the output directory of a training run."""
    if (directory / CONFIG_FILE).is_file():
        return None
    for name in RESULT_FOLDERS:
        if (directory / name / CONFIG_FILE).is_file():
            return f"{directory} is the output directory of a run; its checkpoint is {directory / name}: name that"
    kinds = (CONFIG_FILE, ADAPTER_CONFIG_FILE)
    found = sorted(
        {path.parent for depth in ("*", "*/*") for kind in kinds for path in directory.glob(f"{depth}/{kind}")},
        key=_by_step,
    )
    if not found:
        return None
    if {path.parent for path in found} == {directory} and all(TRAINER_STEP.fullmatch(path.name) for path in found):
        return f"{directory} is the output directory of a training run; its newest checkpoint is {found[0]}: name that"
    named = ", ".join(map(str, found[:NUM_NAMED])) + (", …" if len(found) > NUM_NAMED else "")
    return f"{directory} holds no {CONFIG_FILE}; checkpoints below it: {named}"


def _by_step(path: Path) -> tuple[str, int, str]:
    """Sorts folders by name, and the checkpoints of a training run from the newest to the oldest."""
    step = TRAINER_STEP.fullmatch(path.name)
    return str(path.parent), -int(step[1]) if step else 0, path.name


def _conversion(directory: Path, files: str) -> str:
    """Returns the command that turns a folder's pickled files into one safetensors file."""
    place = shlex.quote(str(directory))
    return f'python -c "{PICKLE_TO_SAFETENSORS}" {place}/model.safetensors {place}/{files}'


LOOKS: tuple[Callable[[Path], str | None], ...] = (
    _explain_verl,
    _explain_distributed,
    _explain_shards,
    explain_adapter,
    _explain_pickle,
    _explain_zero,
    _explain_gguf,
    _explain_hub_cache,
    _explain_run,
)
