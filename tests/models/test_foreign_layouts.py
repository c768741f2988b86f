"""Folders as other frameworks leave them: named for what they are, with the command to merge them; none is opened."""

import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.checkpoint import open_checkpoint
from models.completeness import check_complete
from models.layout import layout_of
from models.loading import check_checkpoint, load_processor
from tests.models.damage import WEIGHTS, read_tensors
from tracking.command import REPOSITORY_ROOT

POISON = b"this is no pickle, and nothing may try to read it"


def refused(directory: Path) -> str:
    with pytest.raises(ValueError) as caught:
        open_checkpoint(directory)
    message = str(caught.value)
    assert "\n" not in message
    if not (directory / "config.json").exists():
        with pytest.raises(ValueError, match=re.escape(message)):
            check_checkpoint(str(directory))
    return message


def make_verl(root: Path, model: Path) -> Path:
    """A step of verl or EasyR1 on two processes: pickled shards, and configuration and tokenizer without weights."""
    actor = root / "global_step_40" / "actor"
    shutil.copytree(model, actor / "huggingface", ignore=shutil.ignore_patterns("*.safetensors"))
    for rank in range(2):
        for kind in ("model", "optim", "extra_state"):
            (actor / f"{kind}_world_size_2_rank_{rank}.pt").write_bytes(POISON)
    (root / "global_step_5").mkdir()
    (root / "latest_checkpointed_iteration.txt").write_text("40")
    return actor


@pytest.mark.parametrize("named", ["", "global_step_40", "global_step_40/actor", "global_step_40/actor/huggingface"])
def test_a_checkpoint_of_verl_is_merged_by_verl(pocket_checkpoint: Path, tmp_path: Path, named: str) -> None:
    root = tmp_path / "my run"
    actor = make_verl(root, pocket_checkpoint)
    message = refused(root / named)
    place = shlex.quote(str(actor))
    assert "checkpoint of verl or EasyR1" in message and "2 files" in message
    assert f"python -m verl.model_merger merge --backend fsdp --local_dir {place} --target_dir" in message
    assert f"python3 scripts/model_merger.py --local_dir {place}" in message
    (actor / "fsdp_config.json").write_text("{}")  # verl's own
    assert "scripts/model_merger.py" not in refused(root / named)


def test_merged_weights_inside_a_checkpoint_of_easyr1_are_named(pocket_checkpoint: Path, tmp_path: Path) -> None:
    actor = make_verl(tmp_path, pocket_checkpoint)
    shutil.copy(pocket_checkpoint / WEIGHTS, actor / "huggingface")
    for named in (tmp_path, actor.parent, actor):
        assert refused(named).endswith(f"its merged weights are in {actor / 'huggingface'}: name that")
    open_checkpoint(actor / "huggingface")


def test_a_distributed_checkpoint_is_merged_by_accelerate_or_megatron(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-10" / "pytorch_model_fsdp_0"
    folder.mkdir(parents=True)
    for name in (".metadata", "__0_0.distcp", "__1_0.distcp"):
        (folder / name).write_bytes(POISON)
    for named in (folder, folder.parent):
        assert f"accelerate merge-weights {folder} {folder}-merged" in refused(named)
    (folder / "common.pt").write_bytes(POISON)
    assert f"--backend megatron --local_dir {folder.parent} " in refused(folder)


@pytest.mark.slow
def test_the_command_for_a_distributed_checkpoint_merges_it_bit_by_bit(
    pocket_checkpoint: Path, warm_python: Path, tmp_path: Path
) -> None:
    import torch.distributed.checkpoint as dcp

    folder = tmp_path / "pytorch_model_fsdp_0"
    tensors = read_tensors(pocket_checkpoint)
    dcp.save({"model": tensors}, checkpoint_id=folder, no_dist=True)
    message = refused(folder)
    command = message[message.index("accelerate ") : message.index("; then copy")]
    program = f"{shlex.quote(str(warm_python))} -m accelerate.commands.accelerate_cli"  # what its script runs
    subprocess.run(["bash", "-c", command.replace("accelerate", program, 1)], check=True)
    merged = load_file(f"{folder}-merged/{WEIGHTS}")
    assert set(merged) == set(tensors) and all(torch.equal(merged[name], tensors[name]) for name in tensors)


def test_the_newest_of_a_trainers_checkpoints_is_named(pocket_checkpoint: Path, tmp_path: Path) -> None:
    for step in (90, 100, 1000):
        shutil.copytree(pocket_checkpoint, tmp_path / f"checkpoint-{step}")
    (tmp_path / "training_args.bin").write_bytes(POISON)
    assert refused(tmp_path).endswith(f"its newest checkpoint is {tmp_path / 'checkpoint-1000'}: name that")


def test_adapters_below_a_folder_are_named(tmp_path: Path) -> None:
    for step in (5, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "adapter_config.json").write_text("{}")
    assert refused(tmp_path).endswith(f"its newest checkpoint is {tmp_path / 'checkpoint-10'}: name that")


def test_the_hubs_cache_leads_to_hub_ids(pocket_checkpoint: Path, tmp_path: Path) -> None:
    snapshots = tmp_path / "huggingface" / "hub" / "models--Qwen--Qwen2.5-VL-3B-Instruct" / "snapshots"
    shutil.copytree(pocket_checkpoint, snapshots / ("a" * 40))
    (snapshots.parent / "blobs").mkdir()
    for named in (snapshots.parent, snapshots.parents[1], snapshots.parents[2]):
        assert refused(named).endswith("name the model by its hub id instead: Qwen/Qwen2.5-VL-3B-Instruct")
    open_checkpoint(snapshots / ("a" * 40))


def make_adapter(directory: Path, base: Path, *, old: bool, rank: int = 2) -> dict[str, torch.Tensor]:
    """Writes an adapter on the queries of two layers, in the spelling of Transformers 4.51 or 5, and returns it."""
    directory.mkdir()
    sizes = json.loads((base / "config.json").read_text())["text_config"]
    torch.manual_seed(0)
    prefix = "base_model.model.model." if old else "base_model.model.model.language_model."
    width, hidden = sizes["hidden_size"], sizes["hidden_size"]
    tensors = {}
    for layer in (0, 1):
        for part, shape in (("lora_A", (rank, hidden)), ("lora_B", (width, rank))):
            tensors[f"{prefix}layers.{layer}.self_attn.q_proj.{part}.weight"] = torch.randn(shape)
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 4, "target_modules": ["q_proj"],
        "base_model_name_or_path": str(base),
    }  # fmt: skip
    (directory / "adapter_config.json").write_text(json.dumps(config))
    return tensors


def merged_by(message: str, python: Path, tmp_path: Path) -> Path:
    command = message[message.index("python -c") :].replace("python", shlex.quote(str(python)), 1)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    subprocess.run(["bash", "-c", command], check=True, cwd=REPOSITORY_ROOT, env=environment)
    return tmp_path / "adapter-merged"


def check_merge(base: Path, merged: Path, tensors: dict[str, torch.Tensor], scale: float) -> None:
    before, after = open_checkpoint(base), open_checkpoint(merged)
    check_complete(after, layout_of(merged))
    load_processor(merged)
    for layer in (0, 1):
        name = f"model.language_model.layers.{layer}.self_attn.q_proj.weight"
        down, up = (
            next(tensor for key, tensor in tensors.items() if f"layers.{layer}." in key and part in key)
            for part in ("lora_A", "lora_B")
        )
        expected = before.tensor(name).float() + scale * (up @ down)
        torch.testing.assert_close(after.tensor(name).float(), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.slow
def test_the_advice_merges_an_adapter_in_the_older_spelling(
    pocket_checkpoint: Path, warm_python: Path, tmp_path: Path
) -> None:
    """Given as `adapter_model.bin`, beside weights that were trained in full, which count too."""
    base = Path(shutil.copytree(pocket_checkpoint, tmp_path / "base"))
    adapter = tmp_path / "adapter"
    tensors: dict[str, Any] = make_adapter(adapter, base, old=True)
    torch.save(tensors, adapter / "adapter_model.bin")
    name = "model.visual.merger.ln_q.weight"
    trained = open_checkpoint(base).tensor(name) + 1
    torch.save({f"base_model.model.{name.removeprefix('model.')}": trained}, adapter / "non_lora_state_dict.bin")
    message = refused(adapter)
    assert "PEFT adapter" in message and "together with non_lora_state_dict.bin" in message
    merged = merged_by(message, warm_python, tmp_path)
    check_merge(base, merged, tensors, scale=4 / 2)
    assert torch.equal(open_checkpoint(merged).tensor(name), trained)


@pytest.mark.slow
def test_the_advice_merges_an_adapter_in_the_present_spelling(
    pocket_checkpoint: Path, warm_python: Path, tmp_path: Path
) -> None:
    tensors = make_adapter(tmp_path / "adapter", pocket_checkpoint, old=False)
    save_file(tensors, tmp_path / "adapter" / "adapter_model.safetensors", metadata={"format": "pt"})
    check_merge(
        pocket_checkpoint, merged_by(refused(tmp_path / "adapter"), warm_python, tmp_path), tensors, scale=4 / 2
    )
