"""How fast and how accurate are weight deltas? Time, memory and error, compared with other ways of computing them.

    python -m benchmarks.deltas --output benchmarks/results/deltas.json

Three parts (`--parts`), each with contenders that alternate, in an order that rotates between rounds; ratios are taken
within a round, and their median is given with a 95 % bootstrap interval.

    energy    `analyze.deltas.change` on two synthetic bf16 checkpoints of Qwen2.5-VL-3B's widths, without and with the
              noise floor (and the counts that go with it), beside mapping or reading the same files and summing
              them in fp64, which is as accurate, and beside torch's own sum in bf16, the least that can be done
              with what is read; as many threads for all.
              The page cache is dropped before each run where this user may (`cold`), and once more filled (`warm`)
    spectra   `analyze.deltas.spectra.singular_values` beside `torch.linalg.svdvals` in fp32, on updates stored in bf16
              of matrices of Qwen2.5-VL-7B; the errors of both against `numpy.linalg.svd` in fp64
    memory    peaks of processes of their own: the command's energy pass, and spectrum, leading directions and matched
              null of the 7B model's largest matrices. Peaks are of anonymous memory, so without file mappings, but with
              Python and torch themselves

Writes the file that `--output` names, with all measurements.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.freeze_cost import ratio
from benchmarks.splice import DROP_CACHES, MemoryWatch
from tracking.command import REPOSITORY_ROOT, quiet_libraries
from tracking.product import write_text
from tracking.run import git_state, hardware

if TYPE_CHECKING:
    import torch

RESULT = REPOSITORY_ROOT / "benchmarks" / "results" / "deltas.json"
SHAPES = ("3584x18944", "3584x3584")
LARGEST_SHAPES = ("3584x18944", "152064x3584")
"""An MLP's matrix and the embeddings of Qwen2.5-VL-7B, for memory."""
READ_BYTES = 2**22
SUM_ELEMENTS = 2**17
"""Chunk size for conversion and summation; fits into a core's cache."""
ACCURATE_ABOVE = 1e-4
"""Relative to the largest singular value; errors are computed for the values above it."""
WEIGHT_STD = 0.02
UPDATE_STD = 1e-4
"""About one spacing of bf16 numbers at a weight's size."""
SUBSPACE_RANK = 16


def take_turns(
    contenders: Mapping[str, Callable[[], object]], num_rounds: int, *, before: Callable[[], None] | None = None
) -> dict[str, list[float]]:
    """Returns each contender's seconds, one figure per round."""
    names = list(contenders)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for round_number in range(num_rounds):
        shift = round_number % len(names)  # vary the predecessor
        for name in names[shift:] + names[:shift]:
            if before is not None:
                before()
            begin = time.perf_counter()
            contenders[name]()
            seconds[name].append(time.perf_counter() - begin)
            print(f"round {round_number + 1}: {name} {seconds[name][-1]:.2f} s", flush=True)
    return seconds


def read_and_sum(files: Sequence[Path], num_threads: int, *, in_fp64: bool) -> float:
    """Reads files of bf16 numbers and sums them, headers and all."""
    import torch

    def piece(place: tuple[Path, int]) -> float:
        path, offset = place
        buffer = bytearray(READ_BYTES)
        with path.open("rb", buffering=0) as stream:
            stream.seek(offset)
            num_bytes = stream.readinto(buffer)
        values = torch.frombuffer(buffer, dtype=torch.bfloat16)[: num_bytes // 2]
        if not in_fp64:
            return float(values.sum())
        return sum(
            float(values[start : start + SUM_ELEMENTS].double().sum()) for start in range(0, len(values), SUM_ELEMENTS)
        )

    places = [(path, offset) for path in files for offset in range(0, path.stat().st_size, READ_BYTES)]
    with ThreadPoolExecutor(num_threads) as pool:
        return sum(pool.map(piece, places))


def map_and_sum(directories: Sequence[Path], num_threads: int) -> float:
    """Sums the tensors of checkpoints from memory maps, converted to fp64 within torch's sum."""
    import torch

    from models.checkpoint import open_checkpoint

    views = [checkpoint.view(name) for checkpoint in map(open_checkpoint, directories) for name in checkpoint.tensors]
    pieces = [view[start : start + READ_BYTES] for view in views for start in range(0, len(view), READ_BYTES)]

    def total(piece: "torch.Tensor") -> float:
        return sum(float(chunk.sum(dtype=torch.float64)) for chunk in piece.split(2 * SUM_ELEMENTS))

    with ThreadPoolExecutor(num_threads) as pool:
        return sum(pool.map(total, pieces))


def measure_energy(directory: Path, num_rounds: int, num_threads: int) -> dict[str, Any]:
    """Returns seconds and ratios of the energy pass and of reading and summing."""
    import torch

    from analyze.deltas.change import Comparison, measure_many
    from models.checkpoint import open_checkpoint

    torch.set_num_threads(1)  # all contenders use their own threads
    donors = [directory / name for name in ("in", "rl")]
    files = [file for donor in donors for file in sorted(donor.glob("*.safetensors"))]

    def energy(floor: bool) -> None:
        checkpoints = [open_checkpoint(donor) for donor in donors]
        comparison = Comparison(checkpoints=checkpoints, phases=[(0, 1)], floor=floor, counts=floor)
        for _ in measure_many(comparison, list(checkpoints[0].tensors), num_threads=num_threads):
            pass

    contenders: dict[str, Callable[[], object]] = {
        "energy": lambda: energy(False),
        "energy with floor": lambda: energy(True),
        "map and sum in fp64": lambda: map_and_sum(donors, num_threads),
        "read and sum in fp64": lambda: read_and_sum(files, num_threads, in_fp64=True),
        "read and sum in bf16": lambda: read_and_sum(files, num_threads, in_fp64=False),
    }
    gib = sum(file.stat().st_size for file in files) / 2**30
    result: dict[str, Any] = {"gib": round(gib, 3), "num_threads": num_threads}
    states: dict[str, Callable[[], None] | None] = {"warm": None}
    if os.access(DROP_CACHES, os.W_OK):
        states["cold"] = _drop_caches
    for state, before in states.items():
        print(f"energy, {state} page cache", flush=True)
        for work in contenders.values():
            work()  # fills the page cache and does one-time initialisation
        seconds = take_turns(contenders, num_rounds, before=before)
        result[state] = {
            "rows": [
                {
                    "contender": name,
                    "median_s": float(np.median(own)),
                    "gib_per_s": gib / float(np.median(own)),
                    "seconds": own,
                }
                for name, own in seconds.items()
            ],
            "rate_of_reading_and_summing": {
                f"{ours} / {theirs}": ratio(seconds[theirs], seconds[ours])
                for ours in list(contenders)[:2]
                for theirs in list(contenders)[2:]
            },
        }
    return result


def _drop_caches() -> None:
    os.sync()
    DROP_CACHES.write_text("3\n")


def stored_update(rows: int, columns: int) -> "torch.Tensor":
    """Returns an update of random weights as stored in a bf16 checkpoint, in fp32."""
    import torch

    generator = torch.Generator().manual_seed(0)
    weights = (torch.randn(rows, columns, generator=generator) * WEIGHT_STD).bfloat16()
    update = torch.randn(rows, columns, generator=generator) * UPDATE_STD
    return (weights.float() + update).bfloat16().float() - weights.float()


def measure_spectra(shapes: Sequence[str], num_rounds: int, num_threads: int) -> list[dict[str, Any]]:
    """Returns one row per shape: seconds, their ratio, and the errors of both contenders."""
    import torch

    from analyze.deltas.spectra import singular_values

    torch.set_num_threads(num_threads)
    rows = []
    for shape in shapes:
        delta = stored_update(*_sizes(shape))
        print(f"spectra, {shape}", flush=True)
        spectrum, rival = singular_values(delta), torch.linalg.svdvals(delta)  # the first call for a size is slow
        contenders = {"ours": lambda d=delta: singular_values(d), "svdvals": lambda d=delta: torch.linalg.svdvals(d)}
        seconds = take_turns(contenders, num_rounds)
        begin = time.perf_counter()
        expected = np.linalg.svd(delta.double().numpy(), compute_uv=False)
        fp64_s = time.perf_counter() - begin
        above = expected > ACCURATE_ABOVE * expected[0]
        rows.append(
            {
                "shape": shape,
                "num_threads": num_threads,
                "method": spectrum.method,
                "median_s": float(np.median(seconds["ours"])),
                "svdvals_fp32_median_s": float(np.median(seconds["svdvals"])),
                "times_faster": ratio(seconds["svdvals"], seconds["ours"]),
                "numpy_fp64_s": fp64_s,
                "largest_relative_error": largest_error(spectrum.values, expected),
                "largest_stated_relative_error": float((spectrum.errors / spectrum.values)[above].max()),
                "svdvals_fp32_largest_relative_error": largest_error(rival.double().numpy(), expected),
                "smallest_value_over_largest": float(expected[-1] / expected[0]),
                "seconds": seconds,
            }
        )
    return rows


def largest_error(values: np.ndarray, expected: np.ndarray) -> float:
    """Returns the largest relative error among the relevant values."""
    chosen = expected > ACCURATE_ABOVE * expected[0]
    return float(np.max(np.abs(values[chosen] / expected[chosen] - 1)))


def _sizes(shape: str) -> tuple[int, int]:
    rows, _, columns = shape.partition("x")
    return int(rows), int(columns)


def work_in_memory(shape: str, num_threads: int, *, deficient: bool) -> None:
    """Runs the complete spectra pass on one matrix."""
    import torch

    from analyze.deltas.geometry import decompose
    from analyze.deltas.spectra import matched_null, singular_values

    torch.set_num_threads(num_threads)
    delta = torch.empty(_sizes(shape)).normal_(generator=torch.Generator().manual_seed(0))
    if deficient:
        delta[1] = delta[0]
        delta[:, 1] = delta[:, 0]
    spectrum, _ = decompose(delta, SUBSPACE_RANK)
    assert spectrum.method == ("svd" if deficient else "gram"), spectrum.method
    delta = matched_null(delta, seed=0)
    singular_values(delta)


def measure_memory(shapes: Sequence[str], directory: Path, num_threads: int) -> list[dict[str, Any]]:
    """Returns a row a process, with its peak and what that is above the largest matrix's copies in fp32 and fp64."""
    from models.checkpoint import open_checkpoint

    words = [sys.executable, "-m", "benchmarks.deltas", "--num-threads", str(num_threads)]
    rows = []
    for shape in shapes:
        rows.append(_peak(f"spectra {shape}", [*words, "--worker", shape], _num_elements(shape)))
    shape = min(shapes, key=_num_elements)
    rows.append(
        _peak(f"spectra {shape}, full decomposition", [*words, "--worker", shape, "--deficient"], _num_elements(shape))
    )
    command = [
        sys.executable, "-m", "analyze.deltas", "--sft", str(directory / "in"), "--rl", str(directory / "rl"),
        "--num_threads", str(num_threads), "--measures", "energy", "floor", "--output_dir", str(directory / "deltas"),
    ]  # fmt: skip
    rows.append(_peak("energy pass", command, 0))
    tensors = open_checkpoint(directory / "in").tensors.values()
    rows[-1]["largest_tensor_mib"] = max(stored.num_bytes for stored in tensors) / 2**20
    return rows


def _num_elements(shape: str) -> int:
    rows, columns = _sizes(shape)
    return rows * columns


def _peak(name: str, command: list[str], num_elements: int) -> dict[str, Any]:
    print(f"memory, {name}", flush=True)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    begin = time.perf_counter()
    process = subprocess.Popen(command, cwd=REPOSITORY_ROOT, env=environment, stdout=subprocess.DEVNULL)
    memory = MemoryWatch(process.pid)
    status = process.wait()
    peaks = memory.stop()
    if status:
        raise RuntimeError(f"{' '.join(command)} failed with exit status {status}")
    return {
        "process": name,
        "seconds": time.perf_counter() - begin,
        **peaks,
        "above_copies_gib": peaks["peak_anonymous_mib"] / 1024 - 12 * num_elements / 2**30,
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output", type=Path, default=RESULT, help="JSON file to write")
    parser.add_argument(
        "--parts", nargs="+", choices=("energy", "spectra", "memory"), default=["energy", "spectra", "memory"]
    )
    parser.add_argument("--rounds", type=int, default=7, help="number of runs of each contender")
    parser.add_argument("--gib", type=float, default=4.0, help="approximate size of each checkpoint, in GiB")
    parser.add_argument(
        "--shapes", nargs="+", default=list(SHAPES), help="shapes of the matrices whose spectra are timed"
    )
    parser.add_argument(
        "--largest-shapes",
        nargs="+",
        default=list(LARGEST_SHAPES),
        help="shapes of the matrices whose peak memory is measured",
    )
    parser.add_argument(
        "--num-threads", type=int, default=len(os.sched_getaffinity(0)), help="CPU threads of every contender"
    )
    parser.add_argument("--work-dir", type=Path, help="a folder on the disk to read from; emptied at the end")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--deficient", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.rounds < 2:
        parser.error(f"--rounds is {arguments.rounds}; an interval needs at least 2")
    quiet_libraries()
    if arguments.worker:
        work_in_memory(arguments.worker, arguments.num_threads, deficient=arguments.deficient)
        return
    result: dict[str, Any] = {
        "command": f"python -m benchmarks.deltas --parts {' '.join(arguments.parts)} --rounds {arguments.rounds}",
        "git": git_state(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": hardware(),
    }
    with tempfile.TemporaryDirectory(prefix="deltas-benchmark-", dir=arguments.work_dir) as folder:
        directory = Path(folder)
        if {"energy", "memory"} & set(arguments.parts):
            prepare = ["-m", "benchmarks.splice", "--prepare", str(directory), "--gib", str(arguments.gib)]
            subprocess.run([sys.executable, *prepare], cwd=REPOSITORY_ROOT, check=True)
        if "energy" in arguments.parts:
            result["energy"] = measure_energy(directory, arguments.rounds, arguments.num_threads)
        if "spectra" in arguments.parts:
            result["spectra"] = measure_spectra(arguments.shapes, arguments.rounds, arguments.num_threads)
        if "memory" in arguments.parts:
            result["memory"] = measure_memory(arguments.largest_shapes, directory, arguments.num_threads)
    write_text(arguments.output, json.dumps(result, indent=1) + "\n")
    print_result(result)


def print_result(result: dict[str, Any]) -> None:
    for state in ("warm", "cold"):
        for name, rate in result.get("energy", {}).get(state, {}).get("rate_of_reading_and_summing", {}).items():
            print(f"{state}: {name}: {rate['median']:.2f} [{rate['low']:.2f}, {rate['high']:.2f}] of its rate")
    for row in result.get("spectra", []):
        times = row["times_faster"]
        print(
            f"{row['shape']}: {row['median_s']:.1f} s, svdvals {row['svdvals_fp32_median_s']:.1f} s, "
            f"{times['median']:.1f} [{times['low']:.1f}, {times['high']:.1f}] times faster, "
            f"error {row['largest_relative_error']:.1e} (svdvals {row['svdvals_fp32_largest_relative_error']:.1e})"
        )
    for row in result.get("memory", []):
        print(
            f"{row['process']}: peak {row['peak_anonymous_mib']:.0f} MiB, "
            f"{row['above_copies_gib']:.2f} GiB above the matrix's copies"
        )


if __name__ == "__main__":
    main()
