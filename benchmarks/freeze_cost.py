"""What does freezing cost, and what does it save? Every arm against `full`, and `full` against plain TRL.

    python -m benchmarks.freeze_cost

One process per contender, all from the same checkpoint with the same seed, prompts and settings; they alternate step by
step, so that slowdowns of the machine affect all of them. Times are CPU seconds. Ratios are taken within a turn; their
median is given with a 95 % bootstrap interval. The contenders: TRL's `GRPOTrainer` alone; `full` and the arms with
`train.grpo`, with shared prompts and including telemetry, checks and records; each also with gradient checkpointing.

Writes `benchmarks/results/freeze_cost.json`.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import numpy as np

from tracking.command import REPOSITORY_ROOT, quiet_libraries
from tracking.product import write_text
from tracking.run import git_state, hardware

RESULT = REPOSITORY_ROOT / "benchmarks" / "results" / "freeze_cost.json"
NUM_LAYERS = 12
NUM_ROUNDS = 40
NUM_WARM_UP = 3
"""Warm-up steps: memory is allocated, and telemetry measures its first step."""
NUM_RESAMPLES = 10_000
ARMS: dict[str, list[str]] = {
    "full": [],
    "freeze-early": ["--freeze", "early"],
    "freeze-mid": ["--freeze", "mid"],
    "freeze-late": ["--freeze", "late"],
    "train-only-late": ["--train_only", "late"],
}
PLAIN = "plain TRL"
CHECKPOINTING = {"off": False, "on": True}


@dataclass
class Contender:
    """A training process that takes one step on request."""

    name: str
    checkpointing: str
    process: "subprocess.Popen[str]"

    def step(self) -> dict[str, float]:
        """Requests one step and returns its measurements."""
        requests, replies = self.process.stdin, self.process.stdout
        assert requests is not None and replies is not None
        _send(requests, "step")
        line = replies.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended early, with exit status {self.process.wait()}")
        measured: dict[str, float] = json.loads(line)
        return measured


def _send(stream: IO[str], line: str) -> None:
    stream.write(line + "\n")
    stream.flush()


def work_step_by_step(arm: str, *, checkpointing: bool, directory: Path) -> None:
    """Trains as one contender, waiting for a request before every step; replies on standard output."""
    from transformers import TrainerCallback

    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    class Turns(TrainerCallback):
        """Reports a step, up to the start of the next, and waits."""

        backward_s = 0.0
        begin: float | None = None

        def account(self) -> None:
            if self.begin is not None:
                step_s = time.process_time() - self.begin
                peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
                _send(
                    replies, json.dumps({"step_s": step_s, "backward_s": Turns.backward_s, "peak_memory_mib": peak_mib})
                )

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.account()
            sys.stdin.readline()
            Turns.backward_s, self.begin = 0.0, time.process_time()

        def on_train_end(self, *_: Any, **__: Any) -> None:
            self.account()

    def with_turns(trainer: Any) -> None:
        backward = trainer.accelerator.backward

        def timed(*arguments: Any, **options: Any) -> None:
            begin = time.process_time()
            backward(*arguments, **options)
            Turns.backward_s += time.process_time() - begin

        trainer.accelerator.backward = timed
        trainer.add_callback(Turns())

    settings = {
        "model_name_or_path": directory / "start" / "checkpoint", "prompts": directory / "prompts", "split": "rl",
        "output_dir": directory / f"{arm}-{checkpointing}", "max_steps": NUM_WARM_UP + NUM_ROUNDS, "use_cpu": True,
        "per_device_train_batch_size": 16, "num_generations": 8, "max_completion_length": 24, "beta": 0.0,
        "learning_rate": 1e-6, "save_strategy": "no", "report_to": "none", "bf16": False, "logging_steps": 10,
        "gradient_checkpointing": checkpointing,
    }  # fmt: skip
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    if arm == PLAIN:
        train_plain(words, with_turns)
    else:
        train_ours([*words, *ARMS[arm]], with_turns)


def train_ours(words: list[str], with_turns: Callable[[Any], None]) -> None:
    """Trains with `train.grpo`; its trainer is given to `with_turns` first."""
    import train.grpo
    import train.running.trainers

    watched = train.running.trainers.WatchedGRPOTrainer

    class Taking(watched):  # type: ignore[valid-type, misc]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            with_turns(self)

    train.running.trainers.WatchedGRPOTrainer = Taking  # type: ignore[misc]
    try:
        train.grpo.main(words)
    finally:
        train.running.trainers.WatchedGRPOTrainer = watched  # type: ignore[misc]


def train_plain(words: list[str], with_turns: Callable[[Any], None]) -> None:
    """Trains as in TRL's documentation, with the same model, prompts, order and rewards, and nothing else."""
    from trl import GRPOConfig, GRPOTrainer, ModelConfig

    from models.loading import load_model, load_processor
    from tracking.command import parse_arguments
    from train.rewards.functions import accuracy, format
    from train.running.data import DataArguments, build_dataset, load_prompts, training_order

    training, model, data = parse_arguments(words, GRPOConfig, ModelConfig, DataArguments, description=None)
    training.shuffle_dataset = False
    prompts = load_prompts(data)
    needed = training.max_steps * training.generation_batch_size // training.num_generations
    order = training_order(len(prompts), needed, seed=training.seed)
    trainer = GRPOTrainer(
        load_model(Path(model.model_name_or_path)),
        reward_funcs=[accuracy, format],
        args=training,
        train_dataset=build_dataset(prompts, order, data, with_response=False),
        processing_class=load_processor(Path(model.model_name_or_path)),
    )
    with_turns(trainer)
    trainer.train()


def prepare(directory: Path) -> None:
    """Writes a 12-layer pocket model and prompts with one image each (plain TRL fails if only some have one)."""
    from PIL import Image

    from data_builders.prompt_sets.prompts import Prompt, write_prompts
    from models.pocket import PocketShape, write_pocket_checkpoint

    write_pocket_checkpoint(directory / "start" / "checkpoint", shape=PocketShape(num_layers=NUM_LAYERS), seed=0)
    (directory / "prompts" / "images").mkdir(parents=True)
    prompts = []
    for index, (colour, rgb) in enumerate([("red", (214, 40, 40)), ("blue", (40, 80, 210))] * 16):
        Image.new("RGB", (56, 56), rgb).save(directory / "prompts" / "images" / f"{index}.png")
        prompts.append(
            Prompt(
                id=str(index), ability="vision", question="What colour is it ?", answer=colour, answer_kind="text",
                images=(f"images/{index}.png",),
            )
        )  # fmt: skip
    write_prompts(directory / "prompts", "rl", prompts)


def start_contender(name: str, checkpointing: str, directory: Path) -> Contender:
    """Starts a process; it loads, and waits before its first step."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [sys.executable, "-m", "benchmarks.freeze_cost", "--worker", name]
    with (directory / f"{name}-{checkpointing}.log".replace(" ", "-")).open("w") as log:
        process = subprocess.Popen(
            [*command, "--checkpointing", checkpointing, "--directory", str(directory)],
            cwd=REPOSITORY_ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
        )  # fmt: skip
    return Contender(name, checkpointing, process)


def ratio(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """Returns the median of the paired ratios with its 95 % percentile bootstrap interval."""
    from scipy.stats import bootstrap

    ratios = np.array(ours) / np.array(theirs)
    interval = bootstrap(
        (ratios,), np.median, n_resamples=NUM_RESAMPLES, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    return {"median": float(np.median(ratios)), "low": float(interval.low), "high": float(interval.high)}


def measure(directory: Path) -> list[dict[str, Any]]:
    """Runs all contenders in alternation and returns one row for each."""
    prepare(directory)
    names = [PLAIN, *ARMS]
    rows = []
    for checkpointing in CHECKPOINTING:
        contenders = [start_contender(name, checkpointing, directory) for name in names]
        measured: dict[str, list[dict[str, float]]] = {name: [] for name in names}
        for round_number in range(NUM_WARM_UP + NUM_ROUNDS):
            shift = round_number % len(contenders)  # vary the predecessor
            for contender in contenders[shift:] + contenders[:shift]:
                reply = contender.step()
                if round_number >= NUM_WARM_UP:
                    measured[contender.name].append(reply)
        for contender in contenders:
            contender.process.wait(timeout=120)
        for name in names:
            times = {key: [row[key] for row in measured[name]] for key in ("step_s", "backward_s")}
            against = {key: [row[key] for row in measured["full"]] for key in times}
            rows.append(
                {
                    "contender": name,
                    "gradient_checkpointing": checkpointing,
                    "num_steps": NUM_ROUNDS,
                    "step_s": float(np.median(times["step_s"])),
                    "backward_s": float(np.median(times["backward_s"])),
                    "peak_memory_mib": max(row["peak_memory_mib"] for row in measured[name]),
                    "step_ratio_to_full": ratio(times["step_s"], against["step_s"]),
                    "backward_ratio_to_full": ratio(times["backward_s"], against["backward_s"]),
                    "step_ratio_to_plain": ratio(times["step_s"], [row["step_s"] for row in measured[PLAIN]]),
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--result", type=Path, default=RESULT, help="JSON file to write")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--checkpointing", choices=list(CHECKPOINTING), default="off", help=argparse.SUPPRESS)
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    quiet_libraries()
    if arguments.worker:
        work_step_by_step(
            arguments.worker, checkpointing=CHECKPOINTING[arguments.checkpointing], directory=arguments.directory
        )
        return
    with tempfile.TemporaryDirectory() as directory:
        rows = measure(Path(directory))
    result = {
        "command": "python -m benchmarks.freeze_cost",
        "git": git_state(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": hardware(),
        "model": f"pocket, {NUM_LAYERS} decoder layers",
        "rows": rows,
    }
    write_text(arguments.result, json.dumps(result, indent=1) + "\n")
    for row in rows:
        step, backward, plain = (
            row[f"{name}"] for name in ("step_ratio_to_full", "backward_ratio_to_full", "step_ratio_to_plain")
        )
        print(
            f"{row['contender']:<16} checkpointing {row['gradient_checkpointing']:<4} step {row['step_s']:.3f} s "
            f"({step['median']:.2f} of full, {plain['median']:.3f} [{plain['low']:.3f}, {plain['high']:.3f}] of plain) "
            f"backward {backward['median']:.2f} [{backward['low']:.2f}, {backward['high']:.2f}] of full, "
            f"{row['peak_memory_mib']:.0f} MiB"
        )


if __name__ == "__main__":
    main()
