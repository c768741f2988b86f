"""Two processes under torchrun that fail, are killed or stopped: their messages and output files.

Three launches of this file, in which runs of `train.grpo` share processes. The first ends by SIGKILL of one process;
the second continues that run and ends by SIGTERM to torchrun; the third continues that one and ends by a breach.
"""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.freezing import released
from models.checkpoint import open_checkpoint
from tests.warm import FRONT_PARENT
from tracking.command import REPOSITORY_ROOT

NUM_STEPS = 8
SETTINGS: dict[str, Any] = {
    "split": "rl", "max_steps": NUM_STEPS, "per_device_train_batch_size": 4, "num_generations": 4,
    "max_completion_length": 8, "temperature": 1.0, "learning_rate": 1e-3, "beta": 0.0, "logging_steps": 2,
    "save_steps": 4, "report_to": "none", "bf16": False, "gradient_checkpointing": False, "use_cpu": True, "seed": 3,
    "freeze": "mid", "ddp_timeout": 60,
}  # fmt: skip
MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "unknown block": ({"freeze": "midd"}, "block expression 'midd' is unknown; did you mean 'mid'"),
    "missing checkpoint": ({"model_name_or_path": "no/such/checkpoint"}, "no/such/checkpoint does not exist"),
    "other settings": ({"output_dir": "undisturbed", "seed": 4}, "was made with training.seed = 3, now it is 4"),
    "other number of processes": ({"output_dir": "four"}, "was begun by 4 processes, now there are 2"),
    "torn records": ({"output_dir": "torn"}, "not a record"),
    "full disk": ({"output_dir": "full", "keep_trajectory": 1}, "No space left on device"),
}
"""What a person gets wrong -> changed settings, and what is said of it. The disk is full for kept steps alone."""


def launch(
    python: Path, work: Path, start: Path, prompts: Path, *jobs: dict[str, Any]
) -> subprocess.CompletedProcess[str]:
    """Runs jobs in two processes."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY_ROOT), "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [str(python), "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__]
    return subprocess.run(
        [*command, str(work), str(start), str(prompts), json.dumps(jobs)],
        cwd=REPOSITORY_ROOT, env=environment, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def killed(
    warm_python: Path, warm_checkpoint: Path, tiny_prompts: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """One run from beginning to end, and one in which a process was killed."""
    work = tmp_path_factory.mktemp("processes")
    done = launch(
        warm_python, work, warm_checkpoint, tiny_prompts,
        {"output_dir": "undisturbed"}, {"output_dir": "killed", "sabotage": "kill"},
    )  # fmt: skip
    assert (work / "undisturbed" / "final").exists(), done.stderr[-6000:]
    assert done.returncode == 1
    shutil.copytree(work / "killed", work / "as killed")
    return work


@pytest.fixture(scope="module")
def stopped(warm_python: Path, killed: Path, warm_checkpoint: Path, tiny_prompts: Path) -> tuple[Path, str]:
    """The killed run continued, mistakes made, and one run that was told to stop; with what was said."""
    for name in ("four", "torn"):
        shutil.copytree(killed / "as killed", killed / name)
    state = json.loads((killed / "four" / "run.json").read_text())
    state["settings"]["num_processes"] = 4
    (killed / "four" / "run.json").write_text(json.dumps(state))
    with (killed / "torn" / "records.jsonl").open("a") as file:
        file.write("{}\n")
    done = launch(
        warm_python, killed, warm_checkpoint, tiny_prompts, {"output_dir": "killed"},
        *({"output_dir": "nowhere", "mistake": name, **changes} for name, (changes, _) in MISTAKES.items()),
        {"output_dir": "stopped", "sabotage": "stop"},
    )  # fmt: skip
    assert (killed / "stopped").exists(), done.stderr[-6000:]
    assert done.returncode != 0
    shutil.copytree(killed / "stopped", killed / "as stopped")
    return killed, done.stderr


@pytest.fixture(scope="module")
def breached(
    warm_python: Path, stopped: tuple[Path, str], warm_checkpoint: Path, tiny_prompts: Path
) -> tuple[Path, str, float]:
    """The stopped run continued, and one that changed what is frozen; with what was said, and how long it took to."""
    work, _ = stopped
    done = launch(
        warm_python, work, warm_checkpoint, tiny_prompts,
        {"output_dir": "stopped"}, {"output_dir": "breached", "sabotage": "breach"},
    )  # fmt: skip
    ended = time.time()
    assert (work / "breached" / "run.json").exists(), done.stderr[-6000:]
    assert done.returncode == 1
    return work, done.stderr, ended - (work / "breached" / "run.json").stat().st_mtime


def weights(directory: Path) -> dict[str, bytes]:
    checkpoint = open_checkpoint(directory)
    return {name: bytes(checkpoint.data(name)) for name in checkpoint.tensors}


def status(directory: Path) -> str:
    return str(json.loads((directory / "run.json").read_text())["status"])


def tracebacks(stderr: str) -> list[str]:
    """Returns the lines that begin a traceback in one of the processes; torchrun's own has no rank."""
    return [line for line in stderr.splitlines() if line.startswith("[rank") and "Traceback" in line]


@pytest.mark.slow
@pytest.mark.parametrize("mistake", list(MISTAKES))
def test_a_mistake_ends_every_process_with_the_same_words(mistake: str, stopped: tuple[Path, str]) -> None:
    work, _ = stopped
    said = [json.loads((work / f"{mistake} {rank}.json").read_text()) for rank in (0, 1)]
    assert said[0] == said[1] and MISTAKES[mistake][1] in said[0] and "\n" not in said[0]
    assert not (work / "nowhere").exists()


@pytest.mark.slow
def test_a_run_continues_after_a_process_was_killed(stopped: tuple[Path, str]) -> None:
    work, _ = stopped
    assert [path.name for path in (work / "as killed" / "checkpoints").glob("checkpoint-*")] == ["checkpoint-4"]
    assert not (work / "as killed" / "final").exists()
    assert weights(work / "killed" / "final") == weights(work / "undisturbed" / "final")


@pytest.mark.slow
def test_a_run_stopped_through_torchrun_saves_and_continues(
    stopped: tuple[Path, str], breached: tuple[Path, str, float]
) -> None:
    work, said = stopped
    (step,) = re.findall(r"^stopped by SIGTERM after step (\d+) of 8; the same command continues", said, re.MULTILINE)
    assert 3 <= int(step) < NUM_STEPS and not tracebacks(said)
    assert (work / "as stopped" / "checkpoints" / f"checkpoint-{step}").exists()
    assert status(work / "as stopped") == "interrupted" and not (work / "as stopped" / "final").exists()
    assert weights(work / "stopped" / "final") == weights(work / "undisturbed" / "final")


@pytest.mark.slow
def test_a_breach_ends_both_processes_with_one_line_and_no_result(breached: tuple[Path, str, float]) -> None:
    work, said, ending_s = breached
    assert len([line for line in said.splitlines() if line.startswith("error")]) == 1 and not tracebacks(said)
    assert "1 frozen tensors changed" in said and status(work / "breached") == "failed"
    assert not (work / "breached" / "final").exists() and ending_s < 8


def main() -> None:
    from transformers import TrainerCallback

    import train.running.trainers
    from merge.trajectories.store import StepWriter
    from train.grpo import main as grpo

    def cannot_add(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    class Sabotage(TrainerCallback):
        kind: str | None = None

        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            rank = args.process_index
            if (self.kind, state.global_step, rank) == ("kill", 5, 1):
                os.kill(os.getpid(), signal.SIGKILL)
            if (self.kind, state.global_step, rank) == ("stop", 3, 0):
                os.kill(int(os.environ.get(FRONT_PARENT) or os.getppid()), signal.SIGTERM)
                time.sleep(1)  # torchrun has passed it on
            if (self.kind, state.global_step) == ("breach", 1):
                frozen = next(parameter for parameter in model.parameters() if not parameter.requires_grad)
                frozen.data.view(-1)[0] += 1

    class Sabotaged(train.running.trainers.WatchedGRPOTrainer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.add_callback(Sabotage)

    train.running.trainers.WatchedGRPOTrainer = Sabotaged
    work, start, prompts = (Path(argument) for argument in sys.argv[1:4])
    for job in json.loads(sys.argv[4]):
        Sabotage.kind, mistake = job.pop("sabotage", None), job.pop("mistake", None)
        values = {**SETTINGS, "model_name_or_path": start, "prompts": prompts, **job,
                  "output_dir": work / job["output_dir"]}  # fmt: skip
        arguments = [word for name, value in values.items() for word in (f"--{name}", str(value))]
        with released():
            if mistake is None:
                grpo(arguments)
                continue
            with pytest.raises((ValueError, OSError)) as caught, pytest.MonkeyPatch.context() as patch:
                if mistake == "full disk":
                    patch.setattr(StepWriter, "add", cannot_add)
                grpo(arguments)
        (work / f"{mistake} {os.environ['RANK']}.json").write_text(json.dumps(str(caught.value)))


if __name__ == "__main__":
    from tracking.command import run_command

    run_command(main)
