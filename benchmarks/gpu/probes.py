"""How much faster than one `generate` per layer are the probes? `benchmarks.probes`, few prompts and short replies."""

import argparse
from pathlib import Path

from benchmarks.gpu.records import Figures
from benchmarks.gpu.shapes import Shapes, peak_bytes, release_memory


def run_probe(figures: Figures, shapes: Shapes, *, shape: str, probe: str, num_problems: int) -> None:
    """Lets one probe and its plain way take turns and notes the result."""
    from benchmarks.probes import measure

    release_memory()
    arguments = argparse.Namespace(
        shape=shape, probes=[probe], dtype=shapes.probe_dtype, num_problems=num_problems,
        num_new_tokens=shapes.num_new_tokens, num_rounds=shapes.num_rounds,
    )  # fmt: skip
    (row,) = measure(arguments)
    settings = {"shape": shape, "dtype": shapes.probe_dtype, "num_new_tokens": shapes.num_new_tokens}
    figures.add("probes", {**settings, **row, "peak_bytes": peak_bytes()})


def run(figures: Figures, shapes: Shapes, work_dir: Path) -> None:
    """The step `probes`."""
    for probe in ("swap", "skip"):
        run_probe(figures, shapes, shape=shapes.probe_shape, probe=probe, num_problems=shapes.num_problems)
