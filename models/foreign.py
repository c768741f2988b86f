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
    if not path.is_file():
        return None
    try:
        base = json.loads(path.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (ValueError, LookupError, TypeError):
        base = "its base model"
    return (
        f"{directory} holds a PEFT adapter ({path.name}), which is not a model; name the final/ folder of the run that "
        f"trained it, or merge it into {base}: PeftModel.from_pretrained(model, {str(directory)!r}).merge_and_unload()"
        ".save_pretrained(…)"
    )


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
    found = sorted([*directory.glob("global_step*"), *directory.glob("*_optim_states.pt")])
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
    found = sorted(path.parent for depth in ("*", "*/*") for path in directory.glob(f"{depth}/{CONFIG_FILE}"))
    if not found:
        return None
    named = ", ".join(map(str, found[:NUM_NAMED])) + (", …" if len(found) > NUM_NAMED else "")
    return f"{directory} holds no {CONFIG_FILE}; checkpoints below it: {named}"


def _conversion(directory: Path, files: str) -> str:
    """Returns the command that turns a folder's pickled files into one safetensors file."""
    place = shlex.quote(str(directory))
    return f'python -c "{PICKLE_TO_SAFETENSORS}" {place}/model.safetensors {place}/{files}'


LOOKS: tuple[Callable[[Path], str | None], ...] = (
    _explain_shards,
    _explain_pickle,
    _explain_zero,
    _explain_gguf,
    explain_adapter,
    _explain_run,
)
