"""Runs a command whose optimizer steps wait, as on busy storage: a long run that leaves the cores to other tests.

python tests/slurm/patient.py MODULE ARGUMENTS…
"""

import runpy
import sys
import time
from pathlib import Path
from typing import Any

from torch.optim.optimizer import register_optimizer_step_post_hook

STEP_S = 0.4


def wait(*_: Any) -> None:
    time.sleep(STEP_S)


if __name__ == "__main__":
    register_optimizer_step_post_hook(wait)
    sys.path[0] = str(Path.cwd())  # as `python -m` has it
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
