"""Training that Slurm stops, requeues and distributes gives the same results as an uninterrupted run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from models.checkpoint import open_checkpoint
from tests.slurm.real_slurm import NODES, RealSlurm

pytestmark = [pytest.mark.slow, pytest.mark.slurm]

SETTINGS: dict[str, Any] = {
    "split": "sft", "per_device_train_batch_size": 4, "learning_rate": 1e-3, "logging_steps": 10,
    "save_strategy": "no", "report_to": "none", "bf16": False, "gradient_checkpointing": False, "use_cpu": True,
    "seed": 3,
}  # fmt: skip
NUM_STEPS = 120
"""At least 48 s of patient steps (`patient.py`): the one minute that is Slurm's shortest limit ends in training."""


def training(start: Path, prompts: Path, output_dir: Path, **changes: Any) -> list[str]:
    values = {**SETTINGS, "model_name_or_path": start, "prompts": prompts, "output_dir": output_dir, **changes}
    return ["train.sft", *(word for name, value in values.items() for word in (f"--{name}", str(value)))]


def state(directory: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((directory / "run.json").read_text())
    return loaded


def weights(directory: Path) -> dict[str, bytes]:
    checkpoint = open_checkpoint(directory)
    return {name: bytes(checkpoint.data(name)) for name in checkpoint.tensors}


def stops(directory: Path) -> list[int]:
    """Returns the steps after which a run saved itself and stopped."""
    errors = [attempt.get("error") or "" for attempt in state(directory)["attempts"]]
    return [int(error.split("after step ")[1].split()[0].rstrip(";,.:")) for error in errors if "after step " in error]


def test_a_job_that_is_requeued_and_comes_to_its_time_limit_ends_as_an_undisturbed_one(
    slurm: RealSlurm,
    submit: Callable[..., str],
    cluster_file: Callable[..., Path],
    pocket_checkpoint: Path,
    tiny_prompts: Path,
    warm_python: Path,
    tmp_path: Path,
) -> None:
    warm = f"export PATH={warm_python.parent}:$PATH"
    patient = tmp_path / "patient" / "python"
    patient.parent.mkdir()
    patient.write_text(f'#!/bin/sh\nshift # -m\nexec {warm_python} {Path(__file__).with_name("patient.py")} "$@"\n')
    patient.chmod(0o755)
    # The attempt after the requeued one begins late, so that its limit comes in training whenever in its period the
    # controller looks. On a busy machine an attempt may end while its libraries are imported, so there are many.
    hurried = cluster_file(
        time=["default=00:01:00"],
        environment=[f"export PATH={patient.parent}:$PATH", "((attempt != 2)) || sleep 15"],
        max_attempts=30,
    )
    clusters = {"stopped": hurried, "undisturbed": cluster_file(environment=[warm])}
    ids = {
        name: submit(
            name, training(pocket_checkpoint, tiny_prompts, tmp_path / name, max_steps=NUM_STEPS), tmp_path / name, file
        )
        for name, file in clusters.items()
    }
    slurm.wait((tmp_path / "stopped" / "progress.json").exists, within_s=300, what="training begins")
    slurm.run("scontrol", "requeue", ids["stopped"])
    ended = slurm.wait_until_idle(within_s=900)
    logs = {name: (tmp_path / "slurm" / "logs" / f"{name}.1.log").read_text() for name in clusters}
    assert {ended[identifier] for identifier in ids.values()} == {"COMPLETED"}, logs
    assert len(state(tmp_path / "undisturbed")["attempts"]) == 1
    stopped_after = stops(tmp_path / "stopped")
    assert len(stopped_after) >= 2 and all(0 < step < NUM_STEPS for step in stopped_after), logs["stopped"]
    assert weights(tmp_path / "stopped" / "final") == weights(tmp_path / "undisturbed" / "final")
    theirs, ours = (
        pd.read_csv(tmp_path / name / "metrics.csv").set_index("step") for name in ("undisturbed", "stopped")
    )
    cut = {row for row in theirs.index for step in stopped_after if step < row <= step + SETTINGS["logging_steps"]}
    whole = theirs.index.difference(cut)
    pd.testing.assert_frame_equal(ours.loc[whole], theirs.loc[whole])


LAUNCHER = """#!/bin/bash
[[ -e {folder}/saved$SLURM_NODEID ]] && exit
trap 'sleep 1; touch {folder}/saved$SLURM_NODEID; exit 75' TERM
touch {folder}/ready$SLURM_NODEID
for _ in {{1..600}}; do sleep 0.1; done
"""


def test_ahead_of_the_time_limit_all_nodes_save_themselves(
    slurm: RealSlurm, submit: Callable[..., str], cluster_file: Callable[..., Path], tmp_path: Path
) -> None:
    """The launcher of each node is a stand-in, which needs a second to save."""
    (tmp_path / "bin").mkdir()
    launcher = tmp_path / "bin" / "accelerate"
    launcher.write_text(LAUNCHER.format(folder=tmp_path))
    launcher.chmod(0o755)
    cluster = cluster_file(environment=[f"export PATH={tmp_path}/bin:$PATH"])
    number = submit("arm", ["train.grpo"], tmp_path / "arm", cluster, shape="nodes", nodes=2)
    slurm.wait(lambda: len(list(tmp_path.glob("ready?"))) == 2, within_s=60, what="both nodes run")
    slurm.run("scancel", "--batch", "--signal=USR1", number)
    ended = slurm.wait_until_idle(within_s=120)
    said = (tmp_path / "slurm" / "logs" / "arm.1.log").read_text()
    assert {path.name for path in tmp_path.glob("saved?")} == {"saved0", "saved1"}, said
    assert ended[number] == "COMPLETED", said


def test_two_nodes_train_one_model_with_zero(
    slurm: RealSlurm,
    submit: Callable[..., str],
    cluster_file: Callable[..., Path],
    pocket_checkpoint: Path,
    tiny_prompts: Path,
    warm_python: Path,
    tmp_path: Path,
) -> None:
    engine = {
        "zero_optimization": {"stage": 2}, "train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto", "gradient_clipping": "auto", "bf16": {"enabled": "auto"},
        "zero_force_ds_cpu_optimizer": False, "zero_allow_untested_optimizer": True,
    }  # fmt: skip
    (tmp_path / "zero2.json").write_text(json.dumps(engine))
    launcher = tmp_path / "bin" / "accelerate"
    launcher.parent.mkdir()
    launcher.write_text(f'#!/bin/sh\nexec {warm_python} -m accelerate.commands.accelerate_cli "$@"\n')
    launcher.chmod(0o755)
    cluster = cluster_file(
        environment=[
            f"export PATH={launcher.parent}:$PATH", "export ACCELERATE_USE_DEEPSPEED=true DS_ACCELERATOR=cpu",
        ]
    )  # fmt: skip
    together, on_one_node = (tmp_path / name for name in ("together", "on_one_node"))
    changes = {
        "max_steps": 4, "logging_steps": 1, "per_device_train_batch_size": 2, "deepspeed": tmp_path / "zero2.json",
    }  # fmt: skip
    command = training(pocket_checkpoint, tiny_prompts, together, **changes)
    number = submit("together", command, together, cluster, shape="nodes", nodes=2)
    slurm.run(
        str(warm_python), "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m",
        *training(pocket_checkpoint, tiny_prompts, on_one_node, **changes),
        ACCELERATE_USE_DEEPSPEED="true", DS_ACCELERATOR="cpu",
    )  # fmt: skip
    ended = slurm.wait_until_idle(within_s=200)
    log = (tmp_path / "slurm" / "logs" / "together.1.log").read_text()
    assert ended[number] == "COMPLETED", log
    assert state(together)["settings"]["num_processes"] == 2
    used = slurm.run("squeue", "--noheader", "--states=all", f"--jobs={number}", "--format=%N")
    assert set(slurm.run("scontrol", "show", "hostnames", used.strip()).split()) == set(NODES)
    assert weights(together / "final") == weights(on_one_node / "final") != weights(pocket_checkpoint)
