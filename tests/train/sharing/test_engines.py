"""Runs with shared prompts end as plain TRL's do under DDP and ZeRO. One launch of two processes for all engines.

Groups are cut by passes and by processes. Each generation batch has pictures or none (the suite allows no other over
several processes); a run has both kinds.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from benchmarks.freezing import deepspeed_settings, released
from models.checkpoint import open_checkpoint
from tracking.command import REPOSITORY_ROOT
from tracking.records import read_records

TOLERANCE = 1e-5
SETTINGS: dict[str, Any] = {
    "split": "rl", "max_steps": 4, "per_device_train_batch_size": 3, "gradient_accumulation_steps": 2,
    "num_generations": 4, "num_iterations": 2, "max_completion_length": 8, "beta": 0.2, "temperature": 1.0,
    "learning_rate": 0.1, "adam_epsilon": 1.0, "logging_steps": 1, "save_strategy": "no", "report_to": "none",
    "bf16": False, "gradient_checkpointing": True, "rewards": "varied_replies:varied", "use_cpu": True, "seed": 3,
    "ddp_timeout": 120,
}  # fmt: skip
"""With so large an epsilon Adam's update is nearly proportional to the gradient. With the usual one, rounding in a
gradient that is itself a rounding error would become a step of full length."""
ENGINES = ("DDP", "ZeRO-1", "ZeRO-2", "ZeRO-3")
CASES: dict[str, dict[str, Any]] = {
    "everything trains, non-reentrant checkpointing": {
        "gradient_checkpointing_kwargs": '{"use_reentrant": false}',
    },
    "fixed tower, reentrant checkpointing": {
        "gradient_checkpointing_kwargs": '{"use_reentrant": true}',
        "always_freeze": ["vision", "projector"],
    },
}
"""DDP refuses reentrant checkpointing if the tower trains and some prompts have no pictures."""
GENERATES_IN_PARTS = ("ZeRO-3", "fixed tower, reentrant checkpointing")
"""Here ZeRO-3 does not gather the weights for the rollouts, so that they are TRL's."""
MODES = {"shared": "true", "plain": "false"}
REWARD = """
def varied(completions, **columns):
    return [float(len(set(messages[-1]["content"]))) for messages in completions]
"""


def run_name(engine: str, case: str, mode: str) -> str:
    return f"{engine}, {case}, {mode}"


@pytest.fixture(scope="module")
def work(
    warm_python: Path, shallow_checkpoint: Path, tiny_prompts: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder with a run per engine, case and mode."""
    work = tmp_path_factory.mktemp("sharing-engines")
    (work / "varied_replies.py").write_text(REWARD)
    jobs: dict[str, list[str]] = {}
    for engine in ENGINES:
        values: dict[str, Any] = {**SETTINGS, "model_name_or_path": shallow_checkpoint, "prompts": tiny_prompts}
        if engine.startswith("ZeRO"):
            values["deepspeed"] = work / f"{engine}.json"
            values["deepspeed"].write_text(json.dumps(deepspeed_settings({"stage": int(engine[-1])})))
        for case, changes in CASES.items():
            for mode, share in MODES.items():
                name = run_name(engine, case, mode)
                given = {**values, **changes, "share_prompts": share, "output_dir": work / name}
                if (engine, case) == GENERATES_IN_PARTS:
                    given["ds3_gather_for_generation"] = False
                jobs[name] = [
                    word
                    for key, value in given.items()
                    for word in (f"--{key}", *(value if isinstance(value, list) else [str(value)]))
                ]
    said = launch(work, jobs, warm_python)
    (work / "said.json").write_text(json.dumps(said))
    return work


def launch(work: Path, jobs: dict[str, list[str]], python: Path) -> dict[str, str]:
    """Runs `train.grpo` with each job's arguments in two processes; returns what each says of shared prompts."""
    (work / "jobs.json").write_text(json.dumps(jobs))
    paths = os.pathsep.join([str(REPOSITORY_ROOT), str(work)])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [str(python), "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__]
    done = subprocess.run(
        [*command, str(work)], cwd=REPOSITORY_ROOT, env=environment, capture_output=True, text=True, timeout=900,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-6000:]
    said = [line for line in done.stdout.splitlines() if line.startswith("shared prompts: ")]
    return dict(zip(jobs, said, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("case", list(CASES))
@pytest.mark.parametrize("engine", ENGINES)
def test_loss_gradient_norm_and_weights_are_those_of_plain_trl(
    engine: str, case: str, work: Path, shallow_checkpoint: Path
) -> None:
    directories = {mode: work / run_name(engine, case, mode) for mode in MODES}
    passes = {mode: read_passes(directory) for mode, directory in directories.items()}
    assert not passes["plain"] and all(passes["shared"].values()) and len(passes["shared"]) == 2
    shared, plain = (pd.DataFrame(read_records(directories[mode] / "records.jsonl")) for mode in ("shared", "plain"))
    said = json.loads((work / "said.json").read_text())[run_name(engine, case, "shared")]
    in_parts = "not in rollouts, because ds3_gather_for_generation is false"
    assert said.startswith("shared prompts: yes, ") and (in_parts in said) == ((engine, case) == GENERATES_IN_PARTS)
    assert len(plain) == SETTINGS["max_steps"] and plain["frac_reward_zero_std"].max() < 1
    assert shared["reward"].dropna().tolist() == plain["reward"].dropna().tolist()
    assert plain["kl"].max() > 1e-4
    assert shared["grad_norm"].tolist() == pytest.approx(plain["grad_norm"].tolist(), rel=TOLERANCE)
    # The loss is a mean of advantages of about 1 that nearly cancel: its rounding error does not shrink with it.
    assert shared["loss"].tolist() == pytest.approx(plain["loss"].tolist(), rel=TOLERANCE, abs=1e-6)
    start, ours, theirs = map(
        open_checkpoint, (shallow_checkpoint, directories["shared"] / "final", directories["plain"] / "final")
    )
    moved, apart = 0.0, 0.0
    for name in start.tensors:
        before, one, other = (
            torch.frombuffer(bytearray(each.data(name)), dtype=torch.float32) for each in (start, ours, theirs)
        )
        assert (one - other).norm() <= TOLERANCE * other.norm(), name
        moved += float((other - before).square().sum())
        apart += float((one - other).square().sum())
    assert moved**0.5 > 1e-2 and apart**0.5 <= 1e-4 * moved**0.5, (apart**0.5, moved**0.5)


def read_passes(directory: Path) -> dict[bool, bool]:
    """Returns, for passes with and without pictures, whether all of them shared prompts in both processes."""
    found: dict[bool, bool] = {}
    for rank in (0, 1):
        for seeing, packed in json.loads((directory.parent / f"{directory.name} {rank}.json").read_text()):
            found[seeing] = found.get(seeing, True) and packed
    return found


def main() -> None:
    import train.sharing.trainer as sharing
    from train.grpo import main as grpo

    passes: list[tuple[bool, bool]] = []
    lay_out = sharing.layout_if_cheaper

    def noted(batch: Any, *, hidden_size: int) -> Any:
        found = lay_out(batch, hidden_size=hidden_size)
        passes.append((batch.pictures is not None, found is not None))
        return found

    sharing.layout_if_cheaper = noted
    work = Path(sys.argv[1])
    for name, arguments in json.loads((work / "jobs.json").read_text()).items():
        passes.clear()
        with released():
            grpo(arguments)
        (work / f"{name} {os.environ['RANK']}.json").write_text(json.dumps(passes))


if __name__ == "__main__":
    from tracking.command import run_command

    run_command(main)
