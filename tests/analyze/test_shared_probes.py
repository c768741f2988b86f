"""Each probe shared by two processes of one launch writes what one process writes."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from analyze.attention import command as attention
from analyze.skip import command as skip
from analyze.swap import command as swap
from data_builders.pairs.files import write_pairs
from data_builders.pairs.pair import Pair
from tests.eval.test_run import write_prompt_set
from tracking.command import REPOSITORY_ROOT, run_command

PROBES: dict[str, Callable[[list[str]], None]] = {"swap": swap.main, "skip": skip.main, "attention": attention.main}


def run_probes(commands: dict[str, list[str]], directory: Path) -> None:
    for name, words in commands.items():
        PROBES[name]([*words, "--output-dir", str(directory / name), "--max-new-tokens", "4", "--batch-size", "2"])


@pytest.mark.slow
def test_two_processes_write_what_one_writes(pocket_checkpoint: Path, warm_python: Path, tmp_path: Path) -> None:
    prompts = write_prompt_set(tmp_path / "set")
    pairs = [
        Pair(
            id=str(number), task="ocr", prompt="What colour is it ?", target_image=f"images/{target}.png",
            source_image=f"images/{source}.png", target_answer="red", source_answer="blue",
        )
        for number, (target, source) in enumerate(["aa", "bb", "ab", "aa", "bb"])  # ab has unequal grids
    ]  # fmt: skip
    write_pairs(prompts, pairs)
    model, task = str(pocket_checkpoint), f"{prompts}:test"
    commands = {
        "swap": ["--model", model, "--pairs", str(prompts), "--mode", "from", "only"],
        "skip": ["--model", model, "--tasks", task, "--configurations", "blocks"],
        "attention": ["--models", f"base={model}", f"again={model}", "--tasks", task],
    }
    run_probes(commands, tmp_path / "one")
    launched = subprocess.run(
        [str(warm_python), "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1",
         "--mixed_precision", "no", "--dynamo_backend", "no", __file__, json.dumps(commands), str(tmp_path / "two")],
        cwd=REPOSITORY_ROOT, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY_ROOT)},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert launched.returncode == 0, launched.stderr[-2000:]
    written = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.csv"))
    assert len(written) == 5 + 3 + 6
    for path in (*written, *(Path(name) / "records.jsonl" for name in commands)):
        assert (tmp_path / "two" / path).read_bytes() == (tmp_path / "one" / path).read_bytes(), path
    assert not list((tmp_path / "two").rglob("records-*"))
    assert launched.stdout.count("rates: ") == 2  # one process speaks


if __name__ == "__main__":
    run_command(lambda: run_probes(json.loads(sys.argv[1]), Path(sys.argv[2])))
