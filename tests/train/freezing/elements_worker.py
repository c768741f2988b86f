"""Runs with element masks, one after the other, in this process, which is one of a launch. Started by a test."""

import contextlib
import io
import json
import sys
from pathlib import Path

from benchmarks.freezing import released
from train.grpo import main as grpo
from train.sft import main as sft


def run_all(work: Path, launch: str) -> None:
    for command, words in json.loads((work / f"{launch}.json").read_text()):
        with released(), contextlib.redirect_stdout(io.StringIO()):
            (grpo if command == "grpo" else sft)(words)


if __name__ == "__main__":
    run_all(Path(sys.argv[1]), sys.argv[2])
