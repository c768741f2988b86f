"""What do the files of other harnesses look like? Runs each harness on cases of our own, and keeps what it writes.

    python -m benchmarks.harness_files --lm-eval ENV/bin/python --lmms-eval ENV/bin/python --inspect ENV/bin/python \\
        --vlmevalkit ENV/bin/python --output-dir tests/eval/harnesses/files

Each harness lives in an environment of its own: `lm-eval`, `lmms-eval`, `inspect-ai`, and `ms-vlmeval` (a packaging of
VLMEvalKit) from PyPI. Its script here gives it a model that replays the replies of `cases.json`, and tasks that read
the cases; prompting, scoring and writing are the harness's. Two models reply, `base` and `tuned`. The files are the
test data of `eval.import`. Nothing is fetched while they are written. What describes this machine is removed from
them, and from the JSON results of the harnesses.
"""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tracking.command import parse_arguments

HERE = Path(__file__).parent
CASES = HERE / "cases.json"
MODELS = ("base", "tuned")
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
KEPT = {
    "lm_eval": ("out/**/samples_own_*.jsonl", "out/**/results_*.json"),
    "lmms_eval": ("out/**/*_samples_own_*.jsonl", "out/**/*_results.json"),
    "inspect": ("*_own_*.eval", "*_own_*.json"),
    "vlmevalkit": ("*/*.xlsx", "*/*.tsv"),
}
"""Harness -> the files that it writes; their folders are kept."""
OF_THE_MACHINE = (
    "pretty_env_info", "git_hash", "upper_git_hash", "date", "start_time", "end_time", "total_evaluation_time_seconds",
    "eot_token_id", "max_length", "task_hashes", "chat_template",
)  # fmt: skip
"""Entries of results files that are left out."""


@dataclass(frozen=True, kw_only=True)
class HarnessArguments:
    """The interpreters of the harnesses' environments."""

    output_dir: str = field(metadata={"help": "folder that gets one folder per harness and model"})
    lm_eval: str | None = field(default=None, metadata={"help": "interpreter with lm-eval"})
    lmms_eval: str | None = field(default=None, metadata={"help": "interpreter with lmms-eval"})
    inspect: str | None = field(default=None, metadata={"help": "interpreter with inspect-ai"})
    vlmevalkit: str | None = field(default=None, metadata={"help": "interpreter with VLMEvalKit (ms-vlmeval)"})


def write_files(harness: str, interpreter: str, output_dir: Path) -> None:
    """Runs one harness for both models and replaces its folder in the output directory.

    Raises:
        RuntimeError: if the harness fails, with the end of its output.
    """
    target = output_dir / harness
    if target.exists():
        shutil.rmtree(target)
    for model in MODELS:
        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder) / "work"
            work.mkdir()
            done = subprocess.run(
                [interpreter, str(HERE / f"{harness}_writes.py"), str(CASES), model, "."],
                cwd=work, env=os.environ | OFFLINE | {"HOME": folder}, capture_output=True, text=True, check=False,
            )  # fmt: skip
            if done.returncode:
                raise RuntimeError(f"{harness} ended with exit status {done.returncode}:\n{done.stderr[-4000:]}")
            found = sorted({file for pattern in KEPT[harness] for file in work.glob(pattern)})
            if not found:
                raise RuntimeError(f"{harness} wrote none of {', '.join(KEPT[harness])}:\n{done.stderr[-4000:]}")
            for file in found:
                _keep(file, target / model, folder)


def _keep(file: Path, folder: Path, machine: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    data = file.read_bytes()
    if file.name.startswith("results_") or file.name.endswith("_results.json"):
        facts: dict[str, Any] = json.loads(data)
        kept = {name: value for name, value in facts.items() if name not in OF_THE_MACHINE}
        data = (json.dumps(kept, indent=1, ensure_ascii=False) + "\n").encode()
    if machine.encode() in data:
        raise RuntimeError(f"{file.name} holds the path {machine}; make its script write relative paths")
    (folder / file.name).write_bytes(data)


def main(argv: Sequence[str] | None = None) -> None:
    (arguments,) = parse_arguments(argv, HarnessArguments, description=__doc__)
    interpreters = {name: getattr(arguments, name) for name in KEPT if getattr(arguments, name)}
    if not interpreters:
        raise ValueError(f"no interpreter is given; expected one of --{', --'.join(KEPT)}")
    for harness, interpreter in interpreters.items():
        write_files(harness, interpreter, Path(arguments.output_dir))
        print(f"{harness}: {Path(arguments.output_dir) / harness}")
