"""What do weight deltas and spectra cost on a GPU? The energy and floor pass of `analyze.deltas`, and spectra alone.

Spectra are timed against `torch.linalg.svdvals` in fp32 on the same device, in turns; for small matrices the errors of
both against NumPy in fp64 are noted too. The time of all spectra of the model is extrapolated by their cost.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.deltas import largest_error, stored_update, take_turns
from benchmarks.freeze_cost import ratio
from benchmarks.gpu.records import Figures
from benchmarks.gpu.shapes import RL, SFT, Shapes, peak_bytes, prepare, release_memory, synchronise


def measure_shape(shape: str, shapes: Shapes) -> dict[str, Any]:
    """Returns seconds, their ratio, memory and errors for one size of matrix."""
    import numpy as np
    import torch

    from analyze.deltas.spectra import singular_values

    num_rows, _, num_columns = shape.partition("x")
    delta = stored_update(int(num_rows), int(num_columns)).to(shapes.device)

    def theirs() -> torch.Tensor:
        values: torch.Tensor = torch.linalg.svdvals(delta)
        synchronise()
        return values

    contenders: dict[str, Callable[[], Any]] = {"ours": lambda: singular_values(delta), "svdvals": theirs}
    row: dict[str, Any] = {"shape": shape}
    found = {}
    for name, work in contenders.items():  # the first of a size is slow
        release_memory()
        found[name] = work()
        row[f"{name}_peak_bytes"] = peak_bytes()
    row["method"] = found["ours"].method
    seconds = take_turns(contenders, shapes.num_rounds)
    row |= {f"{name}_s": float(np.median(own)) for name, own in seconds.items()}
    row["times_faster"] = ratio(seconds["svdvals"], seconds["ours"])
    if shape in shapes.compared_with_fp64:
        expected = np.linalg.svd(delta.double().cpu().numpy(), compute_uv=False)
        row["largest_relative_error"] = largest_error(found["ours"].values, expected)
        row["svdvals_largest_relative_error"] = largest_error(found["svdvals"].double().cpu().numpy(), expected)
    return row


def run(figures: Figures, shapes: Shapes, work_dir: Path) -> None:
    """The step `deltas`."""
    import analyze.deltas.command
    from analyze.deltas.records import cost, is_matrix, matrix_shape
    from models.layout import layout_of

    figures.note(**prepare(work_dir, shapes))
    words = ["--sft", str(work_dir / SFT), "--rl", str(work_dir / RL), "--device", shapes.device]
    for name in ("first", "second"):  # the first one reads the files and starts what is started once
        begin = time.perf_counter()
        analyze.deltas.command.main(
            [*words, "--measures", "energy", "floor", "--output_dir", str(work_dir / f"deltas-{name}")]
        )
        figures.note(**{f"energy_and_floor_{name}_s": time.perf_counter() - begin})
    matrices = [parameter for parameter in layout_of(work_dir / SFT) if is_matrix(parameter)]
    for shape in shapes.spectra:
        row = measure_shape(shape, shapes)
        sizes = tuple(map(int, shape.split("x")))
        same = [p for p in matrices if sorted(matrix_shape(p)) == sorted(sizes)]
        if same:
            row["all_of_the_model_extrapolated_s"] = row["ours_s"] * cost(matrices) / cost(same[:1])
        figures.add("spectra", row)
