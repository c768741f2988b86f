"""The way out that a message gives is one that works."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from models.checkpoint import open_checkpoint
from models.completeness import check_complete
from models.layout import layout_of, read_model_config
from tests.models.damage import DAMAGES, WEIGHTS, read_tensors
from tracking.command import REPOSITORY_ROOT


def command_in(message: str, python: Path) -> str:
    """Returns the command that a message ends with, run by an interpreter."""
    return message[message.index("python -c") :].replace("python", shlex.quote(str(python)), 1)


def refused(directory: Path) -> str:
    with pytest.raises(ValueError) as caught:
        open_checkpoint(directory)
    return str(caught.value)


@pytest.fixture
def directory(pocket_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the pocket checkpoint, in a folder whose name a shell would take apart."""
    return Path(shutil.copytree(pocket_checkpoint, tmp_path / "my $HOME's (old) checkpoint"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["file", "shards", "other name"])
def test_the_command_for_pickled_weights_converts_them_bit_by_bit(
    directory: Path, kind: str, warm_python: Path
) -> None:
    before = open_checkpoint(directory)
    digests = {name: before.sha256(name) for name in before.tensors}
    tensors = read_tensors(directory)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]  # one storage under two names
    up = [name for name in tensors if name.endswith("up_proj.weight")]
    tensors |= {name: tensors[name].T.contiguous().T for name in up}  # not contiguous
    halves = [dict(list(tensors.items())[:50]), dict(list(tensors.items())[50:])]
    if kind == "shards":
        for number, half in enumerate(halves, 1):
            torch.save(half, directory / f"pytorch_model-0000{number}-of-00002.bin")
    else:
        torch.save(tensors, directory / ("pytorch_model.bin" if kind == "file" else "weights of mine.pt"))
    torch.save({"lr": 1}, directory / "training_args.bin")
    torch.save({"lr": 1}, directory / "optimizer.pt")
    (directory / WEIGHTS).unlink()
    command = command_in(refused(directory), warm_python)
    subprocess.run(["bash", "-c", command], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    after = open_checkpoint(directory)
    assert {name: after.sha256(name) for name in digests} == digests
    assert set(after.tensors) - set(digests) == {"lm_head.weight"}


@pytest.mark.slow
def test_the_command_for_pickled_weights_runs_no_code_in_them(directory: Path, warm_python: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(directory / "ran"),)

    (directory / WEIGHTS).unlink()
    torch.save({"a": Evil()}, directory / "pytorch_model.bin")
    command = command_in(refused(directory), warm_python)
    done = subprocess.run(["bash", "-c", command], check=False, capture_output=True, text=True)
    assert done.returncode and "weights_only" in done.stderr.lower().replace(" ", "_")
    assert not (directory / "ran").exists() and not (directory / WEIGHTS).exists()


@pytest.mark.parametrize("name", ["adapter_alone", "deepspeed_state", "gguf_weights"])
def test_reading_the_layout_alone_explains_a_folder_without_configuration(directory: Path, name: str) -> None:
    damage, message = DAMAGES[name]
    damage(directory)
    (directory / "config.json").unlink(missing_ok=True)
    for read in (read_model_config, layout_of, open_checkpoint):
        with pytest.raises(ValueError, match=message):
            read(directory)


def test_a_state_named_without_its_run_leads_to_the_run(directory: Path) -> None:
    DAMAGES["deepspeed_state"][0](directory)
    run = shlex.quote(str(directory))
    assert f"python -m deepspeed.utils.zero_to_fp32 {run} {run} && python -c " in refused(directory / "global_step10")


def test_what_a_run_leaves_beside_a_model_is_no_model(directory: Path) -> None:
    (directory / WEIGHTS).unlink()
    for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state_0.pth", "scaler.pt"):
        (directory / name).touch()
    assert f"{WEIGHTS} does not exist; expected" in refused(directory)


SAVE_WITH_DEEPSPEED = """
import sys, torch, deepspeed
from pathlib import Path
from models.loading import load_model
from train.running.collectives import skip_shared_memory
skip_shared_memory()
deepspeed.init_distributed(
    "gloo", auto_mpi_discovery=False, init_method=f"file://{sys.argv[3]}", rank=0, world_size=1
)
model = load_model(Path(sys.argv[1]))
engine, *_ = deepspeed.initialize(model=model, optimizer=torch.optim.AdamW(model.parameters()), config={
    "train_batch_size": 1, "zero_optimization": {"stage": 3},
    "zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False,
})
engine.save_checkpoint(sys.argv[2])
"""


@pytest.mark.slow
def test_the_command_for_a_deepspeed_state_gathers_its_weights(
    pocket_checkpoint: Path, directory: Path, warm_python: Path
) -> None:
    (directory / WEIGHTS).unlink()
    process = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "DS_ACCELERATOR": "cpu"}
    meeting_point = str(directory.parent / "meeting-point")
    save = [warm_python, "-c", SAVE_WITH_DEEPSPEED, str(pocket_checkpoint), str(directory), meeting_point]
    subprocess.run(save, check=True, cwd=REPOSITORY_ROOT, env={**os.environ, "OMP_NUM_THREADS": "1", **process})
    message = refused(directory)
    command = message[message.index("python -m") :].replace("python -", f"{shlex.quote(str(warm_python))} -")
    subprocess.run(["bash", "-c", command], check=True)
    start, gathered = open_checkpoint(pocket_checkpoint), open_checkpoint(directory)
    check_complete(gathered, layout_of(directory))
    assert all(gathered.sha256(name) == start.sha256(name) for name in start.tensors)
