"""What does a run need? Computes parameters, memory, disk and GPU-hours of every arm before anything is launched.

    python -m train.plan --config configs/frankenstein_3b/necessity.yaml --num-gpus 2 --gpu h200-141gb
    python -m train.plan --config configs/frankenstein_3b/grpo.yaml --layout_config configs/frankenstein_3b/config.json

The configuration is a study's (every arm) or one of train.grpo (one arm; its flags, such as `--freeze mid`, apply).
From `config.json` and safetensors headers alone: no weights are read, and nothing is written but `--json`.

Known limits: weights, gradients and optimizer state are exact (tests count them in live runs); activations are counted
on the CPU and untested on a GPU; memory lost to fragmentation is not in the plan. Gradients and activations are taken
to stand together, as they do where a step has several passes; with one pass a step that is too much.
"""

import json
import sys
from pathlib import Path

from tracking.command import run_command
from tracking.product import write_text
from train.planning.plan import make_plan, plan_as_json
from train.planning.tables import format_plan


def main(argv: list[str] | None = None) -> None:
    plan = make_plan(sys.argv[1:] if argv is None else argv)
    print(format_plan(plan))
    if plan.arguments.json:
        write_text(Path(plan.arguments.json), json.dumps(plan_as_json(plan), indent=1) + "\n")


if __name__ == "__main__":
    run_command(main)
