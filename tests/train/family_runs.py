"""Runs `train.grpo` for several families and engines in one of two processes; started by test_family_processes.py.

torchrun --nproc_per_node 2 family_runs.py CASES.json
"""

import contextlib
import gc
import io
import json
import sys
from pathlib import Path
from typing import Any

from tracking.command import quiet_libraries


def spread(completions: list[Any], **_: Any) -> list[float]:
    """A reward that differs between replies of an untrained model."""
    return [len(set(messages[-1]["content"])) / 10 for messages in completions]


def main() -> None:
    quiet_libraries()
    from benchmarks.freezing import released
    from train.grpo import main as train

    gc.freeze()
    for words in json.loads(Path(sys.argv[1]).read_text()):
        with released(), contextlib.redirect_stdout(io.StringIO()):
            train(words)


if __name__ == "__main__":
    main()
