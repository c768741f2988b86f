"""Runs one step in a separate process, so that all of its GPU memory is freed."""

import argparse
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from benchmarks.gpu.records import Figures
from benchmarks.gpu.schedule import STEPS
from benchmarks.gpu.shapes import Shapes, shapes_for
from tracking.command import quiet_libraries

RUNS = {
    "tests": "testing.run",
    "grpo": "training.run",
    "attention": "attention.run",
    "deltas": "deltas.run",
    "splice": "splice.run",
    "probes": "probes.run",
    "rollouts": "rollouts.run",
    "sharing": "sharing.run",
    "shapes_7b": "shapes_7b.run",
    "modes": "testing.run_modes",
}
"""Step -> its module, imported only here, and its function."""
assert list(RUNS) == [step.name for step in STEPS]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("step", choices=list(RUNS))
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--work-dir", type=Path, required=True)
    parser.add_argument("--rehearse", action="store_true")
    arguments = parser.parse_args()
    quiet_libraries()
    module, _, name = RUNS[arguments.step].partition(".")
    run: Callable[[Figures, Shapes, Path], None] = getattr(import_module(f"benchmarks.gpu.{module}"), name)
    run(Figures(arguments.record), shapes_for(rehearse=arguments.rehearse), arguments.work_dir)


if __name__ == "__main__":
    main()
